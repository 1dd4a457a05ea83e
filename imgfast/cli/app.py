"""The application that the commands join, and the options that several of them take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.data.load import FULL, SUBSET
from imgfast.data.torchvision_sets import PREFIX

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train and use picture classifiers on fused convolution + ReLU + pooling kernels.",
)

DataOption = Annotated[
    str,
    typer.Option(
        help=f"{SUBSET} (inside the package), {FULL}, {PREFIX}NAME, or a folder of class folders."
    ),
]
CheckpointOption = Annotated[Path, typer.Option(help="Checkpoint file or run folder.")]
MirrorOption = Annotated[
    bool,
    typer.Option(
        "--mirror", help="Average the answers for a picture and its mirror image: twice the time."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Run folder. Default: a new one below runs/.")
]
OverwriteOption = Annotated[bool, typer.Option(help="Replace an earlier run in --out.")]


def command(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a command; the errors that a user can cause become one line and exit code 1."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @app.command(name)
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            # DataError, CheckpointError and RunFolderError are ValueErrors with a message to show.
            except (ValueError, OSError, engine.TrainError) as error:
                console.error(str(error))
                raise typer.Exit(1) from error

        return wrapped

    return add


def empty_folder(folder: Path) -> None:
    """Refuse a place for results that holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise engine.RunFolderError(f"{folder}: already exists; choose another --out")
