"""``imgfast predict``: what a checkpoint says about pictures."""

from __future__ import annotations

import csv
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import CheckpointOption, JsonOption, MirrorOption, command
from imgfast.engine.predict import Prediction


@command()
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, folders or quoted patterns; - reads them from standard input, one a "
            "line."
        ),
    ],
    checkpoint: CheckpointOption,
    top_k: Annotated[
        int, typer.Option(min=1, help="How many classes to tell of each picture.")
    ] = 1,
    mirror: MirrorOption = False,
    abstain: Annotated[
        bool,
        typer.Option(
            "--abstain",
            help="Give no class where the model is too uncertain; needs a checkpoint that "
            "imgfast evaluate --abstain has calibrated.",
        ),
    ] = False,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Class and probability of pictures: PNG, JPEG, WebP or BMP.

    A bad picture in a folder is skipped and counted; one named by itself makes the exit code 1.
    """
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    model = engine.load_checkpoint(checkpoint).model
    abstention = engine.load_abstention(checkpoint) if abstain else None
    given = _with_standard_input(paths)
    started = time.perf_counter()
    with console.progress("predicting") as on_picture:
        found, errors, named = engine.predict_files(
            model, given, on_picture, top_k, abstention, mirror
        )
    seconds = time.perf_counter() - started
    if as_json:
        rows = [dataclasses.asdict(prediction) for prediction in found]
        skipped = [{"path": error.path, "reason": error.reason} for error in errors]
        console.print_json({"predictions": rows, "skipped": skipped})
    elif as_csv:
        _print_csv(found, top_k)
    else:
        for prediction in found:
            console.line(f"{prediction.path}: {_shown(prediction)}")
    console.report_skipped(errors, count=len(errors) > len(named))
    if found:
        counted = f"{len(found)} picture{'s' * (len(found) > 1)} in {seconds:.2f} s"
        rate = f"{len(found) / seconds:,.0f} pictures/s"
        console.error(f"{counted}, {rate} (decoding and network)")
    if named or not found:
        raise typer.Exit(1)


def _with_standard_input(paths: Sequence[str]) -> list[str]:
    """The paths, with the lines of standard input in place of ``-``."""
    given: list[str] = []
    for path in paths:
        if path != "-":
            given.append(path)
            continue
        # File names are bytes; only a line feed ends one.
        lines = [line for line in os.fsdecode(sys.stdin.buffer.read()).split("\n") if line]
        if not lines:
            raise ValueError("standard input: must name at least one picture, a line each")
        given += lines
    return given


def _shown(prediction: Prediction) -> str:
    """The classes and their probabilities, behind a question mark where the model abstains."""
    guesses = ", ".join(f"{guess.label} {guess.probability:.1%}" for guess in prediction.top)
    if not prediction.abstained:
        return guesses
    further = f" ({guesses})" if len(prediction.top) > 1 else ""
    return f"? {prediction.probability:.1%}{further}"


def _print_csv(found: Sequence[Prediction], top_k: int) -> None:
    """One row a picture; an empty label where the model abstains."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    further = [
        f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")
    ]
    writer.writerow(["path", "label", "probability", *further])
    for prediction in found:
        row = [prediction.path, prediction.label or "", f"{prediction.probability:.6f}"]
        for guess in prediction.top[1:]:
            row += [guess.label, f"{guess.probability:.6f}"]
        writer.writerow(row)
