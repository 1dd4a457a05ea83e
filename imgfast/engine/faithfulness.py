"""How well a heat map names the pixels that the classifier uses: deletion and insertion.

Deletion takes pixels away, the hottest first, and insertion brings them back, the hottest first;
the score is the area under the class's probability over the share of pixels changed. A good map
has a low deletion and a high insertion score, each beside that of a random order.

Source: Petsiuk et al., RISE, 2018, arXiv:1806.07421, section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from imgfast.data import normalise
from imgfast.models import Classifier

STEPS = 28  # points of a curve: at 28 x 28 pixels, 28 pixels are changed at a time
_RANDOM_ORDERS = 4


@dataclass(frozen=True)
class Faithfulness:
    """Areas under the probability curves, float32 ``[N]`` in [0, 1].

    Args:
        deletion: pixels are taken away; lower is better.
        insertion: pixels are brought back; higher is better.
    """

    deletion: torch.Tensor
    insertion: torch.Tensor


@torch.no_grad()
def faithfulness(
    model: Classifier, images: torch.Tensor, target: torch.Tensor, order: torch.Tensor
) -> Faithfulness:
    """Deletion and insertion scores of an order of the pixels.

    A deleted pixel shows the training set's mean; insertion starts from the picture blurred
    (Gaussian, an eighth of its size), whose shapes have no sharp edges that could mislead.

    Args:
        model: the classifier.
        images: uint8 ``[N, C, S, S]``.
        target: int64 ``[N]``, the class whose probability is followed.
        order: int64 ``[N, S * S]``, positions of each picture's pixels, the first to go first.
    """
    model.eval()
    config = model.config
    device = next(model.parameters()).device
    pixels = images.shape[-2] * images.shape[-1]
    # How many pixels have changed at each point of the curve, from none to all.
    changed = torch.linspace(0, pixels, min(STEPS, pixels) + 1).round().long().to(device)
    share = changed / pixels
    areas: tuple[list[float], list[float]] = ([], [])
    for picture, label, positions in zip(images, target.tolist(), order.to(device), strict=True):
        x = normalise(picture[None].to(device), config.mean, config.std)  # [1, C, S, S]
        rank = torch.empty_like(positions)
        rank[positions] = torch.arange(pixels, device=device)
        early = (rank < changed[:, None]).view(-1, 1, *images.shape[-2:])  # [points, 1, S, S]
        for area, start, end in zip(areas, (x, blur(x)), (torch.zeros_like(x), x), strict=True):
            curve = model(torch.where(early, end, start)).float().softmax(1)[:, label]
            area.append(torch.trapezoid(curve, share).item())
    return Faithfulness(*map(torch.tensor, areas))


def random_baseline(model: Classifier, images: torch.Tensor, target: torch.Tensor) -> Faithfulness:
    """Scores of pixels in random order, in the mean of four fixed orders."""
    flat = torch.zeros(len(images), *images.shape[-2:])
    runs = [
        faithfulness(model, images, target, pixel_order(flat, seed))
        for seed in range(_RANDOM_ORDERS)
    ]
    deletion = torch.stack([run.deletion for run in runs]).mean(0)
    return Faithfulness(deletion, torch.stack([run.insertion for run in runs]).mean(0))


def pixel_order(heat: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Positions of the pixels of ``[N, S, S]`` maps, the hottest first, int64 ``[N, S * S]``.

    Equal pixels follow in random order, fixed by ``seed``: of a map that is zero in large parts,
    as Grad-CAM's, the upper edge must not come first by accident. A constant map therefore gives
    a random order.
    """
    flat = heat.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffle = torch.rand(flat.shape, generator=generator).argsort(1)
    return shuffle.gather(1, flat.gather(1, shuffle).argsort(dim=1, descending=True, stable=True))


def blur(x: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of ``[N, C, S, S]`` with a deviation of S / 8, mirrored at the border."""
    size = x.shape[-1]
    deviation = size / 8
    reach = min(math.ceil(2 * deviation), size - 1)
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    weights = torch.exp(-0.5 * (offsets / deviation) ** 2)
    row = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)  # [C, 1, 1, taps]
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    groups = x.shape[1]
    return F.conv2d(F.conv2d(padded, row, groups=groups), row.transpose(2, 3), groups=groups)
