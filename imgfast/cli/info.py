"""``imgfast info``: what is installed and what runs here."""

from __future__ import annotations

from imgfast import info
from imgfast.cli import console
from imgfast.cli.app import JsonOption, command


@command("info")
def show_info(as_json: JsonOption = False) -> None:
    """Versions, instruction set, and whether CUDA is built in, and why."""
    facts = info.collect()
    if as_json:
        console.print_json(facts)
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            console.line(f"{name:<{width}}  {value}")
