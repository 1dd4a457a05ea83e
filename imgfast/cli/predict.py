"""``imgfast predict``: what a checkpoint says about pictures."""

from __future__ import annotations

import csv
import dataclasses
import sys
from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import CheckpointOption, JsonOption, command


@command()
def predict(
    paths: Annotated[list[str], typer.Argument(help="Pictures, folders or quoted patterns.")],
    checkpoint: CheckpointOption,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Class and probability of pictures: PNG, JPEG, WebP or BMP.

    A bad picture in a folder is skipped and counted; one named by itself makes the exit code 1.
    """
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    model = engine.load_checkpoint(checkpoint).model
    with console.progress("predicting") as on_picture:
        found, errors, named = engine.predict_files(model, paths, on_picture)
    if as_json:
        rows = [dataclasses.asdict(prediction) for prediction in found]
        skipped = [{"path": error.path, "reason": error.reason} for error in errors]
        console.print_json({"predictions": rows, "skipped": skipped})
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "label", "probability"])
        writer.writerows([p.path, p.label, f"{p.probability:.6f}"] for p in found)
    else:
        for p in found:
            console.line(f"{p.path}: {p.label} {p.probability:.1%}")
    console.report_skipped(errors, count=len(errors) > len(named))
    if named or not found:
        raise typer.Exit(1)
