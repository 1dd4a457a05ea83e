"""The recipe of a generator's training run: every setting, its default and its range."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from imgfast.engine.train_config import (
    check_choices,
    check_names,
    check_ranges,
    check_types,
    epochs_showing,
)
from imgfast.models import LAYERS

NAME = "generator"
GENERATOR_NETWORK = (
    "encoder_widths",
    "decoder_widths",
    "codes",
    "code_size",
    "prior_width",
    "prior_depth",
    "prior_heads",
    "prior_threshold",
)
# How many pictures a stage is shown where no epochs are given, its fewest epochs and its most.
_SHOWN = {"tokenizer_epochs": (120_000, 1, 60), "prior_epochs": (60_000, 2, 20)}


@dataclass(frozen=True)
class GeneratorTrainConfig:
    """How to train a generator. The defaults are the recipe for Fashion-MNIST.

    A run has three stages, each of which passes over the training pictures for its own number of
    epochs: a small classifier whose features tell how alike two pictures look, the tokenizer, and
    the prior over its codes.

    Args:
        model: ``generator``.
        encoder_widths, decoder_widths, codes, code_size, prior_width, prior_depth, prior_heads,
            prior_threshold: of the network where they are not to be the defaults, see
            :class:`imgfast.models.GeneratorConfig`.
        seed: of the split, the weights, the order, what is dropped and revived.
        epochs: passes over the pictures in the stages of tokenizer and prior, each.
        tokenizer_epochs, prior_epochs: of one stage where it is not to be ``epochs``. Without any,
            :meth:`resolved` takes 2 and 2 for 60,000 pictures, and for fewer pictures more.
        feature_epochs: of the classifier of features. Without ``perceptual`` there is none.
        batch_size, prior_batch_size: pictures in a step, and in one of the prior's stage.
        optimizer: ``muon`` for convolutions of the tokenizer and matrices of the
            prior's blocks, with AdamW for the rest; see :mod:`imgfast.engine.muon`.
        lr, prior_lr: peaks of the learning-rate cycles.
        weight_decay: of the matrices of the prior's blocks.
        warmup: share of a stage's steps in which the learning rate rises.
        l1: weight of the absolute error of pixels beside the squared one.
        perceptual: weight of the distance of features, see
            :class:`imgfast.engine.generation.perceptual.PerceptualLoss`; 0 is off.
        commitment: weight of the distance of latents from their codes.
        drop_class: share of the pictures whose class the prior does not see, for guidance.
        ema: decay of the moving averages of the weights, 0 is off. With it, the averages are what
            is judged and saved.
        amp: ``none``, or ``bf16`` for bfloat16 where :class:`torch.autocast` says so.
        deterministic: only algorithms that give the same bits in every run, on CUDA too.
        layers: ``imgfast``, or ``stock`` for the same networks, losses and optimizers in stock
            PyTorch.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        ValueError: a value of the wrong type or outside its range.
    """

    model: str = NAME
    encoder_widths: tuple[int, ...] | None = None
    decoder_widths: tuple[int, ...] | None = None
    codes: int | None = None
    code_size: int | None = None
    prior_width: int | None = None
    prior_depth: int | None = None
    prior_heads: int | None = None
    prior_threshold: float | None = None
    seed: int = 0
    epochs: int | None = None
    tokenizer_epochs: int | None = None
    prior_epochs: int | None = None
    feature_epochs: int = 1
    batch_size: int = 64
    prior_batch_size: int = 32
    optimizer: str = "muon"
    lr: float = 3e-3
    prior_lr: float = 6e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    l1: float = 0.5
    perceptual: float = 1.0
    commitment: float = 0.25
    drop_class: float = 0.1
    ema: float = 0.995
    amp: str = "none"
    deterministic: bool = False
    layers: str = "imgfast"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("encoder_widths", "decoder_widths"):
            if isinstance(getattr(self, name), list):  # as files have it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_types(self)
        check_choices(
            self,
            {
                "model": (NAME,),
                "optimizer": ("adamw", "muon"),
                "amp": ("none", "bf16"),
                "layers": LAYERS,
                "device": ("auto", "cpu", "cuda"),
            },
        )
        # What depends on other settings is resolved here, so that the run folder tells the value.
        for name in _SHOWN:
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.epochs)
        check_ranges(
            self,
            {
                "seed": (0, 2**63 - 1),
                **dict.fromkeys(["epochs", *_SHOWN, "feature_epochs"], (1, 100_000)),
                **dict.fromkeys(["batch_size", "prior_batch_size"], (1, 1 << 20)),
                "lr": (1e-8, 10.0),
                "prior_lr": (1e-8, 10.0),
                "weight_decay": (0.0, 10.0),
                "warmup": (0.01, 0.99),
                "l1": (0.0, 1000.0),
                "perceptual": (0.0, 1000.0),
                "commitment": (0.0, 1000.0),
                "drop_class": (0.0, 0.9),
                "ema": (0.0, 0.999999),
            },
        )

    def resolved(self, pictures: int) -> GeneratorTrainConfig:
        """The recipe for that many training pictures, with the numbers of epochs filled in."""
        epochs = {}
        for name, (shown, least, most) in _SHOWN.items():
            if getattr(self, name) is None:
                epochs[name] = max(least, epochs_showing(pictures, shown, most))
        return dataclasses.replace(self, **epochs)

    @property
    def network(self) -> dict[str, Any]:
        """What differs from the defaults, for :func:`imgfast.models.generator_config`."""
        values = {name: getattr(self, name) for name in GENERATOR_NETWORK}
        return {name: value for name, value in values.items() if value is not None}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> GeneratorTrainConfig:
        """From names and values, as a file has them; what is missing has its default.

        Raises:
            ValueError: an unknown name, or a value of the wrong type or outside its range.
        """
        check_names(values, [field.name for field in dataclasses.fields(GeneratorTrainConfig)])
        return GeneratorTrainConfig(**values)
