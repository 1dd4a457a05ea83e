"""How much of what is generated looks real, and how much of what is real is generated.

Around each feature vector of a set lies a ball that reaches to its k-th nearest neighbour in the
same set; the balls together stand for the set's manifold. With ``B`` such a ball, N real rows X and
M generated rows Y:

    precision  share of Y inside any ball of X, k = 3
    recall     share of X inside any ball of Y, k = 3     Kynkaanniemi et al. 2019, arXiv:1904.06991
    density    sum over i, j of [Y_j in B(X_i)] / (k M), k = 5
    coverage   share of X whose ball holds any Y, k = 5          Naeem et al. 2020, arXiv:2002.09797

Precision and density tell how good a picture is, recall and coverage how many kinds there are. One
outlier of X has a large ball and lifts precision; density counts it as one of many, and can exceed
1. Two sets of one distribution have a coverage of about ``1 - 2^-k``, 0.97, and a density of 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from imgfast.engine.generation.feature_distance import checked_features

PRECISION_K, COVERAGE_K = 3, 5
_CHUNK = 1024  # rows of a matrix of distances in memory


class Manifolds(NamedTuple):
    """See the top of this file; density is at least 0, the others are in [0, 1]."""

    precision: float
    recall: float
    density: float
    coverage: float


def compare_manifolds(real: torch.Tensor, generated: torch.Tensor) -> Manifolds:
    """Precision, recall, density and coverage.

    Args:
        real, generated: ``[N, D]`` and ``[M, D]``, finite, at least 6 rows each, so that a row has
            5 neighbours.

    Note:
        A row on the edge of a ball is inside. Depends on the numbers of rows: compare sets of
        equal size only.
    """
    real, generated = checked_features("compare_manifolds", real, generated, COVERAGE_K + 1)
    small, large = neighbour_radii(real, (PRECISION_K, COVERAGE_K))  # [N] each
    (around,) = neighbour_radii(generated, (PRECISION_K,))  # [M]
    inside_real = torch.zeros(len(generated), dtype=torch.bool)
    recalled = covered = pairs = 0
    for start in range(0, len(real), _CHUNK):
        rows = slice(start, start + _CHUNK)
        distance = torch.cdist(real[rows], generated)  # [chunk, M]
        inside_real |= (distance <= small[rows, None]).any(0)
        recalled += int((distance <= around).any(1).sum())
        held = distance <= large[rows, None]
        covered += int(held.any(1).sum())
        pairs += int(held.sum())
    return Manifolds(
        precision=int(inside_real.sum()) / len(generated),
        recall=recalled / len(real),
        density=pairs / (COVERAGE_K * len(generated)),
        coverage=covered / len(real),
    )


def neighbour_radii(features: torch.Tensor, ks: tuple[int, ...]) -> list[torch.Tensor]:
    """Distance of each row of ``[N, D]`` to its k-th nearest other row, ``[N]`` for each k."""
    radii = []
    for start in range(0, len(features), _CHUNK):
        distance = torch.cdist(features[start : start + _CHUNK], features)
        itself = torch.arange(len(distance))
        distance[itself, start + itself] = torch.inf
        radii.append(distance.topk(max(ks), largest=False).values)
    return [torch.cat(radii)[:, k - 1] for k in ks]
