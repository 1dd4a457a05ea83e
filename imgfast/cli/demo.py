"""``imgfast demo``: all of it on the pictures in the package, and the comparison with stock."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import JsonOption, OutOption, OverwriteOption, command
from imgfast.cli.train import train_on
from imgfast.data.load import SUBSET
from imgfast.engine.picture import save_prediction_grid


@command()
def demo(
    folder: OutOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of split, weights and order.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the pictures. Default: 16.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train tiny on the pictures in the package, show what it says, time it beside stock."""
    started = time.perf_counter()
    run = engine.RunFolder(folder or engine.RunFolder.unused("demo"), overwrite)
    config = engine.TrainConfig(seed=seed, epochs=epochs)
    result, _ = train_on(SUBSET, None, config, run)
    loaded = engine.load_checkpoint(run.last)
    evaluation = engine.evaluate(loaded.model, result.held_out)
    picture = run.path / "predictions.png"
    save_prediction_grid(picture, loaded.model, result.held_out)
    with console.waiting("timing beside stock PyTorch"):
        comparisons = engine.compare(loaded.config, config.batch_size)
    seconds = time.perf_counter() - started
    if as_json:
        console.print_json(
            {
                "accuracy": evaluation.accuracy,
                "macro_recall": evaluation.macro_recall,
                "train_seconds": round(result.train_seconds, 3),
                "checkpoint": str(run.last),
                "picture": str(picture),
                "comparison": [comparison.to_dict() for comparison in comparisons],
                "seconds": round(seconds, 3),
            }
        )
    else:
        console.show_evaluation(evaluation)
        console.show_comparison(comparisons)
        console.line(f"{result.train_seconds:.1f} s of training, {seconds:.1f} s in all")
        console.line(f"checkpoint {run.last}")
        console.line(f"predictions {picture}")
