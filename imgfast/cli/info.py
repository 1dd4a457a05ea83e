"""``imgfast info``: what is installed and what runs here, or what a network costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from imgfast import info
from imgfast.cli import console
from imgfast.cli.app import JsonOption, command
from imgfast.engine.generation.train_config import NAME as GENERATOR
from imgfast.models import PRESETS, classifier_config, cost, generator_config, generator_cost


@command("info")
def show_info(
    model: Annotated[
        str | None, typer.Option(help=f"Of a network instead: {', '.join(PRESETS)}, {GENERATOR}.")
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
    if model == GENERATOR:
        settings = generator_config(names, channels, image_size, half, half)
        whole = generator_cost(settings)
        figures: dict[str, Any] = {"parameters": whole.parameters}
        for part in ("tokenizer", "prior"):
            found = getattr(whole, part)
            figures[f"{part}_parameters"] = found.parameters
            figures[f"{part}_multiply_adds"] = found.multiply_adds
    else:
        settings = classifier_config(model, names, channels, image_size, half, half)
        found = cost(settings)
        figures = {"parameters": found.parameters, "multiply_adds": found.multiply_adds}
    values = settings.to_dict()
    told = {name: values[name] for name in values if name not in ("classes", "mean", "std")}
    return {"model": model, **told, "classes": classes, **figures}
