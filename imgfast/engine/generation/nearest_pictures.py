"""The pictures of a large set that are nearest to given ones, by their pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch

# Of either side at a time: pixels as float32, and pictures.
_MAX_PIXELS, _MAX_ROWS = 1 << 22, 4096


class Nearest(NamedTuple):
    """For each picture ``[N, k]``, the nearest first.

    Args:
        distance: float64, root mean square of the differences of pixels scaled to [0, 1].
        index: int64, of the picture in the set.
    """

    distance: torch.Tensor
    index: torch.Tensor


def nearest_pictures(images: torch.Tensor, among: torch.Tensor, k: int = 1) -> Nearest:
    """The ``k`` nearest of the set ``among`` for each picture.

    Args:
        images, among: uint8 ``[N, C, S, S]`` and ``[M, C, S, S]``, ``M >= k``.
        k: how many.

    Note:
        The search is by ``|x|^2 - 2 x y + |y|^2`` in float32; the distances of what it finds are
        then worked out from the differences, so that of an equal picture it is exactly 0.
    """
    if images.shape[1:] != among.shape[1:] or not 1 <= k <= len(among):
        raise ValueError(
            f"nearest_pictures: there must be {k} or more pictures of size "
            f"{list(images.shape[1:])} to search, got {list(among.shape)}"
        )
    rows = _rows(among)
    found = [torch.zeros(0, k, dtype=torch.int64)]
    for queries in images.flatten(1).split(rows):
        x = queries.float()
        best = x.new_full((len(x), k), torch.inf)
        index = torch.zeros(len(x), k, dtype=torch.int64)
        for start in range(0, len(among), rows):
            y = among[start : start + rows].flatten(1).float()
            # |x|^2 is the same for every y and has no say.
            squared = torch.addmm(y.square().sum(1), x, y.t(), alpha=-2)
            candidates = torch.cat([best, squared], 1)
            best, place = candidates.topk(k, largest=False)
            known = index.gather(1, place.clamp(max=k - 1))
            index = torch.where(place < k, known, place - k + start)
        found.append(index)
    index = torch.cat(found)
    distance = torch.stack([_rms(images, among, column) for column in index.unbind(1)], 1)
    distance, order = distance.sort(dim=1, stable=True)
    return Nearest(distance, index.gather(1, order))


def _rms(images: torch.Tensor, among: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Distance of each picture to the one at its index, ``[N]``."""
    rows = _rows(among)
    parts = [torch.zeros(0, dtype=torch.float64)]
    for x, at in zip(images.split(rows), index.split(rows), strict=True):
        difference = (x.flatten(1).double() - among[at].flatten(1).double()) / 255
        parts.append(difference.square().mean(1).sqrt())
    return torch.cat(parts)


def _rows(images: torch.Tensor) -> int:
    """How many pictures to take at a time."""
    return max(1, min(_MAX_ROWS, _MAX_PIXELS // images[0].numel()))
