"""The recipe of a training run: every setting, its default, its range, and reading it from TOML."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgfast.models import LAYERS, PRESETS

# Where none are given: how many pictures are shown in all and the largest number of passes over
# them, and the peak learning rate.
_SHOWN = {"tiny": (180_000, 20), "base": (540_000, 20), "wide": (540_000, 20)}
_LR = {"muon": 5e-3, "adamw": 2e-3, "sgd": 0.05}
_TINY_ADAMW_LR = 5e-3
# SGD's decay is part of the gradient, hence much smaller.
_WEIGHT_DECAY = {"muon": 0.05, "adamw": 0.05, "sgd": 5e-4}
_FEW_EPOCHS = 5  # in which a network does not learn pictures by heart: it need not see them shifted
_OPTIMIZERS = ("adamw", "muon", "sgd")

NETWORK = ("widths", "convolutions", "kernel_size", "activation", "pool", "norm", "dropout")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the recipe for ``tiny`` on Fashion-MNIST.

    Args:
        model: a preset of :mod:`imgfast.models`.
        seed: of the split, the weights, the order and the augmentation.
        widths, convolutions, kernel_size, activation, pool, norm, dropout: of the network where it
            is not to be the preset's, see :class:`imgfast.models.ClassifierConfig`.
        epochs: passes over the training pictures. Without, :meth:`resolved` takes as many as show
            180,000 pictures, of ``base`` and ``wide`` 540,000, but at most 20.
        batch_size: pictures in a step, over all processes.
        accumulate: parts in which a batch is computed, one after the other, for less memory. The
            gradient is that of the whole batch; batch norm sees a part at a time.
        optimizer: ``muon``, ``adamw`` or ``sgd`` (Nesterov momentum 0.9), see
            :func:`imgfast.engine.optimizer.build_optimizers`.
        lr: peak of the learning-rate cycle. Default: 5e-3; of ``base`` and ``wide`` by ``adamw``
            2e-3; of ``sgd`` 0.05.
        weight_decay: default 0.05; of ``sgd``, where it is an L2 penalty, 5e-4.
        warmup: share of the steps in which the learning rate rises.
        label_smoothing: of the cross-entropy, in [0, 1].
        shift, flip, cutout: augmentation, see :class:`imgfast.data.Augment`. Without,
            :meth:`resolved` takes a ``shift`` of 1, but in up to 5 epochs of 0.
        mixup, cutmix: alpha of each, 0 is off, see :class:`imgfast.engine.mixing.Mixing`; where
            both are on, every batch takes one of the two by chance.
        ema: decay of the moving average of the weights, 0 is off. With it, the average is what is
            judged and saved.
        amp: ``none``, or ``bf16`` for bfloat16 where :class:`torch.autocast` says so.
        patience: stop after that many epochs without a better accuracy, 0 never.
        deterministic: only algorithms that give the same bits in every run, on CUDA too.
        compile: train through :func:`torch.compile`.
        layers: ``imgfast``, or ``stock`` for the same network, loss and optimizer in stock PyTorch.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        ValueError: a value of the wrong type or outside its range.
    """

    model: str = "tiny"
    widths: tuple[int, ...] | None = None
    convolutions: int | None = None
    kernel_size: int | None = None
    activation: str | None = None
    pool: str | None = None
    norm: str | None = None
    dropout: float | None = None
    seed: int = 0
    epochs: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "muon"
    lr: float | None = None
    weight_decay: float | None = None
    warmup: float = 0.25
    label_smoothing: float = 0.05
    shift: int | None = None
    flip: bool = True
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    amp: str = "none"
    patience: int = 0
    deterministic: bool = False
    compile: bool = False
    layers: str = "imgfast"
    device: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.widths, list):  # as files have it
            object.__setattr__(self, "widths", tuple(self.widths))
        check_types(self)
        check_choices(
            self,
            {
                "model": tuple(PRESETS),
                "optimizer": _OPTIMIZERS,
                "amp": ("none", "bf16"),
                "layers": LAYERS,
                "device": ("auto", "cpu", "cuda"),
            },
        )
        # What depends on other settings is resolved here, so that the run folder tells the value.
        plain = (self.model, self.optimizer) == ("tiny", "adamw")
        defaults = {
            "lr": _TINY_ADAMW_LR if plain else _LR[self.optimizer],
            "weight_decay": _WEIGHT_DECAY[self.optimizer],
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        check_ranges(
            self,
            {
                "seed": (0, 2**63 - 1),
                "epochs": (1, 100_000),
                "batch_size": (1, 1 << 20),
                "accumulate": (1, self.batch_size),
                "lr": (1e-8, 10.0),
                "weight_decay": (0.0, 10.0),
                "warmup": (0.01, 0.99),
                "label_smoothing": (0.0, 1.0),
                "shift": (0, 64),
                "cutout": (0, 4096),
                "mixup": (0.0, 100.0),
                "cutmix": (0.0, 100.0),
                "ema": (0.0, 0.999999),
                "patience": (0, 100_000),
            },
        )

    def resolved(self, pictures: int) -> TrainConfig:
        """The recipe for that many training pictures, with epochs and shift filled in."""
        epochs = self.epochs or epochs_showing(pictures, *_SHOWN[self.model])
        shift = self.shift if self.shift is not None else int(epochs > _FEW_EPOCHS)
        return dataclasses.replace(self, epochs=epochs, shift=shift)

    @property
    def network(self) -> dict[str, Any]:
        """What differs from the preset, for :func:`imgfast.models.classifier_config`."""
        values = {name: getattr(self, name) for name in NETWORK}
        return {name: value for name, value in values.items() if value is not None}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainConfig:
        """From names and values, as a file has them; what is missing has its default.

        Raises:
            ValueError: an unknown name, or a value of the wrong type or outside its range.
        """
        known = [field.name for field in dataclasses.fields(TrainConfig)]
        check_names(values, known)
        return TrainConfig(**values)


def epochs_showing(pictures: int, shown: int, most: int) -> int:
    """How many passes over ``pictures`` show about ``shown`` in all, at least 1."""
    return max(1, min(most, round(shown / pictures)))


def read_toml(
    path: str | Path,
    extra: tuple[str, ...] = (),
    recipe_of: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """The settings in a TOML file: names of a recipe, without a table around them.

    Args:
        path: the file.
        extra: names that are allowed beside those of the recipe.
        recipe_of: the recipe's class for the ``model`` that the file names, ``None`` where it names
            none. Default: :class:`TrainConfig` for all.

    Raises:
        ValueError: not TOML, an unknown name, or a value that the recipe refuses.
        OSError: the file cannot be read.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with Path(path).open("rb") as file:
            values = tomllib.load(file)
        recipe = recipe_of(values.get("model")) if recipe_of else TrainConfig
        known = [field.name for field in dataclasses.fields(recipe)]
        check_names(values, [*known, *extra])
        recipe.from_dict({name: values[name] for name in values if name in known})
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are such
        raise ValueError(f"{path}: {error}") from error
    return values


def check_names(values: dict[str, Any], known: list[str]) -> None:
    """No setting but the known ones."""
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"train: {unknown[0]!r} is no setting; choose from {', '.join(known)}")


def check_types(settings: Any) -> None:
    """Every field of a dataclass has the type of its annotation; an int may stand for a float."""
    for field in dataclasses.fields(settings):
        kind, value = str(field.type).removesuffix(" | None"), getattr(settings, field.name)
        scalars = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
        if kind == "tuple[int, ...]":
            fits = type(value) is tuple and all(type(item) is int for item in value)
        else:
            fits = type(value) in scalars[kind]
        if value is not None and not fits:
            raise ValueError(f"train: {field.name} must be of type {kind}, got {value!r}")


def check_choices(settings: Any, choices: dict[str, tuple[str, ...]]) -> None:
    """Every named field has one of its values."""
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value not in allowed:
            raise ValueError(f"train: {name} must be one of {', '.join(allowed)}, got {value!r}")


def check_ranges(settings: Any, ranges: dict[str, tuple[float, float]]) -> None:
    """Every named field lies between its bounds, which are allowed, or is left open, where ``None``
    is its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is defaults[name] is None:
            continue
        if not low <= value <= high:
            raise ValueError(f"train: {name} must lie in [{low}, {high}], got {value}")
