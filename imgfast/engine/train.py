"""Train a classifier: AdamW, one learning-rate cycle, random shifts and flips, label smoothing.

Pictures stay in memory as uint8 and every batch is gathered, augmented and normalised at once.
One seed fixes the split, the initial weights, the order and the augmentation, so that at a fixed
number of threads the same seed gives the same weights, bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import imgfast.nn
from imgfast.data import Augment, ImageSet, normalise, split
from imgfast.engine.checkpoint import save_checkpoint
from imgfast.engine.evaluate import Evaluation, evaluate
from imgfast.engine.run_folder import RunFolder
from imgfast.models import LAYERS, PRESETS, Classifier, build_classifier, classifier_config


class TrainError(RuntimeError):
    """Training that cannot go on: what happened, and the remedy."""


OnStep = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the recipe for ``tiny`` on Fashion-MNIST.

    Args:
        model: a preset of :mod:`imgfast.models`.
        seed: of the split, the weights, the order and the augmentation.
        epochs, batch_size, lr, weight_decay: of AdamW; ``lr`` is the peak of the cycle.
        warmup: share of the steps in which the learning rate rises.
        label_smoothing: of the cross-entropy, in [0, 1].
        shift, flip: augmentation, see :class:`imgfast.data.Augment`.
        layers: ``imgfast``, or ``stock`` for the same network and loss in stock PyTorch.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        ValueError: a value outside its range.
    """

    model: str = "tiny"
    seed: int = 0
    epochs: int = 20
    batch_size: int = 128
    lr: float = 5e-3
    weight_decay: float = 0.05
    warmup: float = 0.25
    label_smoothing: float = 0.05
    shift: int = 1
    flip: bool = True
    layers: str = "imgfast"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, low, high in (
            ("seed", 0, 2**63 - 1),
            ("epochs", 1, 100_000),
            ("batch_size", 1, 1 << 20),
            ("lr", 1e-8, 10.0),
            ("weight_decay", 0.0, 10.0),
            ("warmup", 0.01, 0.99),
            ("label_smoothing", 0.0, 1.0),
            ("shift", 0, 64),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"train: {name} must lie in [{low}, {high}], got {value}")
        for name, allowed in (
            ("model", tuple(PRESETS)),
            ("layers", LAYERS),
            ("device", ("auto", "cpu", "cuda")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"train: {name} must be one of {', '.join(allowed)}, "
                    f"got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    Args:
        model: after the last epoch.
        evaluation: of that model on the held-out pictures.
        held_out: these pictures.
        train_seconds: wall time of the training steps, without data loading and evaluation.
        best_accuracy: of the best epoch; chosen on the held-out pictures, hence flattering.
    """

    model: Classifier
    evaluation: Evaluation
    held_out: ImageSet
    train_seconds: float
    best_accuracy: float


def train(
    data: ImageSet, config: TrainConfig, run: RunFolder, on_step: OnStep | None = None
) -> TrainResult:
    """Train a classifier on a set's training part and judge it on the held-out part.

    Args:
        data: the whole set; it is split here, by ``config.seed``.
        config: the recipe.
        run: where checkpoints and metrics go; ``last`` is written after every epoch.
        on_step: called with (step, all steps, latest figures) after every step.

    Raises:
        DataError: the set cannot be split.
        ValueError: a device that is not there, or pictures that do not fit the model.
        TrainError: the loss is not finite any more; checkpoints of earlier epochs stay.
    """
    device = resolve_device(config.device)
    shape = data.images.shape
    model_config = classifier_config(
        config.model, data.classes, shape[1], shape[2], data.mean, data.std
    )
    train_set, held_out = split(data, config.seed)
    batch_size = min(config.batch_size, len(train_set))
    model = build_classifier(model_config, config.layers, config.seed)
    model.to(device, memory_format=torch.channels_last)
    library = imgfast.nn if config.layers == "imgfast" else nn
    criterion = library.CrossEntropyLoss(label_smoothing=config.label_smoothing)

    # The last batch of an epoch is dropped unless it is full: every step weighs the same, and
    # the pictures left out are others in each epoch.
    steps_per_epoch = len(train_set) // batch_size
    steps = config.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _cycle((step + 0.5) / steps, config.warmup)
    )
    generator = torch.Generator().manual_seed(config.seed)
    augment = Augment(train_set.images.to(device), config.shift, config.flip)
    labels = train_set.labels.to(device)
    summary = {**dataclasses.asdict(config), "data": data.name, "fingerprint": data.fingerprint()}
    run.start({**summary, "classifier": model_config.to_dict()})

    figures: dict[str, float] = {}
    best, step, seconds = -1.0, 0, 0.0
    for epoch in range(1, config.epochs + 1):
        model.train()
        started = time.perf_counter()
        order = torch.randperm(len(train_set), generator=generator)
        total = torch.zeros((), device=device)
        for batch in order.split(batch_size)[:steps_per_epoch]:
            x = normalise(augment(batch, generator), data.mean, data.std)
            loss = criterion(
                model(x.contiguous(memory_format=torch.channels_last)), labels[batch.to(device)]
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
            step += 1
            if on_step is not None:
                on_step(step, steps, figures)
        mean_loss = total.item() / steps_per_epoch  # waits for the device
        seconds += time.perf_counter() - started
        if not math.isfinite(mean_loss):
            raise TrainError(f"train: loss became {mean_loss} in epoch {epoch}; use a lower --lr")
        evaluation = evaluate(model, held_out)
        figures = {"epoch": epoch, "loss": mean_loss, "accuracy": evaluation.accuracy}
        progress = {**figures, "macro_recall": evaluation.macro_recall, "train_seconds": seconds}
        run.log(progress)
        saved = {**summary, **progress}
        save_checkpoint(run.last, model, saved)
        if evaluation.accuracy > best:
            best = evaluation.accuracy
            save_checkpoint(run.best, model, saved)
    return TrainResult(model, evaluation, held_out, seconds, best)


def _cycle(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: a linear rise, then half a cosine down to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where torch sees a device, else the CPU."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device cuda: torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if name != "cpu" and available else "cpu")
