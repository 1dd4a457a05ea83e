"""Muon for convolutions and matrices, as an optimizer."""

from __future__ import annotations

import torch
from torch import nn

from imgfast.ops.muon import muon_, muon_stock_


class FilterMuon(torch.optim.Optimizer):
    """:func:`imgfast.ops.muon.muon_`: Muon with Nesterov momentum, of weights ``[K, C, R, S]`` as
    matrices ``[K, C R S]``.

    Unlike :class:`torch.optim.Muon` it computes in float32: in bfloat16, on a CPU without
    instructions for it, a step takes several times as long as the network's.

    Args:
        filters: all have gradients whenever a step is taken.
        lr, weight_decay: see there.
        layers: ``imgfast``, or ``stock`` for torch's operators alone.
    """

    def __init__(
        self,
        filters: list[nn.Parameter],
        lr: float,
        weight_decay: float,
        layers: str = "imgfast",
    ) -> None:
        super().__init__(filters, {"lr": lr, "weight_decay": weight_decay})
        self.update = muon_ if layers == "imgfast" else muon_stock_

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            weights = group["params"]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            averages = [self.state[weight]["momentum_buffer"] for weight in weights]
            grads = [weight.grad for weight in weights]
            self.update(weights, grads, averages, group["lr"], group["weight_decay"])


def filters_and_others(
    weights: list[nn.Parameter],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those of convolutions, which have four dimensions, and the rest, which Muon is not for."""
    return [w for w in weights if w.ndim == 4], [w for w in weights if w.ndim != 4]
