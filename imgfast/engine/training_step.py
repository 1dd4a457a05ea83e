"""One step of training: augment, mix, forward, loss, backward, update; and all that it needs."""

from __future__ import annotations

import hashlib
import itertools
import random
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

import imgfast.nn
from imgfast.data import Augment, ImageSet
from imgfast.engine.distributed import Processes
from imgfast.engine.mixing import Mixing, mixed_pictures, mixed_targets
from imgfast.engine.optimizer import MovingAverage, build_optimizers, update, zero_grad
from imgfast.engine.train_config import TrainConfig
from imgfast.models import Classifier, ClassifierConfig, build_classifier


class TrainingStep:
    """A model in training.

    All random numbers of an epoch follow from the seed and the epoch's number alone: training can
    go on at any epoch as if it had never stopped, and no generator's state need be kept.

    Args:
        config: the recipe.
        model_config: the network.
        data: the training pictures.
        device: where to train.
        processes: which share of every batch is to be computed here.

    Attributes:
        model: the classifier.
        average: its moving average, or ``None``.
        optimizers: see :func:`imgfast.engine.optimizer.build_optimizers`.
        batches: number of steps in an epoch. The last batch of an epoch is dropped unless it is
            full: every step weighs the same, and the pictures left out are others in each epoch.

    Raises:
        ValueError: fewer pictures in a batch than processes.
    """

    def __init__(
        self,
        config: TrainConfig,
        model_config: ClassifierConfig,
        data: ImageSet,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.config = config = config.resolved(len(data))
        self.data = data
        self.device = device
        self.processes = processes
        self.model = build_classifier(model_config, config.layers, config.seed)
        self.model.to(device, memory_format=torch.channels_last)
        self.average = MovingAverage(self.model, config.ema) if config.ema else None
        self.optimizers = build_optimizers(self.model, config)
        loss = imgfast.nn.CrossEntropyLoss if config.layers == "imgfast" else _StockPairLoss
        self.criterion = loss(label_smoothing=config.label_smoothing)
        self.augment = Augment(data.images.to(device), config.shift, config.flip, config.cutout)
        self.mixing = Mixing(config.mixup, config.cutmix)
        self.labels = data.labels.to(device)
        self.batch_size = min(config.batch_size, len(data))
        self.batches = len(data) // self.batch_size
        self.parts = _parts(self.batch_size, config.accumulate, processes)
        self.forward: nn.Module = self.model
        self.parallel: nn.parallel.DistributedDataParallel | None = None
        if processes.size > 1:
            self.forward = self.parallel = nn.parallel.DistributedDataParallel(self.model)
        if config.compile:
            self.forward = torch.compile(self.forward)

    @property
    def judged(self) -> Classifier:
        """The model to evaluate and save: the moving average where there is one."""
        return self.average.module if self.average is not None else self.model

    def begin_epoch(self, epoch: int) -> tuple[torch.Tensor, ...]:
        """Seed everything for an epoch; its batches of picture numbers, int64 ``[B]`` each."""
        self.model.train()
        self.generator = torch.Generator().manual_seed(epoch_seed(self.config.seed, epoch))
        self.dice = random.Random(epoch_seed(self.config.seed, epoch))
        # Layers such as dropout draw for a process's own share: other numbers in each process.
        torch.manual_seed(epoch_seed(self.config.seed, epoch, self.processes.rank))
        order = torch.randperm(len(self.data), generator=self.generator)
        return order.split(self.batch_size)[: self.batches]

    def run(self, batch: torch.Tensor, rate: float) -> torch.Tensor:
        """Take one step.

        Args:
            batch: numbers of the pictures, int64 ``[B]``; the whole batch, in every process.
            rate: the learning rate.

        Returns:
            The loss, a scalar on the device; its mean over the processes is that of the batch.
        """
        images = self.augment(batch, self.generator)
        labels = self.labels[batch.to(self.device)]
        mix = self.mixing.draw(images.shape, self.dice, self.generator)
        zero_grad(self.optimizers)
        total = None
        for number, (part, weight) in enumerate(self.parts, start=1):
            x = mixed_pictures(images, part, mix, self.data.mean, self.data.std)
            x = x.contiguous(memory_format=torch.channels_last)
            with self._alone(number < len(self.parts)):
                with autocast(self.config.amp, self.device):
                    loss = self.criterion(self.forward(x), mixed_targets(labels, part, mix))
                if weight != 1:
                    loss = loss * weight
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        update(self.optimizers, rate)
        if self.average is not None:
            self.average.update()
        return total

    def _alone(self, more: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged once a step, with the last part."""
        return self.parallel.no_sync() if more and self.parallel is not None else nullcontext()


def autocast(amp: str, device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 where :class:`torch.autocast` says so, if ``amp`` is ``bf16``."""
    return nullcontext() if amp == "none" else torch.autocast(device.type, torch.bfloat16)


class _StockPairLoss(nn.CrossEntropyLoss):
    """Stock cross-entropy that takes the pairs of targets of MixUp and CutMix."""

    def forward(self, input: torch.Tensor, target: torch.Tensor | tuple) -> torch.Tensor:
        if not isinstance(target, tuple):
            return super().forward(input, target)
        first, second, lam = target
        return lam * super().forward(input, first) + (1 - lam) * super().forward(input, second)


def _parts(batch_size: int, parts: int, processes: Processes) -> list[tuple[slice, float]]:
    """Slices of a batch that this process computes, and the weight of each one's mean loss.

    Gradients are averaged over the processes: the weights make that the mean over the pictures.
    """
    share = processes.share(batch_size)
    if batch_size < processes.size:
        raise ValueError(
            f"train: a batch must have a picture for each of {processes.size} processes, "
            f"got {batch_size}; start fewer processes"
        )
    count = min(parts, len(share))
    edges = [share.start + len(share) * number // count for number in range(count + 1)]
    return [
        (slice(start, stop), (stop - start) * processes.size / batch_size)
        for start, stop in itertools.pairwise(edges)
    ]


def epoch_seed(*parts: int | str) -> int:
    """A seed that differs in every bit for other parts: sums of seed and epoch would repeat."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
