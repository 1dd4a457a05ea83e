"""``imgfast evaluate``: how good a checkpoint is."""

from __future__ import annotations

from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import CheckpointOption, JsonOption, command


@command()
def evaluate(
    checkpoint: CheckpointOption,
    data: Annotated[
        str | None, typer.Option(help="Default: what was held out of the training set.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy, precision, recall, F1 and confusion on pictures the model has not seen."""
    loaded = engine.load_checkpoint(checkpoint)
    with console.progress("reading") as on_picture:
        evaluation, pictures = engine.evaluate_checkpoint(loaded, data, on_picture)
    console.report_skipped(pictures.skipped)
    if as_json:
        extra = {
            "checkpoint": str(loaded.path),
            "data": pictures.name,
            "skipped": len(pictures.skipped),
        }
        console.print_json({**evaluation.to_dict(), **extra})
    else:
        console.show_evaluation(evaluation, confusion=True)
