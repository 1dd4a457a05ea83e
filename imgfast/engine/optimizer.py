"""What updates the weights: AdamW, SGD or Muon, the learning-rate cycle, the moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import nn

from imgfast.engine.muon import FilterMuon, filters_and_others
from imgfast.engine.train_config import TrainConfig


def one_cycle(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: a linear rise, then half a cosine down to zero.

    Args:
        progress: share of the training that is done, in [0, 1].
        warmup: share of the training in which the rate rises, in (0, 1).

    Source: L. Smith and N. Topin, "Super-convergence", 2017, arXiv:1708.07120, with the cosine of
    I. Loshchilov and F. Hutter, 2016, arXiv:1608.03983.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


def straight_cycle(progress: float, warmup: float) -> float:
    """As :func:`one_cycle`, but for a linear fall, which stays high for longer and ends sooner.

    Source: S. Bergsma et al., "Straight to zero", 2025, arXiv:2502.15938.
    """
    return min(progress / warmup, (1 - progress) / (1 - warmup))


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a model, which together update every weight once a step.

    ``muon`` updates the weights of convolutions by :class:`~imgfast.engine.muon.FilterMuon`, and
    everything else, biases and the last layer, by AdamW.

    Source: I. Loshchilov and F. Hutter, "Decoupled weight decay", 2017, arXiv:1711.05101.
    """
    parameters = [value for value in model.parameters() if value.requires_grad]
    rates = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return [torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **rates)]
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(parameters, **rates)]
    filters, others = filters_and_others(parameters)
    return [FilterMuon(filters, **rates, layers=config.layers), torch.optim.AdamW(others, **rates)]


def zero_grad(optimizers: list[torch.optim.Optimizer]) -> None:
    """Forget all gradients, without the walk through a model's modules that its own would take."""
    for optimizer in optimizers:
        optimizer.zero_grad()


def update(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Update every weight once, all at one learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


def optimizer_tensors(
    optimizers: list[torch.optim.Optimizer],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of everything that optimizers remember between steps."""
    for number, optimizer in enumerate(optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if value is not None:  # SGD's momentum before its first step
                    yield f"{number}.{index}.{slot}", value


def restore_optimizers(
    optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]
) -> None:
    """Give new optimizers what :func:`optimizer_tensors` told of old ones.

    Raises:
        ValueError: a tensor that belongs to no parameter or has not its shape.
    """
    states = [optimizer.state_dict() for optimizer in optimizers]
    parameters = [
        [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for optimizer in optimizers
    ]
    for name, value in tensors.items():
        try:
            number, index, slot = name.split(".")
            parameter = parameters[int(number)][int(index)]
        except (ValueError, IndexError) as error:
            raise ValueError(f"tensor {name!r} must belong to a parameter") from error
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"tensor {name!r} must be {list(parameter.shape)} or a number")
        # In the strides of the parameter, as before: other strides would round otherwise.
        kept = torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.ndim else value
        states[int(number)]["state"].setdefault(int(index), {})[slot] = kept
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)


class MovingAverage(nn.Module):
    """A copy of a model that follows it: ``average = d * average + (1 - d) * weight``.

    ``d`` is ``decay``, at first less: ``(1 + n) / (10 + n)`` after n updates, so that the random
    weights of the start are soon forgotten. Buffers, as of batch norm, are copied.

    Args:
        model: its parameters and buffers stay the same objects.
        decay: in (0, 1).

    Attributes:
        module: the copy.

    Source: A. Tarvainen and H. Valpola, "Mean teachers", 2017, arXiv:1703.01780.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(model), decay
        self.register_buffer("n_averaged", torch.tensor(0))
        # Once, as walks through all modules cost as much as the averages.
        self._weights = list(self.module.parameters()), list(model.parameters())
        self._buffers_of = list(self.module.buffers()), list(model.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Follow the model as it is now."""
        count = int(self.n_averaged)  # lies on the CPU: nothing to wait for
        share = 1 - min(self.decay, (1 + count) / (10 + count)) if count else 1
        torch._foreach_lerp_(*self._weights, share)
        for ours, theirs in zip(*self._buffers_of, strict=True):
            ours.copy_(theirs)
        self.n_averaged += 1


def clip_gradients(weights: list[nn.Parameter], largest: float) -> None:
    """:func:`torch.nn.utils.clip_grad_norm_` of weights that all have gradients.

    Where their norm can be read without waiting for a device, gradients that are small enough are
    not multiplied by one.
    """
    grads = [weight.grad for weight in weights]
    norm = nn.utils.get_total_norm(grads)
    if not norm.is_cpu:
        nn.utils.clip_grads_with_norm_(weights, largest, norm)
    elif not (share := largest / (norm.item() + 1e-6)) >= 1:
        torch._foreach_mul_(grads, share)
