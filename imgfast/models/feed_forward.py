"""The feed-forward half of a transformer's block, ``down(relu(up(x))^2)``, a few rows at a time.

Written out in layers it passes some ten times, forward and backward, over a tensor four times as
wide as ``x``, for two products each. Here the rows go through in parts that stay in the cache, and
only ``relu(up(x))`` is kept: the time left is that of the products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_PART_BYTES = 1 << 20  # of the wide rows that are worked on at once


class FeedForward(nn.Module):
    """``y = relu(x U^T)^2 V^T`` with ``U [4 D, D]`` and ``V [D, 4 D]``, of ``[..., D]``.

    The activation is that of D. So et al., "Primer", 2021, arXiv:2109.08668. A new one gives zeros.

    Args:
        width: D.
        layers: ``imgfast`` for rows in parts, ``stock`` for the layers one after the other.
    """

    def __init__(self, width: int, layers: str = "imgfast") -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.down.weight)
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        device = x.device.type
        if self.layers == "stock" or device != "cpu" or torch.is_autocast_enabled(device):
            return self.down(F.relu(self.up(x)).square())
        rows = x.reshape(-1, x.shape[-1])
        return _InParts.apply(rows, self.up.weight, self.down.weight).view(x.shape)


class _InParts(torch.autograd.Function):
    """``relu(x U^T)^2 V^T`` of ``x [N, D]``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        kept = x.new_empty(len(x), len(up))  # relu(x U^T)
        y = torch.empty_like(x)
        for rows in _parts(kept):
            h = torch.mm(x[rows], up.t(), out=kept[rows]).relu_()
            torch.mm(h.square(), down.t(), out=y[rows])
        ctx.save_for_backward(x, kept, up, down)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, kept, up, down = ctx.saved_tensors
        dx, dup, ddown = torch.empty_like(x), torch.zeros_like(up), torch.zeros_like(down)
        twice = 2 * down  # d relu(z)^2 / dz = 2 relu(z)
        for rows in _parts(kept):
            h = kept[rows]
            ddown.addmm_(dy[rows].t(), h.square())
            dh = torch.mm(dy[rows], twice).mul_(h)
            torch.mm(dh, up, out=dx[rows])
            dup.addmm_(dh.t(), x[rows])
        return dx, dup, ddown


def _parts(wide: torch.Tensor) -> list[slice]:
    count = max(1, _PART_BYTES // (wide.shape[1] * wide.element_size()))
    return [slice(start, start + count) for start in range(0, len(wide), count)]
