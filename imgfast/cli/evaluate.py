"""``imgfast evaluate``: how good a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import CheckpointOption, JsonOption, command, empty_folder
from imgfast.engine.evaluate import evaluation_set
from imgfast.engine.report import report, save_report


@command()
def evaluate(
    checkpoint: CheckpointOption,
    data: Annotated[
        str | None, typer.Option(help="Default: what was held out of the training set.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Also count the k most probable.")] = 3,
    folder: Annotated[
        Path | None, typer.Option("--out", help="New folder for tables and pictures.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy, precision, recall, F1, confusion and calibration on pictures not trained on.

    With --out: confusion.png and .csv, classes.csv, reliability.png, mistakes.png,
    evaluation.json.
    """
    if folder is not None:
        empty_folder(folder)
    loaded = engine.load_checkpoint(checkpoint)
    with console.progress("reading") as on_picture:
        pictures = evaluation_set(loaded, data, on_picture)
    console.report_skipped(pictures.skipped)
    found = report(loaded.model, pictures, top_k)
    if folder is not None:
        save_report(folder, found, pictures)
    if as_json:
        extra = {
            "checkpoint": str(loaded.path),
            "data": pictures.name,
            "skipped": len(pictures.skipped),
            "out": str(folder) if folder else None,
        }
        console.print_json({**found.to_dict(), **extra})
        return
    console.show_evaluation(found.evaluation, confusion=True)
    console.show_report(found)
    if folder is not None:
        console.line(f"report {folder}")
