"""``imgfast bench``: a network beside stock PyTorch, or networks beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import DataOption, JsonOption, command, empty_folder
from imgfast.data import load_data
from imgfast.data.load import SUBSET
from imgfast.engine.compare import save_plot as save_comparison_plot
from imgfast.engine.generation.compare import compare_generator
from imgfast.engine.generation.train_config import NAME as GENERATOR
from imgfast.engine.sweep import save_plot as save_sweep_plot
from imgfast.engine.sweep import sweep as run_sweep
from imgfast.models import PRESETS, classifier_config, generator_config


@command()
def bench(
    model: Annotated[
        str, typer.Option(help=f"Network: {', '.join(PRESETS)}, {GENERATOR}.")
    ] = "tiny",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a call.")] = 128,
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 28,
    channels: Annotated[int, typer.Option(help="1 or 3.")] = 1,
    classes: Annotated[int, typer.Option(min=2, max=10_000, help="Their number.")] = 10,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Train variants: size, speed, accuracy.")
    ] = False,
    data: DataOption = SUBSET,
    epochs: Annotated[int, typer.Option(min=1, help="Of each network of a sweep.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of a sweep.")] = 0,
    folder: Annotated[
        Path | None, typer.Option("--out", help="New folder for the plot and a sweep's runs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pictures a second beside the same network in stock PyTorch, on this machine.

    With --sweep: variants of the network are trained alike, and shown with their parameters,
    speed and accuracy.
    """
    if sweep and model == GENERATOR:
        raise typer.BadParameter(f"--sweep does not belong to --model {GENERATOR}")
    folder = folder or engine.RunFolder.unused("sweep" if sweep else "bench")
    empty_folder(folder)
    if sweep:
        config = engine.TrainConfig(model=model, epochs=epochs, seed=seed, batch_size=batch_size)
        with console.progress("reading") as on_picture:
            pictures = load_data(data, image_size, on_picture=on_picture)
        console.report_skipped(pictures.skipped)
        folder.mkdir(parents=True, exist_ok=True)
        with console.waiting("training networks, one after another"):
            rows = run_sweep(pictures, config, folder)
        save_sweep_plot(folder / "sweep.png", rows)
    else:
        names = tuple(map(str, range(classes)))
        half = (0.5,) * channels
        sizes = (names, channels, image_size, half, half)
        with console.waiting("timing beside stock PyTorch"):
            if model == GENERATOR:
                rows = compare_generator(generator_config(*sizes), batch_size)
            else:
                rows = engine.compare(classifier_config(model, *sizes), batch_size)
        folder.mkdir(parents=True, exist_ok=True)
        save_comparison_plot(folder / "bench.png", rows)
    picture = folder / ("sweep.png" if sweep else "bench.png")
    if as_json:
        console.print_json({"rows": [row.to_dict() for row in rows], "picture": str(picture)})
    else:
        (console.show_sweep if sweep else console.show_comparison)(rows)
        console.line(f"plot {picture}")
