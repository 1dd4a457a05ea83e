"""One step of a tokenizer's training: forward, loss, backward, update; and all that it needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from imgfast.data import ImageSet, normalise
from imgfast.engine.generation.perceptual import PerceptualLoss
from imgfast.engine.generation.train_config import GeneratorTrainConfig
from imgfast.engine.muon import FilterMuon, filters_and_others
from imgfast.engine.optimizer import MovingAverage, update, zero_grad
from imgfast.engine.training_step import autocast, epoch_seed
from imgfast.models.classifier import memory_format
from imgfast.models.tokenizer import Tokenizer

_START = 100  # steps before latents are quantised, or a tenth of all
_START_PICTURES = 600


class TokenizerStep:
    """A tokenizer in training; as :class:`imgfast.engine.training_step.TrainingStep`, all random
    numbers of an epoch follow from the seed and the epoch's number.

    The first steps train encoder and decoder without a quantiser; then k-means makes its book.

    Args:
        config: the recipe.
        model: what is to be trained, on its device.
        data: the training pictures.
        perceptual: the distance of features, or ``None``.

    Attributes:
        average, optimizers, batches: as of ``TrainingStep``.
    """

    def __init__(
        self,
        config: GeneratorTrainConfig,
        model: Tokenizer,
        data: ImageSet,
        perceptual: PerceptualLoss | None,
    ) -> None:
        self.config = config = config.resolved(len(data))
        self.model, self.perceptual = model, perceptual
        self.mean, self.std = data.mean, data.std
        self.device = next(model.parameters()).device
        self.images = data.images.to(self.device)
        self.layout = memory_format(model)
        self.average = MovingAverage(model, config.ema) if config.ema else None
        adamw, self.optimizers = list(model.parameters()), []
        if config.optimizer == "muon":
            filters, adamw = filters_and_others(adamw)
            self.optimizers.append(FilterMuon(filters, config.lr, 0.0, config.layers))
        self.optimizers.append(
            torch.optim.AdamW(adamw, config.lr, (0.9, 0.98), weight_decay=0.0, fused=True)
        )
        self.batch_size = min(config.batch_size, len(data))
        self.batches = len(data) // self.batch_size
        self.start = min(_START, config.tokenizer_epochs * self.batches // 10)

    @property
    def judged(self) -> Tokenizer:
        """The model to evaluate and save: the moving average where there is one."""
        return self.average.module if self.average is not None else self.model

    def begin_epoch(self, epoch: int) -> tuple[torch.Tensor, ...]:
        """Seed everything for an epoch; its batches of picture numbers, int64 ``[B]`` each."""
        self.model.train()
        self.done = (epoch - 1) * self.batches
        torch.manual_seed(epoch_seed(self.config.seed, epoch, "tokenizer"))
        return torch.randperm(len(self.images)).split(self.batch_size)[: self.batches]

    def run(self, batch: torch.Tensor, rate: float) -> torch.Tensor:
        """Take one step at a learning rate on the pictures of these numbers, int64 ``[B]``.

        Returns:
            The loss, a scalar on the device.
        """
        config = self.config
        if self.done == self.start:
            self._start_quantizer()
        x = self._pictures(batch)
        zero_grad(self.optimizers)
        with autocast(config.amp, self.device):
            y, _, commitment = self.model(x)
            loss = F.mse_loss(y, x) + config.commitment * commitment
            if config.l1:
                loss = loss + config.l1 * F.l1_loss(y, x)
            if self.perceptual is not None:
                loss = loss + config.perceptual * self.perceptual(y, x)
        loss.backward()
        update(self.optimizers, rate)
        self.done += 1
        if self.average is not None:
            self.average.update()
        return loss.detach()

    @torch.no_grad()
    def _start_quantizer(self) -> None:
        """k-means on the latents of some pictures."""
        chosen = torch.randperm(len(self.images))[:_START_PICTURES]
        latents = self.model.encoder(self._pictures(chosen)).float()
        size = latents.shape[1]
        self.model.quantizer.start(latents.permute(0, 2, 3, 1).reshape(-1, size))

    def _pictures(self, batch: torch.Tensor) -> torch.Tensor:
        x = normalise(self.images[batch.to(self.device)], self.mean, self.std)
        return x.to(memory_format=self.layout)
