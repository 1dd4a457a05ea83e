"""``python -m imgfast`` is the command ``imgfast``."""

from imgfast.cli import main

main()
