"""``imgfast export``: a checkpoint as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import CheckpointOption, JsonOption, command
from imgfast.engine.export import FORMATS, export_classifier


@command()
def export(
    checkpoint: CheckpointOption,
    path: Annotated[Path, typer.Option("--out", help="File to write.")],
    file_format: Annotated[
        str | None,
        typer.Option("--format", help=f"{' or '.join(FORMATS)}. Default: by --out's ending."),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Pictures in a call: dynamic for any number, or a number.")
    ] = "dynamic",
    overwrite: Annotated[bool, typer.Option(help="Replace the file in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write torch.export (.pt2) or ONNX in stock operators, checked against the model.

    Input: float32 pixels in [0, 1], [N, C, S, S]; the normalisation is inside. Output: logits.
    Do not load a .pt2 that comes from somebody you do not trust: PyTorch unpickles parts of it.
    """
    loaded = engine.load_checkpoint(checkpoint)
    with console.waiting("exporting"):
        report = export_classifier(loaded, path, file_format, batch, overwrite)
    if as_json:
        console.print_json({"checkpoint": str(loaded.path), **report.to_dict()})
    else:
        console.line(f"{report.path}: {report.format}, {report.bytes:,} bytes")
        console.line(
            f"on {report.pictures} pictures of {report.data}: probabilities within "
            f"{report.max_difference:.1e} of the model's, {report.agreement:.1%} the same label"
        )
