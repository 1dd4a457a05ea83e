"""The feed-forward half of a transformer's block."""

from __future__ import annotations

import torch
from torch import nn

from imgfast.ops.feed_forward import feed_forward, feed_forward_stock


class FeedForward(nn.Module):
    """:func:`imgfast.ops.feed_forward.feed_forward` with ``U [4 D, D]`` and ``V [D, 4 D]``, of
    ``[..., D]``. A new one gives the residual, or zeros.

    Args:
        width: D.
        threshold: a hidden number that does not exceed it counts as zero.
        layers: ``imgfast``, or ``stock`` for torch's layers.
    """

    def __init__(self, width: int, threshold: float, layers: str = "imgfast") -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.down.weight)
        self.threshold = threshold
        self.feed = feed_forward if layers == "imgfast" else feed_forward_stock

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return self.feed(x, self.up.weight, self.down.weight, self.threshold, residual)
