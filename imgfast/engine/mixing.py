"""MixUp and CutMix: batches of pictures made of two, with the targets of both."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from imgfast.data import normalise


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed.

    Args:
        lam: share of each picture's own content, in [0, 1].
        partner: int64 ``[B]``, the position of the other picture in the batch.
        box: rows and columns that are the other picture's; ``None`` blends all pixels.
    """

    lam: float
    partner: torch.Tensor
    box: tuple[slice, slice] | None


class Mixing:
    """Draws a :class:`Mix` for every batch.

    MixUp blends, ``x = lam * a + (1 - lam) * b`` with ``lam ~ Beta(alpha, alpha)``. CutMix replaces
    a box of a share ``1 - lam`` of the area by the other picture's; where the box reaches beyond
    the border, ``lam`` is what remains. The loss is ``lam * loss(target_a) + (1 - lam) *
    loss(target_b)`` in both. The other picture is another of the same batch, by a permutation.

    Args:
        mixup, cutmix: alpha of each, 0 is off; where both are on, one of them by chance.

    Source: H. Zhang et al., "mixup", 2017, arXiv:1710.09412; S. Yun et al., "CutMix", 2019,
    arXiv:1905.04899.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        self.alphas = [(kind, alpha) for kind, alpha in (("up", mixup), ("cut", cutmix)) if alpha]

    def draw(
        self, shape: torch.Size, dice: random.Random, generator: torch.Generator
    ) -> Mix | None:
        """The mix of a batch of ``shape`` ``[B, C, H, W]``; ``None`` where mixing is off."""
        if not self.alphas:
            return None
        kind, alpha = dice.choice(self.alphas)
        lam = dice.betavariate(alpha, alpha)
        partner = torch.randperm(shape[0], generator=generator)
        if kind == "up":
            return Mix(lam, partner, None)
        rows, columns = (_side(size, lam, dice) for size in shape[2:])
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return Mix(1 - area / (shape[2] * shape[3]), partner, (rows, columns))


def _side(size: int, lam: float, dice: random.Random) -> slice:
    """One side of CutMix's box: its share is sqrt(1 - lam), its middle anywhere."""
    length = round(size * (1 - lam) ** 0.5)
    start = dice.randrange(size) - length // 2
    return slice(max(start, 0), min(start + length, size))


def mixed_pictures(
    images: torch.Tensor,
    part: slice,
    mix: Mix | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> torch.Tensor:
    """The pictures of a part of a batch, mixed and normalised.

    Args:
        images: uint8 ``[B, C, H, W]``, the whole batch.
        part: which of them are wanted; their partners may lie anywhere in the batch.
        mix: how; ``None`` leaves them as they are.
        mean, std: as in :func:`imgfast.data.normalise`.

    Returns:
        float32 ``[part, C, H, W]``.
    """
    own = images[part]
    if mix is None:
        return normalise(own, mean, std)
    other = images[mix.partner[part].to(images.device)]
    if mix.box is None:
        return torch.lerp(normalise(other, mean, std), normalise(own, mean, std), mix.lam)
    own = own.clone()  # another picture's box is to come from the picture as it was
    rows, columns = mix.box
    own[:, :, rows, columns] = other[:, :, rows, columns]
    return normalise(own, mean, std)


def mixed_targets(
    labels: torch.Tensor, part: slice, mix: Mix | None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, float]:
    """Labels int64 ``[B]`` of a part of a batch, as :func:`imgfast.cross_entropy` takes them."""
    if mix is None:
        return labels[part]
    return labels[part], labels[mix.partner[part].to(labels.device)], mix.lam
