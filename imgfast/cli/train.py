"""``imgfast train``: data set to run folder."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import DataOption, JsonOption, OutOption, OverwriteOption, command
from imgfast.data import load_data
from imgfast.data.load import SUBSET

_DEFAULT = engine.TrainConfig()


@command()
def train(
    model: Annotated[str, typer.Option(help="Network: tiny.")] = _DEFAULT.model,
    data: DataOption = SUBSET,
    seed: Annotated[int, typer.Option(help="Of split, weights and order.")] = _DEFAULT.seed,
    folder: OutOption = None,
    epochs: Annotated[int, typer.Option(help="Passes over the pictures.")] = _DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option(help="Pictures in a step.")] = _DEFAULT.batch_size,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = _DEFAULT.lr,
    image_size: Annotated[
        int | None, typer.Option(help="Of a folder's pictures, pixels. Default: 32.")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="imgfast, or stock: the same network in stock PyTorch.")
    ] = _DEFAULT.layers,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = _DEFAULT.device,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier; 20% of each class are held out and judge it."""
    settings = {"model": model, "seed": seed, "epochs": epochs, "batch_size": batch_size}
    try:
        config = engine.TrainConfig(**settings, lr=lr, layers=layers, device=device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    run = engine.RunFolder(folder or engine.RunFolder.unused(f"{model}-{seed}"), overwrite)
    result, skipped = train_on(data, image_size, config, run)
    if as_json:
        console.print_json(
            {
                "accuracy": result.evaluation.accuracy,
                "macro_recall": result.evaluation.macro_recall,
                "train_seconds": round(result.train_seconds, 3),
                "checkpoint": str(run.last),
                "best_accuracy": result.best_accuracy,
                "best_checkpoint": str(run.best),
                "held_out": result.evaluation.pictures,
                "skipped": skipped,
                **dataclasses.asdict(config),
            }
        )
    else:
        console.show_evaluation(result.evaluation)
        console.line(f"{result.train_seconds:.1f} s of training, checkpoint {run.last}")


def train_on(
    data: str, image_size: int | None, config: engine.TrainConfig, run: engine.RunFolder
) -> tuple[engine.TrainResult, int]:
    """Load and train under progress bars; the result and the number of files skipped."""
    with console.progress("reading") as on_picture:
        pictures = load_data(data, image_size, on_picture=on_picture)
    console.report_skipped(pictures.skipped)
    with console.training_progress() as on_step:
        return engine.train(pictures, config, run, on_step), len(pictures.skipped)
