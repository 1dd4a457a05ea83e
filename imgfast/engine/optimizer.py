"""What updates the weights: AdamW, SGD or Muon, the learning-rate cycle, the moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

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


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows it: ``average = d * average + (1 - d) * weight``.

    ``d`` is ``decay``, at first less: ``(1 + n) / (10 + n)`` after n updates, so that the random
    weights of the start are soon forgotten. Buffers, as of batch norm, are copied.

    Source: A. Tarvainen and H. Valpola, "Mean teachers", 2017, arXiv:1703.01780.
    """

    def update(averages: list[torch.Tensor], weights: list[torch.Tensor], _: object) -> None:
        count = int(averaged.n_averaged)  # on the CPU, whereas the argument would wait for CUDA
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + count) / (10 + count)))

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=False)
    return averaged
