"""The picture classifier: stages of convolution, normalisation, activation, pooling, then a head.

``tiny`` is (convolution 3x3 + bias + ReLU + max pooling 2x2) three times, with 32, 64 and 128
filters; each stage is one fused :class:`imgfast.nn.ConvReLUPool2d`. ``base`` and ``wide`` have two
convolutions a stage, the first of which is pooled, and batch norm between pooling and activation,
where it has a quarter of the values to read (as in Keller Jordan, 2024, arXiv:2404.00498). Its
scale stays 1, which costs a ReLU network nothing: the next convolution can scale. So it never
turns a maximum into a minimum, and :meth:`Classifier.fold` can move it into the convolutions.

The twin in stock layers has the same ``state_dict`` keys: weights move freely between the two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from imgfast.models.configuration import check, from_plain
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
# Those that keep the order of numbers, so that they may come before or after a maximum.
MONOTONE = ("relu", "leaky_relu", "sigmoid", "tanh")
POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
NORMS = ("none", "batch")
LAYERS = ("imgfast", "stock")
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"widths": (32, 64, 128)},
    "base": {"widths": (32, 64, 128), "convolutions": 2, "norm": "batch"},
    "wide": {"widths": (64, 128, 256), "convolutions": 2, "norm": "batch"},
}

# A configuration can come from a file that somebody else wrote: bounds on what it makes us build.
_MAX_SIZE, _MAX_STAGES, _MAX_CONVOLUTIONS = 4096, 12, 8
_MAX_WIDTH, _MAX_CLASSES = 8192, 10_000

_check = functools.partial(check, "classifier")


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that determines the network and what goes into it.

    Args:
        classes: name of each class, in the order of the outputs.
        channels: channels of a picture, 1 (grey) or 3 (red, green, blue).
        image_size: height and width of a picture in pixels.
        mean, std: per channel; pictures scaled to [0, 1] are normalised by them.
        widths: filters of each stage; every stage halves height and width.
        convolutions: of each stage; the first one is pooled.
        kernel_size: of the convolutions, odd; padding keeps the size.
        activation: key of ``ACTIVATIONS``.
        pool: ``max`` or ``avg``, 2x2.
        norm: ``none``: the convolutions have a bias; ``batch``: batch norm of scale 1 instead.
        dropout: share of the features before the linear layer that a training step drops.

    Raises:
        ValueError: a value outside its range.
    """

    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    widths: tuple[int, ...] = (32, 64, 128)
    convolutions: int = 1
    kernel_size: int = 3
    activation: str = "relu"
    pool: str = "max"
    norm: str = "none"
    dropout: float = 0.0

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
        _check(
            1 <= self.convolutions <= _MAX_CONVOLUTIONS,
            "convolutions",
            f"1 to {_MAX_CONVOLUTIONS} a stage",
            self.convolutions,
        )
        _check(self.kernel_size in (1, 3, 5, 7), "kernel_size", "1, 3, 5 or 7", self.kernel_size)
        for name, known in (("activation", ACTIVATIONS), ("pool", POOLS), ("norm", NORMS)):
            _check(getattr(self, name) in known, name, f"one of {[*known]}", getattr(self, name))
        _check(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)
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
        return from_plain(ClassifierConfig, "classifier", values)


class Classifier(nn.Module):
    """``linear(dropout(flatten(stages(x))))``: logits ``[N, classes]`` of float ``[N, C, S, S]``.

    A stage is, with one convolution and no norm, ``pool(activation(convolution))``. With batch
    norm its first convolution is ``activation(norm(pool(convolution)))``; the others are not
    pooled.

    Args:
        config: the network.
        layers: ``imgfast`` for the fused layers, ``stock`` for the twin of ``nn.Conv2d``, the
            activation's module and the pool's.
    """

    def __init__(self, config: ClassifierConfig, layers: str = "imgfast") -> None:
        super().__init__()
        if layers not in LAYERS:
            raise ValueError(f"classifier: layers must be one of {LAYERS}, got {layers!r}")
        self.config = config
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        channels, size = config.channels, config.image_size
        for stage, width in enumerate(config.widths, start=1):
            for index in range(config.convolutions):
                name = f"{stage}" if config.convolutions == 1 else f"{stage}_{index + 1}"
                block = _fused_block if layers == "imgfast" else _stock_block
                for part, module in block(config, channels, width, pooled=index == 0):
                    stages[f"{part}{name}"] = module
                channels = width
            size //= 2
        self.stages = nn.Sequential(stages)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(channels * size * size, len(config.classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.features(x)))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """``flatten(stages(x))``, what the last layer sees: ``[N, head.in_features]``."""
        return self.stages(x).flatten(1)

    @torch.no_grad()
    def fold(self, layers: str = "imgfast") -> Classifier:
        """A network without norm that computes the same in eval mode.

        Batch norm's scale and shift move into the convolution before it:
        ``weight s``, ``bias = shift - s mean`` with ``s = scale / sqrt(var + eps)``. Then norm,
        activation and maximum may change places, since s > 0 and the activation is monotone.

        Args:
            layers: kind of layers of the result.

        Returns:
            ``self`` where there is nothing to fold, or where the places matter: an average pool,
            GELU, SiLU, or a scale that is not positive.
        """
        config = self.config
        exact = config.pool == "max" and config.activation in MONOTONE
        norms = [module for module in self.stages if isinstance(module, nn.BatchNorm2d)]
        if not norms or not exact or not all(bool((norm.weight > 0).all()) for norm in norms):
            return self
        folded = Classifier(dataclasses.replace(config, norm="none"), layers)
        folded.to(
            self.head.weight.device, self.head.weight.dtype, memory_format=memory_format(self)
        )
        convolutions = [module for module in self.stages if isinstance(module, nn.Conv2d)]
        targets = [module for module in folded.stages if isinstance(module, nn.Conv2d)]
        for source, norm, target in zip(convolutions, norms, targets, strict=True):
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            target.weight.copy_(source.weight * scale.view(-1, 1, 1, 1))
            target.bias.copy_(norm.bias - norm.running_mean * scale)
        folded.head.load_state_dict(self.head.state_dict())
        return folded.eval()


Parts = list[tuple[str, nn.Module]]


def _fused_block(config: ClassifierConfig, channels: int, width: int, pooled: bool) -> Parts:
    """One convolution with what belongs to it, in fused layers, by name."""
    plain = config.norm == "none"
    convolution = ConvReLUPool2d(
        channels,
        width,
        config.kernel_size,
        padding=config.kernel_size // 2,
        bias=plain,
        activation=config.activation if plain else "none",
        pool=config.pool if pooled else "none",
        pool_size=2,
    )
    return [("conv", convolution)] if plain else [("conv", convolution), *_normed(config, width)]


def _stock_block(config: ClassifierConfig, channels: int, width: int, pooled: bool) -> Parts:
    """The same in stock layers; the keys of what has parameters are the same."""
    plain = config.norm == "none"
    padding = config.kernel_size // 2
    convolution = nn.Conv2d(channels, width, config.kernel_size, padding=padding, bias=plain)
    parts: Parts = [("conv", convolution)]
    pool: Parts = [("pool", POOLS[config.pool](2))] if pooled else []
    if plain:
        return [*parts, (config.activation, ACTIVATIONS[config.activation]()), *pool]
    return [*parts, *pool, *_normed(config, width)]


def _normed(config: ClassifierConfig, width: int) -> Parts:
    norm = nn.BatchNorm2d(width)
    norm.weight.requires_grad_(False)  # stays 1
    return [("norm", norm), (config.activation, ACTIVATIONS[config.activation]())]


def memory_format(model: nn.Module) -> torch.memory_format:
    """The layout of a model's filters."""
    filters = next(p for p in model.parameters() if p.dim() == 4)
    last = filters.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def classifier_config(
    model: str,
    classes: tuple[str, ...],
    channels: int,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    **changes: Any,
) -> ClassifierConfig:
    """The configuration of a preset for given pictures.

    Args:
        model: the preset.
        classes, channels, image_size, mean, std: of the pictures.
        changes: fields of :class:`ClassifierConfig` that differ from the preset's.

    Raises:
        ValueError: no preset of that name, or a value outside its range.
    """
    if model not in PRESETS:
        raise ValueError(f"model must be one of {', '.join(PRESETS)}, got {model!r}")
    network = {**PRESETS[model], **changes}
    return ClassifierConfig(classes, channels, image_size, mean, std, **network)


def build_classifier(
    config: ClassifierConfig, layers: str = "imgfast", seed: int = 0
) -> Classifier:
    """A new classifier; the same seed gives the same weights in either kind of layers.

    The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(config, layers)
