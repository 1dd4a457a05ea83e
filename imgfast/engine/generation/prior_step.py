"""One step of a prior's training: forward, loss, backward, update; and all that it needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import imgfast
from imgfast.engine.generation.train_config import GeneratorTrainConfig
from imgfast.engine.muon import FilterMuon
from imgfast.engine.optimizer import MovingAverage, clip_gradients, update, zero_grad
from imgfast.engine.training_step import autocast, epoch_seed
from imgfast.models.prior import Prior


class PriorStep:
    """A prior in training; as :class:`imgfast.engine.training_step.TrainingStep`, all random
    numbers of an epoch follow from the seed and the epoch's number.

    Args:
        config: the recipe.
        model: what is to be trained, on its device.
        codes: of the training pictures, int64 ``[N, h, w]``.
        labels: int64 ``[N]``.

    Attributes:
        average, optimizers, batches: as of ``TrainingStep``.
    """

    def __init__(
        self,
        config: GeneratorTrainConfig,
        model: Prior,
        codes: torch.Tensor,
        labels: torch.Tensor,
    ) -> None:
        self.config, self.model = config, model
        self.device = model.place.device
        self.codes, self.labels = codes.flatten(1).to(self.device), labels.to(self.device)
        self.average = MovingAverage(model, config.ema) if config.ema else None
        matrices = [m.weight for m in model.blocks.modules() if isinstance(m, nn.Linear)]
        kept = {id(weight) for weight in matrices}
        self.weights = list(model.parameters())
        others = [weight for weight in self.weights if id(weight) not in kept]
        groups = [{"params": others, "weight_decay": 0.0}]
        self.optimizers = []
        if config.optimizer == "muon":
            self.optimizers.append(
                FilterMuon(matrices, config.prior_lr, config.weight_decay, config.layers)
            )
        else:
            groups.append({"params": matrices, "weight_decay": config.weight_decay})
        self.optimizers.append(torch.optim.AdamW(groups, config.prior_lr, (0.9, 0.95), fused=True))
        self.batch_size = min(config.prior_batch_size, len(codes))
        self.batches = len(codes) // self.batch_size

    @property
    def judged(self) -> Prior:
        """The model to evaluate and save: the moving average where there is one."""
        return self.average.module if self.average is not None else self.model

    def begin_epoch(self, epoch: int) -> tuple[torch.Tensor, ...]:
        """Seed everything for an epoch; its batches of picture numbers, int64 ``[B]`` each."""
        self.model.train()
        torch.manual_seed(epoch_seed(self.config.seed, epoch, "prior"))
        return torch.randperm(len(self.codes)).split(self.batch_size)[: self.batches]

    def run(self, batch: torch.Tensor, rate: float) -> torch.Tensor:
        """Take one step at a learning rate on the codes of these pictures, int64 ``[B]``.

        Returns:
            The loss in nats a code, a scalar on the device.
        """
        config = self.config
        dropped = (torch.rand(len(batch)) < config.drop_class).to(self.device)
        batch = batch.to(self.device)
        labels = self.labels[batch].masked_fill(dropped, self.model.classes)
        zero_grad(self.optimizers)
        with autocast(config.amp, self.device):
            loss = code_loss(self.model, self.codes[batch], labels, config.layers)
        loss.backward()
        clip_gradients(self.weights, 1.0)
        update(self.optimizers, rate)
        if self.average is not None:
            self.average.update()
        return loss.detach()


def code_loss(
    model: Prior, codes: torch.Tensor, labels: torch.Tensor, layers: str = "imgfast"
) -> torch.Tensor:
    """Mean negative log-likelihood of codes, int64 ``[N, T]``, in nats a code.

    Args:
        layers: ``imgfast`` for :func:`imgfast.linear_cross_entropy`, ``stock`` for torch's
            linear layer and cross-entropy.
    """
    hidden, target = model(codes, labels).flatten(0, 1), codes.flatten()
    if layers == "imgfast":
        return imgfast.linear_cross_entropy(hidden, model.head.weight, target)
    return F.cross_entropy(model.head(hidden), target)
