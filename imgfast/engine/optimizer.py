"""What updates the weights: AdamW, SGD or Muon, the learning-rate cycle, the moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

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


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a model, which together update every weight once a step.

    ``muon`` updates the weights of convolutions as matrices of one row a filter, by
    :class:`torch.optim.Muon`, and everything else, biases and the last layer, by AdamW. Its step
    is scaled to the root mean square of AdamW's, so that both have one learning rate.

    Source: I. Loshchilov and F. Hutter, "Decoupled weight decay", 2017, arXiv:1711.05101; K. Jordan
    et al., "Muon", 2024; J. Liu et al., "Muon is scalable", 2025, arXiv:2502.16982, for the scale.
    """
    parameters = [value for value in model.parameters() if value.requires_grad]
    rates = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return [torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **rates)]
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(parameters, **rates)]
    filters = [value for value in parameters if value.ndim == 4]
    others = [value for value in parameters if value.ndim != 4]
    return [FilterMuon(filters, **rates), torch.optim.AdamW(others, **rates)]


class FilterMuon(torch.optim.Muon):
    """:class:`torch.optim.Muon` of convolution weights ``[K, C, R, S]`` as ``[K, C * R * S]``.

    The matrices share the memory of the weights. Those of channels_last weights have their columns
    in the order R, S, C; Muon's update moves with the columns and is the same in any order.
    """

    def __init__(self, filters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.filters = filters
        self.orders = [_dense_order(weight) for weight in filters]
        matrices = [
            nn.Parameter(weight.detach().permute(order).view(len(weight), -1))
            for weight, order in zip(filters, self.orders, strict=True)
        ]
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        matrices = self.param_groups[0]["params"]
        for matrix, weight, order in zip(matrices, self.filters, self.orders, strict=True):
            matrix.grad = weight.grad.permute(order).reshape(matrix.shape)
        super().step()


def _dense_order(weight: torch.Tensor) -> tuple[int, ...]:
    """The order of the dimensions in which the weight lies in memory without gaps."""
    order = (0, 1, 2, 3) if weight.is_contiguous() else (0, 2, 3, 1)
    if not weight.permute(order).is_contiguous():
        raise ValueError("muon: convolution weights must be contiguous or channels_last")
    return order


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
