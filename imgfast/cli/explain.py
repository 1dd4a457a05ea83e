"""``imgfast explain``: which pixels speak for the class that a checkpoint names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import CheckpointOption, JsonOption, command
from imgfast.engine.attribution import METHODS
from imgfast.engine.explain import explain_files, mean_scores

_CHOICES = (*METHODS, "all")


@command()
def explain(
    paths: Annotated[list[str], typer.Argument(help="Pictures, folders or quoted patterns.")],
    checkpoint: CheckpointOption,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the overlays, PNG.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(_CHOICES)}.")] = "all",
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class to explain. Default: the predicted one.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace overlays in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Heat maps on pictures: red speaks for the class, blue against it.

    Each map is scored beside a random order of the pixels: the area under the class's probability
    as its hottest pixels are deleted (lower is better) and inserted (higher is better).
    """
    if method not in _CHOICES:
        raise typer.BadParameter(f"--method must be one of {', '.join(_CHOICES)}, got {method!r}")
    methods = METHODS if method == "all" else (method,)
    model = engine.load_checkpoint(checkpoint).model
    with console.progress("explaining") as on_picture:
        found, errors, named = explain_files(
            model, paths, folder, methods, class_name, overwrite, on_picture
        )
    means = mean_scores(found)
    if as_json:
        console.print_json(
            {
                "explanations": [item.to_dict() for item in found],
                "mean": {name: dataclasses.asdict(score) for name, score in means.items()},
                "skipped": [{"path": error.path, "reason": error.reason} for error in errors],
            }
        )
    else:
        for item in found:
            console.line(f"{item.path}: {item.label} {item.probability:.1%}, {item.overlay}")
        for name, score in means.items():
            console.line(
                f"{name:<20} deletion {score.deletion:.3f}, insertion {score.insertion:.3f}"
            )
        gaps = [item.completeness_error for item in found if item.completeness_error is not None]
        if gaps:
            console.line(f"{'completeness':<20} largest error {max(gaps):.2%}")
    console.report_skipped(errors, count=len(errors) > len(named))
    if named or not found:
        raise typer.Exit(1)
