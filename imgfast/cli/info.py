"""``imgfast info``: what is installed and what runs here, or what a network costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from imgfast import info
from imgfast.cli import console
from imgfast.cli.app import JsonOption, command
from imgfast.models import PRESETS, classifier_config, cost


@command("info")
def show_info(
    model: Annotated[
        str | None, typer.Option(help=f"Of a network instead: {', '.join(PRESETS)}.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="With --model: pixels.")] = 28,
    channels: Annotated[int, typer.Option(help="With --model: 1 or 3.")] = 1,
    classes: Annotated[int, typer.Option(help="With --model: their number.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Versions, instruction set, and whether CUDA is built in, and why.

    With --model: its settings, parameters, and multiply-adds for one picture.
    """
    facts = info.collect() if model is None else _network(model, image_size, channels, classes)
    if as_json:
        console.print_json(facts)
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            console.line(f"{name:<{width}}  {value}")


def _network(model: str, image_size: int, channels: int, classes: int) -> dict[str, Any]:
    names = tuple(map(str, range(min(classes, 1 << 20))))
    half = (0.5,) * channels
    config = classifier_config(model, names, channels, image_size, half, half)
    settings = {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("classes", "mean", "std")
    }
    found = cost(config)
    return {
        "model": model,
        **settings,
        "classes": classes,
        "parameters": found.parameters,
        "multiply_adds": found.multiply_adds,
    }
