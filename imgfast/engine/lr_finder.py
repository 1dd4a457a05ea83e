"""The learning-rate range test: the loss while the rate grows exponentially, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from imgfast.data import ImageSet, split
from imgfast.engine import distributed
from imgfast.engine.curves import save_lr_curve
from imgfast.engine.train import random_state, resolve_device
from imgfast.engine.train_config import TrainConfig
from imgfast.engine.training_step import TrainingStep
from imgfast.models import classifier_config

_SMOOTHING = 0.95  # of the loss, which jumps from batch to batch
_DIVERGED = 4.0  # times the lowest loss: the rest of the ramp tells nothing


@dataclass(frozen=True)
class LrSearch:
    """What the range test saw.

    Args:
        rates: learning rate of every step.
        losses: smoothed training loss after it.
        suggestion: a peak for the one-cycle schedule, see :func:`suggest`.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def find_lr(
    data: ImageSet,
    config: TrainConfig,
    picture: Path | None = None,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 150,
) -> LrSearch:
    """Train a new model while the rate grows from ``low`` to ``high``, a factor a step.

    Args:
        data: the whole set; its training part is used.
        config: the recipe; its own learning rate and epochs have no say.
        picture: PNG file for the curve.
        on_step: called with (step, all steps, {}) after every step.
        low, high: ends of the ramp.
        steps: its length; it ends early once the loss is four times the lowest one.

    Raises:
        ValueError: several processes.

    Source: L. Smith, "Cyclical learning rates", 2017, arXiv:1506.01186, section 3.3.
    """
    if distributed.current().size > 1:
        raise ValueError("train: --find-lr runs in one process; start it without torchrun")
    device = resolve_device(config.device)
    shape = data.images.shape
    model_config = classifier_config(
        config.model, data.classes, shape[1], shape[2], data.mean, data.std, **config.network
    )
    rates: list[float] = []
    losses: list[float] = []
    with random_state(config, device):
        train_set = split(data, config.seed)[0]
        step = TrainingStep(config, model_config, train_set, device, distributed.Processes())
        average = 0.0
        for number, batch in enumerate(_batches(step, steps)):
            rate = low * (high / low) ** (number / max(steps - 1, 1))
            loss = step.run(batch, rate).item()
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            smoothed = average / (1 - _SMOOTHING ** (number + 1))  # as if it began at the mean
            if not math.isfinite(smoothed) or (losses and smoothed > _DIVERGED * min(losses)):
                break
            rates.append(rate)
            losses.append(smoothed)
            if on_step is not None:
                on_step(number + 1, steps, {})
    suggestion = suggest(rates, losses)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        save_lr_curve(picture, rates, losses, suggestion)
    return LrSearch(tuple(rates), tuple(losses), suggestion)


def suggest(rates: list[float], losses: list[float]) -> float:
    """The rate at which the loss falls steepest over the logarithm of the rate.

    The lowest loss itself lies where training is about to diverge; where it falls steepest there
    is room in both directions. Beyond the lowest loss nothing counts: there it also falls from the
    peaks that it has risen to.
    """
    if len(rates) < 3:
        return rates[0]
    lowest = losses.index(min(losses))
    slopes = torch.gradient(
        torch.tensor(losses, dtype=torch.float64),
        spacing=(torch.tensor(rates, dtype=torch.float64).log(),),
    )[0]
    return rates[int(slopes[: lowest + 1].argmin())]


def _batches(step: TrainingStep, count: int) -> Iterator[torch.Tensor]:
    """That many batches, over as many epochs as it takes."""
    epoch = 0
    while count > 0:
        epoch += 1
        for batch in step.begin_epoch(epoch)[:count]:
            count -= 1
            yield batch
