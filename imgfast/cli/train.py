"""``imgfast train``: data set to run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import JsonOption, OutOption, OverwriteOption, command
from imgfast.cli.train_generator import show_generator
from imgfast.data import load_data
from imgfast.data.load import FULL, SUBSET
from imgfast.engine import distributed
from imgfast.engine.generation.train_config import NAME as GENERATOR
from imgfast.engine.lr_finder import find_lr
from imgfast.engine.train_config import read_toml
from imgfast.models import ACTIVATIONS, NORMS, POOLS, PRESETS

_DEFAULT, _GENERATOR_DEFAULT = engine.TrainConfig(), engine.GeneratorTrainConfig()
_WIDTHS = ("widths", "encoder_widths", "decoder_widths")


def _names(recipe: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(recipe)]


_SETTINGS = [*dict.fromkeys(_names(engine.TrainConfig) + _names(engine.GeneratorTrainConfig))]


def _option(text: str, name: str | None = None) -> Any:
    """An option that is ``None`` unless it is given: what a file says then stands."""
    default = getattr(_DEFAULT, name) if name else None
    return typer.Option(help=text if default is None else f"{text} Default: {default}.")


def _generator_option(text: str, name: str | None = None) -> Any:
    """The same, of the generator alone."""
    default = getattr(_GENERATOR_DEFAULT, name) if name else None
    told = text if default is None else f"{text} Default: {default}."
    return typer.Option(help=told, rich_help_panel=f"Of --model {GENERATOR} alone")


@command()
def train(
    context: typer.Context,
    model: Annotated[
        str | None, _option(f"Network: {', '.join(PRESETS)}, or {GENERATOR}.", "model")
    ] = None,
    widths: Annotated[
        str | None, _option("Filters of each stage, instead of the network's: 32,64,128.")
    ] = None,
    convolutions: Annotated[int | None, _option("Of each stage, the first one pooled.")] = None,
    kernel_size: Annotated[int | None, _option("Of the convolutions: 1, 3, 5 or 7.")] = None,
    activation: Annotated[str | None, _option(f"{', '.join(ACTIVATIONS)}.")] = None,
    pool: Annotated[str | None, _option(f"{' or '.join(POOLS)}.")] = None,
    norm: Annotated[str | None, _option(f"{' or '.join(NORMS)}.")] = None,
    dropout: Annotated[float | None, _option("Share of features dropped.")] = None,
    data: Annotated[
        str | None,
        _option(f"{SUBSET} (in the package, the default), {FULL}, or a folder of class folders."),
    ] = None,
    image_size: Annotated[
        int | None, _option("Of a folder's pictures, pixels. Default: 32.")
    ] = None,
    folder: OutOption = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, named as these options with _.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run folder to go on with; it has the settings.")
    ] = None,
    find: Annotated[
        bool, typer.Option("--find-lr", help="Suggest a learning rate instead of training.")
    ] = False,
    seed: Annotated[int | None, _option("Of split, weights and order.", "seed")] = None,
    epochs: Annotated[
        int | None, _option("Passes over the pictures. Default: by model and pictures.")
    ] = None,
    batch_size: Annotated[
        int | None, _option("Pictures in a step, over all processes.", "batch_size")
    ] = None,
    accumulate: Annotated[
        int | None, _option("Parts in which a batch is computed, to save memory.", "accumulate")
    ] = None,
    optimizer: Annotated[str | None, _option("muon, adamw or sgd.", "optimizer")] = None,
    lr: Annotated[
        float | None, _option("Peak learning rate. Default: by network and optimizer.")
    ] = None,
    weight_decay: Annotated[
        float | None, _option("Of the optimizer. Default: 0.05, of sgd 0.0005.")
    ] = None,
    warmup: Annotated[
        float | None, _option("Share of the steps in which the rate rises.", "warmup")
    ] = None,
    label_smoothing: Annotated[float | None, _option("Of the loss.", "label_smoothing")] = None,
    shift: Annotated[
        int | None, _option("Largest random shift, pixels. Default: 1, in up to 5 epochs 0.")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the pictures.")
    ] = None,
    cutout: Annotated[
        int | None, _option("Side of a square that is erased, pixels.", "cutout")
    ] = None,
    mixup: Annotated[float | None, _option("Alpha of MixUp, 0 is off.", "mixup")] = None,
    cutmix: Annotated[float | None, _option("Alpha of CutMix, 0 is off.", "cutmix")] = None,
    ema: Annotated[
        float | None, _option("Decay of the weights' moving average, 0 is off.", "ema")
    ] = None,
    amp: Annotated[str | None, _option("none, or bf16 for mixed precision.", "amp")] = None,
    patience: Annotated[
        int | None, _option("Stop after so many epochs without a better accuracy.", "patience")
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic", help="The same bits in every run, on CUDA too."
        ),
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Train through torch.compile.")
    ] = None,
    layers: Annotated[
        str | None,
        _option("imgfast, or stock: the same network in stock PyTorch.", "layers"),
    ] = None,
    device: Annotated[str | None, _option("auto, cpu or cuda.", "device")] = None,
    encoder_widths: Annotated[
        str | None, _generator_option("Filters from the picture to the codes: 32,64,64.")
    ] = None,
    decoder_widths: Annotated[
        str | None, _generator_option("Filters from the codes to the picture: 96,48,24.")
    ] = None,
    codes: Annotated[int | None, _generator_option("In the book. Default: 512.")] = None,
    code_size: Annotated[int | None, _generator_option("Numbers in a code. Default: 16.")] = None,
    prior_width: Annotated[
        int | None, _generator_option("Of the transformer. Default: 96.")
    ] = None,
    prior_depth: Annotated[int | None, _generator_option("Its blocks. Default: 5.")] = None,
    prior_heads: Annotated[
        int | None, _generator_option("Of its attention. Default: one for 32 numbers.")
    ] = None,
    prior_threshold: Annotated[
        float | None,
        _generator_option("What its hidden numbers must exceed to count. Default: 0.5."),
    ] = None,
    tokenizer_epochs: Annotated[
        int | None, _generator_option("Of the first stage, instead of --epochs.")
    ] = None,
    prior_epochs: Annotated[
        int | None, _generator_option("Of the second stage, instead of --epochs.")
    ] = None,
    feature_epochs: Annotated[
        int | None,
        _generator_option("Of the classifier that judges likeness.", "feature_epochs"),
    ] = None,
    prior_batch_size: Annotated[
        int | None, _generator_option("Pictures in a step of the second stage.", "prior_batch_size")
    ] = None,
    prior_lr: Annotated[
        float | None, _generator_option("Peak learning rate of the second stage.", "prior_lr")
    ] = None,
    l1: Annotated[
        float | None, _generator_option("Weight of the pixels' absolute error.", "l1")
    ] = None,
    perceptual: Annotated[
        float | None, _generator_option("Weight of the features' distance, 0 is off.", "perceptual")
    ] = None,
    commitment: Annotated[
        float | None,
        _generator_option("Weight of the distance of latents from codes.", "commitment"),
    ] = None,
    drop_class: Annotated[
        float | None,
        _generator_option("Share of pictures whose class is hidden, for guidance.", "drop_class"),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier, or a generator; 20% of each class are held out and judge it.

    Under torchrun every process takes its share of each batch of a classifier's.
    """
    names = (*_SETTINGS, "data", "image_size")
    given = {name: context.params[name] for name in names if context.params[name] is not None}
    for name in _WIDTHS:
        if name in given:
            given[name] = _numbers(name, given[name])
    if resume is not None:
        if given or config or folder or find or overwrite:
            raise typer.BadParameter("--resume takes every setting from the run, give it alone")
        run = engine.RunFolder.existing(resume)
        values = run.settings()
        recipe = _recipe(values.get("model"))
        network = values.get("classifier") or values["generator"]
        values["image_size"] = network["image_size"]
        settings = recipe.from_dict(_only(values, _names(recipe)))
    else:
        values = {}
        if config:
            values = read_toml(config, ("data", "image_size"), lambda told: _recipe(model or told))
        values |= given
        recipe = _recipe(values.get("model"))
        _check_belonging(given, recipe)
        if find and recipe is engine.GeneratorTrainConfig:
            raise typer.BadParameter(f"--find-lr does not belong to --model {GENERATOR}")
        try:
            settings = recipe.from_dict(_only(values, _names(recipe)))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        stem = f"{settings.model}-{settings.seed}"
        name = engine.RunFolder.unused(f"{stem}-lr" if find else stem)
        run = engine.RunFolder(folder or name, overwrite)
    source, size = values.get("data", SUBSET), values.get("image_size")
    if find:
        _show_lr(source, size, settings, run, as_json)
        return
    if recipe is engine.GeneratorTrainConfig:
        show_generator(source, size, settings, run, resume is not None, as_json)
        return
    result, skipped = train_on(source, size, settings, run, resume is not None)
    if not distributed.current().is_first:
        return
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
                **dataclasses.asdict(result.config),
            }
        )
    else:
        console.show_evaluation(result.evaluation)
        console.line(f"{result.train_seconds:.1f} s of training, checkpoint {run.last}")


def train_on(
    data: str,
    image_size: int | None,
    config: engine.TrainConfig,
    run: engine.RunFolder,
    resume: bool = False,
) -> tuple[engine.TrainResult, int]:
    """Load and train under progress bars; the result and the number of files skipped."""
    if not distributed.current().is_first:  # another process shows it
        return engine.train(load_data(data, image_size), config, run, resume=resume), 0
    with console.progress("reading") as on_picture:
        pictures = load_data(data, image_size, on_picture=on_picture)
    console.report_skipped(pictures.skipped)
    with console.training_progress() as on_step:
        result = engine.train(pictures, config, run, on_step, resume)
    return result, len(pictures.skipped)


def _show_lr(
    data: str, size: int | None, config: engine.TrainConfig, run: engine.RunFolder, as_json: bool
) -> None:
    """The range test, its suggestion and its curve."""
    with console.progress("reading") as on_picture:
        pictures = load_data(data, size, on_picture=on_picture)
    console.report_skipped(pictures.skipped)
    with console.training_progress() as on_step:
        found = find_lr(pictures, config, run.lr_curve, on_step)
    if as_json:
        console.print_json({"lr": found.suggestion, "picture": str(run.lr_curve)})
    else:
        console.line(f"suggested --lr {found.suggestion:.1e}, curve {run.lr_curve}")


def _recipe(model: Any) -> type[engine.TrainConfig] | type[engine.GeneratorTrainConfig]:
    """The class of the settings for a model's name."""
    return engine.GeneratorTrainConfig if model == GENERATOR else engine.TrainConfig


def _check_belonging(given: dict[str, Any], recipe: Any) -> None:
    """Every option on the command line is one of the model that is to be trained."""
    known = {*_names(recipe), "data", "image_size"}
    foreign = [f"--{name.replace('_', '-')}" for name in given if name not in known]
    if foreign:
        generator = recipe is engine.GeneratorTrainConfig
        whose = f"--model {GENERATOR}" if generator else "a classifier"
        other = "a classifier's" if generator else f"--model {GENERATOR}'s"
        raise typer.BadParameter(f"{', '.join(foreign)}: {other}, does not belong to {whose}")


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """``32,64,128`` as numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        name = name.replace("_", "-")
        raise typer.BadParameter(f"{name} must be like 32,64,128, got {text!r}") from None


def _only(values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}
