"""The picture classifier: stages of convolution + activation + pooling, then one linear layer.

``tiny`` is (convolution 3x3 + bias + ReLU + max pooling 2x2) three times, with 32, 64 and 128
filters; each stage is one fused :class:`imgfast.nn.ConvReLUPool2d`. The twin in stock layers has
the same ``state_dict`` keys, so that weights move freely between the two.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from imgfast.nn import ConvReLUPool2d

# The activations a configuration may name, as stock modules with the fused layer's defaults.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
LAYERS = ("imgfast", "stock")
PRESETS: dict[str, dict[str, Any]] = {"tiny": {"widths": (32, 64, 128)}}

# A configuration can come from a file that somebody else wrote: bounds on what it makes us build.
_MAX_SIZE, _MAX_STAGES, _MAX_WIDTH, _MAX_CLASSES = 4096, 12, 8192, 10_000


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that determines the network and what goes into it.

    Args:
        classes: name of each class, in the order of the outputs.
        channels: channels of a picture, 1 (grey) or 3 (red, green, blue).
        image_size: height and width of a picture in pixels.
        mean, std: per channel; pictures scaled to [0, 1] are normalised by them.
        widths: filters of each stage.
        kernel_size: of the convolutions, odd; padding keeps the size.
        activation: key of ``ACTIVATIONS``.

    Raises:
        ValueError: a value outside its range.
    """

    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    widths: tuple[int, ...] = (32, 64, 128)
    kernel_size: int = 3
    activation: str = "relu"

    def __post_init__(self) -> None:
        _check(2 <= len(self.classes) <= _MAX_CLASSES, "classes", "2 to 10000 names", self.classes)
        _check(len(set(self.classes)) == len(self.classes), "classes", "distinct", self.classes)
        _check(self.channels in (1, 3), "channels", "1 or 3", self.channels)
        _check(1 <= len(self.widths) <= _MAX_STAGES, "widths", "1 to 12 stages", self.widths)
        _check(
            all(1 <= width <= _MAX_WIDTH for width in self.widths),
            "widths",
            "1 to 8192 filters each",
            self.widths,
        )
        _check(
            2 ** len(self.widths) <= self.image_size <= _MAX_SIZE,
            "image_size",
            f"{2 ** len(self.widths)} to {_MAX_SIZE} for {len(self.widths)} poolings",
            self.image_size,
        )
        _check(self.kernel_size in (1, 3, 5, 7), "kernel_size", "1, 3, 5 or 7", self.kernel_size)
        _check(
            self.activation in ACTIVATIONS,
            "activation",
            f"one of {[*ACTIVATIONS]}",
            self.activation,
        )
        for name, values in (("mean", self.mean), ("std", self.std)):
            _check(len(values) == self.channels, name, f"{self.channels} numbers", values)
            _check(all(abs(value) <= 1e3 for value in values), name, "finite", values)
        _check(all(value > 1e-6 for value in self.std), "std", "positive", self.std)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ClassifierConfig:
        """From what :meth:`to_dict` gave and JSON carried, every type checked.

        Raises:
            ValueError: a key is missing or unknown, or a value has the wrong type or range.
        """
        if not isinstance(values, dict):
            raise ValueError(
                f"classifier: must be a table of settings, got {type(values).__name__}"
            )
        known = {field.name: str(field.type) for field in dataclasses.fields(ClassifierConfig)}
        if set(values) != set(known):
            different = sorted(set(values) ^ set(known))
            raise ValueError(f"classifier: settings must be {sorted(known)}, differ in {different}")
        return ClassifierConfig(**{key: _typed(key, known[key], values[key]) for key in known})


class Classifier(nn.Module):
    """``linear(flatten(stages(x)))``: logits ``[N, classes]`` of float ``[N, C, S, S]``.

    Args:
        config: the network.
        layers: ``imgfast`` for the fused layers, ``stock`` for the twin of ``nn.Conv2d``, the
            activation's module and ``nn.MaxPool2d``.
    """

    def __init__(self, config: ClassifierConfig, layers: str = "imgfast") -> None:
        super().__init__()
        if layers not in LAYERS:
            raise ValueError(f"classifier: layers must be one of {LAYERS}, got {layers!r}")
        self.config = config
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        channels, size = config.channels, config.image_size
        for number, width in enumerate(config.widths, start=1):
            shape = (channels, width, config.kernel_size)
            padding = config.kernel_size // 2
            if layers == "imgfast":
                stages[f"conv{number}"] = ConvReLUPool2d(
                    *shape, padding=padding, activation=config.activation, pool="max", pool_size=2
                )
            else:
                stages[f"conv{number}"] = nn.Conv2d(*shape, padding=padding)
                stages[f"{config.activation}{number}"] = ACTIVATIONS[config.activation]()
                stages[f"pool{number}"] = nn.MaxPool2d(2)
            channels, size = width, size // 2
        self.stages = nn.Sequential(stages)
        self.head = nn.Linear(channels * size * size, len(config.classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(x).flatten(1))


def classifier_config(
    model: str,
    classes: tuple[str, ...],
    channels: int,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ClassifierConfig:
    """The configuration of a preset for given pictures.

    Raises:
        ValueError: no preset of that name.
    """
    if model not in PRESETS:
        raise ValueError(f"model must be one of {', '.join(PRESETS)}, got {model!r}")
    return ClassifierConfig(classes, channels, image_size, mean, std, **PRESETS[model])


def build_classifier(
    config: ClassifierConfig, layers: str = "imgfast", seed: int = 0
) -> Classifier:
    """A new classifier; the same seed gives the same weights in either kind of layers.

    The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(config, layers)


def _check(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        shown = repr(value)
        raise ValueError(f"classifier: {name} must be {rule}, got {shown[:100]}")


def _typed(name: str, kind: str, value: Any) -> Any:
    """``value`` from JSON as the annotated type of a field."""
    scalar = {"int": int, "str": str, "float": (int, float)}
    if kind.startswith("tuple["):
        item = scalar[kind.removeprefix("tuple[").split(",")[0]]
        if isinstance(value, (list, tuple)) and all(type(v) in _as_tuple(item) for v in value):
            return tuple(value)
    elif type(value) in _as_tuple(scalar[kind]):
        return value
    raise ValueError(f"classifier: {name} must be {kind}, got {str(value)[:100]!r}")


def _as_tuple(types: type | tuple[type, ...]) -> tuple[type, ...]:
    return types if isinstance(types, tuple) else (types,)
