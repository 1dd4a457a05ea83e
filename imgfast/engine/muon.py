"""Muon for convolutions and matrices: steps whose singular values are all about one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn

# Of a x + b x^3 + c x^5, one polynomial after the other: each is the one whose values on the range
# of the one before are nearest to 1 in the maximum, where the first begins with [0.01, 1].
_COEFFICIENTS = (
    (8.093369, -23.62043, 17.446152),
    (3.636586, -2.721927, 0.536546),
    (2.6613, -1.977155, 0.452616),
)
_MOMENTUM = 0.95
_ADAMW_RMS = 0.2  # of AdamW's steps, in learning rates
_SIDE = 32  # sides of one multiple of it are worked on together


class FilterMuon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, of weights ``[K, C, R, S]`` as matrices ``[K, C R S]``::

        b = m b + (1 - m) g,  u = (1 - m) g + m b
        w = (1 - lr * decay) w - 0.2 sqrt(max(K, C R S)) lr * orthogonalised(u)

    The scale gives a step the root mean square of AdamW's, so that both have one learning rate.
    Unlike :class:`torch.optim.Muon` it computes in float32: in bfloat16, on a CPU without
    instructions for it, a step takes several times as long as the network's.

    Source: K. Jordan et al., "Muon", 2024; J. Liu et al., "Muon is scalable", 2025,
    arXiv:2502.16982, for the scale.
    """

    def __init__(self, filters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(filters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            weights, lr = group["params"], group["lr"]
            alike = defaultdict(list)  # of one shape: in one tensor
            for weight, update in zip(weights, self._directions(weights), strict=True):
                alike[weight.shape].append((weight, _as_in_memory(update, weight)))
            pairs = [tuple(zip(*members, strict=True)) for members in alike.values()]
            stacks = [torch.stack([u.flatten(1) for u in updates]) for _, updates in pairs]
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
            for (ours, updates), steps in zip(pairs, orthogonalised(stacks), strict=True):
                scale = _ADAMW_RMS * max(steps.shape[1:]) ** 0.5
                torch._foreach_add_(
                    [_as_in_memory(weight, weight) for weight in ours],
                    [step.view(u.shape) for step, u in zip(steps, updates, strict=True)],
                    alpha=-lr * scale,
                )

    def _directions(self, weights: list[nn.Parameter]) -> list[torch.Tensor]:
        """``u`` of each."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        averages = [self.state[weight]["momentum_buffer"] for weight in weights]
        grads = [weight.grad for weight in weights]
        torch._foreach_lerp_(averages, grads, 1 - _MOMENTUM)
        return torch._foreach_lerp(grads, averages, _MOMENTUM)


def filters_and_others(
    weights: list[nn.Parameter],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those of convolutions, which have four dimensions, and the rest, which Muon is not for."""
    return [w for w in weights if w.ndim == 4], [w for w in weights if w.ndim != 4]


def orthogonalised(stacks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``U V^T`` of matrices ``U S V^T``, roughly: singular values become 0.73 to 1.27, but for
    those below a hundredth of the Frobenius norm.

    Three iterations ``x = (a + b x x^T + c (x x^T)^2) x``, each with the best polynomial for what
    the last one left: what takes Newton and Schulz's with one polynomial for all five (N. Amsel et
    al., "The Polar Express", 2025, arXiv:2505.16932, theorem 3.1). All polynomials are of the first
    ``x x^T``, or ``x^T x`` where that is smaller, and so is their product: x itself is multiplied
    twice alone, and matrices of about one shorter side go through the polynomials together.

    Args:
        stacks: ``[N, K, L]`` each.
    """
    alike = defaultdict(list)
    for number, x in enumerate(stacks):
        alike[math.ceil(min(x.shape[1:]) / _SIDE) * _SIDE].append(number)
    results = list(stacks)
    for side, numbers in alike.items():
        # Rows and columns of zeros make a block of their own in every polynomial.
        counts = [len(stacks[number]) for number in numbers]
        grams = stacks[numbers[0]].new_zeros(sum(counts), side, side)
        for gram, number in zip(grams.split(counts), numbers, strict=True):
            x = stacks[number]
            _corner(gram, x).copy_(x.mT @ x if _is_tall(x) else x @ x.mT)
        for factors, number in zip(_inverse_roots(grams).split(counts), numbers, strict=True):
            x = stacks[number]
            factors = _corner(factors, x)
            results[number] = x @ factors if _is_tall(x) else factors @ x
    return results


def _inverse_roots(grams: torch.Tensor) -> torch.Tensor:
    """About ``(x x^T)^(-1/2)`` of symmetric ``x x^T``, ``[N, K, K]``."""
    squared = grams.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-14).view(-1, 1, 1)  # norms
    gram, p, product = grams / squared, None, None
    for a, b, c in _COEFFICIENTS:
        if p is not None:
            gram = p @ gram @ p
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
    return product / squared.sqrt()


def _is_tall(x: torch.Tensor) -> bool:
    return x.shape[1] > x.shape[2]


def _corner(squares: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What belongs to x of squares with sides that may be longer."""
    side = min(x.shape[1:])
    return squares[:, :side, :side]


def _as_in_memory(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Channels last where the weight has them so; Muon does not see the order of columns."""
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return values.permute(0, 2, 3, 1) if last else values
