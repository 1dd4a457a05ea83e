"""The command ``imgfast``: a module for each of its sub-commands.

    data, train, evaluate, predict, generate, explain, export, bench, info, demo

Results go to standard output, progress and errors to standard error. Exit codes:

    0    done
    1    a picture, data set, checkpoint or folder is at fault; one line says which and why
    2    the command line is at fault
    130  interrupted; checkpoints already written are whole
"""

import warnings

# Importing a module adds its command.
from imgfast.cli import (  # noqa: F401
    bench,
    data,
    demo,
    evaluate,
    explain,
    export,
    generate,
    info,
    predict,
    train,
)
from imgfast.cli.app import app


def main() -> None:
    """Entry point of the command ``imgfast``."""
    # A decoder's remarks on a file that it reads after all, such as broken EXIF.
    warnings.filterwarnings("ignore", module="PIL")
    app()
