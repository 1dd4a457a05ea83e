"""The command ``imgfast``: train, evaluate, predict, info, demo.

Results go to standard output, progress and errors to standard error. Exit codes:

    0    done
    1    a picture, data set, checkpoint or folder is at fault; one line says which and why
    2    the command line is at fault
    130  interrupted; checkpoints already written are whole
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from imgfast import console, engine, info
from imgfast.data import load_data
from imgfast.data.load import FULL, SUBSET
from imgfast.engine.picture import save_prediction_grid

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train and use picture classifiers on fused convolution + ReLU + pooling kernels.",
)

_DEFAULT = engine.TrainConfig()
DataOption = Annotated[
    str,
    typer.Option(help=f"{SUBSET} (inside the package), {FULL}, or a folder of class folders."),
]
CheckpointOption = Annotated[Path, typer.Option(help="Checkpoint file or run folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]


def main() -> None:
    """Entry point of the command ``imgfast``."""
    # A decoder's remarks on a file that it reads after all, such as broken EXIF.
    warnings.filterwarnings("ignore", module="PIL")
    app()


def _one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the errors a user can cause into one line and exit code 1."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        # DataError, CheckpointError and RunFolderError are ValueErrors with a message to show.
        except (ValueError, OSError, engine.TrainError) as error:
            console.error(str(error))
            raise typer.Exit(1) from error

    return wrapped


@app.command()
@_one_line_errors
def train(
    model: Annotated[str, typer.Option(help="Network: tiny.")] = _DEFAULT.model,
    data: DataOption = SUBSET,
    seed: Annotated[int, typer.Option(help="Of split, weights and order.")] = _DEFAULT.seed,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Run folder. Default: a new one below runs/.")
    ] = None,
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
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier; 20% of each class are held out and judge it."""
    settings = {"model": model, "seed": seed, "epochs": epochs, "batch_size": batch_size}
    try:
        config = engine.TrainConfig(**settings, lr=lr, layers=layers, device=device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    run = engine.RunFolder(folder or engine.RunFolder.unused(f"{model}-{seed}"), overwrite)
    result, skipped = _train(data, image_size, config, run)
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


@app.command()
@_one_line_errors
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


@app.command()
@_one_line_errors
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


@app.command("info")
@_one_line_errors
def show_info(as_json: JsonOption = False) -> None:
    """Versions, instruction set, and whether CUDA is built in, and why."""
    facts = info.collect()
    if as_json:
        console.print_json(facts)
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            console.line(f"{name:<{width}}  {value}")


@app.command()
@_one_line_errors
def demo(
    folder: Annotated[
        Path | None, typer.Option("--out", help="Run folder. Default: a new one below runs/.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of split, weights and order.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures.")] = _DEFAULT.epochs,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train tiny on the pictures in the package, show what it says, time it beside stock."""
    started = time.perf_counter()
    run = engine.RunFolder(folder or engine.RunFolder.unused("demo"), overwrite)
    config = engine.TrainConfig(seed=seed, epochs=epochs)
    result, _ = _train(SUBSET, None, config, run)
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


def _train(
    data: str, image_size: int | None, config: engine.TrainConfig, run: engine.RunFolder
) -> tuple[engine.TrainResult, int]:
    """Load and train under progress bars; the result and the number of files skipped."""
    with console.progress("reading") as on_picture:
        pictures = load_data(data, image_size, on_picture=on_picture)
    console.report_skipped(pictures.skipped)
    with console.training_progress() as on_step:
        return engine.train(pictures, config, run, on_step), len(pictures.skipped)
