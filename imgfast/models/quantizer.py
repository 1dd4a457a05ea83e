"""The quantiser: every latent vector becomes the nearest of a book of learned codes.

The book follows the latents by moving averages, without a gradient (A. van den Oord et al., "Neural
discrete representation learning", 2017, arXiv:1711.00937, appendix A.1). It starts as the means
that k-means finds among real latents, and a code that hardly any latent chooses is moved to one
of the batch (as in P. Dhariwal et al., "Jukebox", 2020, arXiv:2005.00341), so that no code is lost.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from imgfast.ops.nearest_code import nearest_code, nearest_code_stock

_DEAD_SHARE = 0.03  # of the mean use; below it a code is moved
_REVIVED_SHARE = 0.3  # of the mean use; what a moved code is taken to have
_KMEANS_ROUNDS = 8


class Usage(NamedTuple):
    """How much of the book is in use.

    Args:
        used: codes that were chosen at all.
        perplexity: ``exp(entropy)`` of their frequencies, in [1, codes]: as many codes, each chosen
            equally often, would carry as much.
    """

    used: int
    perplexity: float


class Quantizer(nn.Module):
    """``book[argmin_k |z - book[k]|^2]`` of every position, with the gradient of the identity.

    Until :meth:`start` latents pass through a training step as they are.

    Args:
        codes: K, their number.
        size: D, numbers in a code.
        decay: of the moving averages.
        layers: ``imgfast`` or ``stock``, see :func:`imgfast.ops.nearest_code.nearest_code`.

    Attributes:
        book: float32 ``[K, D]``.
        count: float32 ``[K]``, moving average of how many latents of a batch chose each code.
        total: float32 ``[K, D]``, moving average of the sum of these latents.
        started: int64 ``[]``, 1 after :meth:`start`.
    """

    def __init__(self, codes: int, size: int, decay: float = 0.97, layers: str = "imgfast") -> None:
        super().__init__()
        self._nearest = nearest_code if layers == "imgfast" else nearest_code_stock
        self.decay = decay
        self.register_buffer("book", torch.randn(codes, size))
        self.register_buffer("count", torch.ones(codes))
        self.register_buffer("total", torch.zeros(codes, size))
        self.register_buffer("started", torch.zeros((), dtype=torch.int64))
        self.follows = False  # whether start() was called; the buffer would have to be waited for

    def nearest(self, rows: torch.Tensor) -> torch.Tensor:
        """Number of the nearest code of each row, float ``[N, D]`` to int64 ``[N]``; of several
        the first."""
        return self._nearest(rows, self.book)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """The vectors of codes: int64 ``[N, h, w]`` to float ``[N, D, h, w]``, channels_last."""
        return F.embedding(codes, self.book).permute(0, 3, 1, 2)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantise, and in a training step let the book follow.

        Args:
            z: latents, float ``[N, D, h, w]``.

        Returns:
            The vectors of the nearest codes ``[N, D, h, w]``, whose gradient goes to ``z`` as it
            is (straight through); the codes, int64 ``[N, h, w]``; and the commitment loss
            ``mean |z - vectors|^2``, which keeps latents near their codes.
        """
        positions = z.permute(0, 2, 3, 1)
        rows = positions.detach().reshape(-1, z.shape[1]).to(self.book.dtype)
        codes = self.nearest(rows)
        if self.training and not self.follows:
            return z, codes.view(positions.shape[:3]), z.new_zeros(())
        vectors = self.lookup(codes.view(positions.shape[:3])).to(z.dtype)
        if self.training:
            self._follow(rows, codes)
        passed = z + (vectors - z).detach()
        return passed, codes.view(positions.shape[:3]), F.mse_loss(z, vectors)

    @torch.no_grad()
    def start(self, rows: torch.Tensor) -> None:
        """Make the book the means of k-means clusters of latents, float ``[N, D]``, N >= 1.

        Random numbers are torch's own.
        """
        codes = len(self.book)
        book = rows[_draw(len(rows), codes, rows.device)].clone()
        for _ in range(_KMEANS_ROUNDS):
            self.book.copy_(book)
            chosen = self.nearest(rows)
            count = torch.bincount(chosen, minlength=codes).unsqueeze(1)
            means = torch.zeros_like(book).index_add_(0, chosen, rows) / count.clamp(min=1)
            book = torch.where(count > 0, means, rows[_draw(len(rows), codes, rows.device)])
        self.book.copy_(book)
        self.count.fill_(len(rows) / codes)
        self.total.copy_(self.book * self.count.unsqueeze(1))
        self.started.fill_(1)
        self.follows = True

    @torch.no_grad()
    def _follow(self, rows: torch.Tensor, chosen: torch.Tensor) -> None:
        """``count`` and ``total`` average what a batch chose; ``book = total / count``."""
        codes, mean_use = len(self.book), len(rows) / len(self.book)
        count = torch.bincount(chosen, minlength=codes).to(self.count.dtype)
        total = torch.zeros_like(self.total).index_add_(0, chosen, rows)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        # Moved by a choice for every code and a mask, so that no device has to be waited for.
        moved = rows[_draw(len(rows), codes, rows.device)]
        dead = self.count < _DEAD_SHARE * mean_use
        self.count.masked_fill_(dead, _REVIVED_SHARE * mean_use)
        self.total.copy_(
            torch.where(dead.unsqueeze(1), moved * self.count.unsqueeze(1), self.total)
        )
        self.book.copy_(self.total / self.count.unsqueeze(1))

    def usage(self, codes: torch.Tensor) -> Usage:
        """How much of the book some codes (int64, any shape) use."""
        counts = torch.bincount(codes.flatten(), minlength=len(self.book)).double()
        shares = counts[counts > 0] / counts.sum()
        entropy = -(shares * shares.log()).sum()
        return Usage(int((counts > 0).sum()), float(entropy.exp()))

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.started.is_meta:
            self.follows = bool(self.started)


def _draw(high: int, count: int, device: torch.device) -> torch.Tensor:
    """``count`` numbers below ``high``, the same on every device for the same seed."""
    return torch.randint(high, (count,)).to(device)
