"""How far two sets of feature vectors are from each other, as distributions: Frechet and kernel.

Both take a matrix a set, one row a picture. The features are a network's of the caller's choice, so
the distances have that network's scale, and those of two networks cannot be compared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_BLOCKS = 10  # of pictures, for the standard error of the kernel distance


class KernelDistance(NamedTuple):
    """Squared maximum mean discrepancy and its standard error."""

    value: float
    error: float


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Between the normal distributions that have the means ``m`` and covariances ``S`` of two sets:

    ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``.

    The trace of the root is the sum of the singular values of ``R_a R_b^T`` for any factors with
    ``S = R^T R``. Taken from the centred features by QR, they need no root of a covariance, which
    for fewer pictures than features is singular.

    Args:
        a, b: ``[N, D]`` and ``[M, D]``, at least 2 rows each, finite.

    Returns:
        At least 0. Small sets are biased upwards: compare sets of equal size only.

    Source:
        Heusel et al., 2017, arXiv:1706.08500.
    """
    a, b = checked_features("frechet_distance", a, b, 2)
    root = torch.linalg.svdvals(_factor(a) @ _factor(b).t()).sum()
    spread = a.var(0).sum() + b.var(0).sum()
    return max(0.0, ((a.mean(0) - b.mean(0)).square().sum() + spread - 2 * root).item())


def kernel_distance(a: torch.Tensor, b: torch.Tensor, seed: int = 0) -> KernelDistance:
    """Squared maximum mean discrepancy of ``k(x, y) = (x . y / D + 1)^3``, without bias:

    ``mean k(a_i, a_j) + mean k(b_i, b_j) - 2 mean k(a_i, b_j)``, the first two over ``i != j``.

    The value is of all rows. The standard error is that of the mean over up to 10 disjoint random
    subsets, which is no smaller than the value's own.

    Args:
        a, b: ``[N, D]`` and ``[M, D]``, at least 4 rows each, finite.
        seed: of the subsets.

    Returns:
        Value and standard error; a value may be below 0 where the distributions are alike.

    Source:
        Binkowski et al., 2018, arXiv:1801.01401.
    """
    a, b = checked_features("kernel_distance", a, b, 4)
    dice = torch.Generator().manual_seed(seed)
    shuffled = (x[torch.randperm(len(x), generator=dice)] for x in (a, b))
    blocks = min(_BLOCKS, len(a) // 2, len(b) // 2)
    parts = zip(*(x.tensor_split(blocks) for x in shuffled), strict=True)
    values = torch.tensor([_discrepancy(*part) for part in parts], dtype=torch.float64)
    return KernelDistance(_discrepancy(a, b), (values.std() / blocks**0.5).item())


def checked_features(
    name: str, a: torch.Tensor, b: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as float64.

    Raises:
        ValueError: not two finite matrices of equal width with that many rows; ``name`` says so.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < rows:
        raise ValueError(
            f"{name}: features must be [N, D] and [M, D] with at least {rows} rows each, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError(f"{name}: features must be finite, got NaN or infinity")
    return a.double(), b.double()


def _factor(features: torch.Tensor) -> torch.Tensor:
    """``[min(N, D), D]`` whose Gram matrix is the covariance of the features."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def _discrepancy(a: torch.Tensor, b: torch.Tensor) -> float:
    return (_mean_kernel(a) + _mean_kernel(b) - 2 * _mean_kernel(a, b)).item()


def _mean_kernel(a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """Over all pairs, or over those of different rows of one set; a few rows at a time."""
    other = a if b is None else b
    total = a.new_zeros(())
    for rows in a.split(1024):
        total += (rows @ other.t() / a.shape[1] + 1).pow_(3).sum()
    if b is not None:
        return total / (len(a) * len(b))
    own = (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()
    return (total - own) / (len(a) * (len(a) - 1))
