"""Muon for convolutions and matrices: steps whose singular values are all about one."""

from __future__ import annotations

from collections import defaultdict

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
            lr, decay = group["lr"], group["weight_decay"]
            alike = defaultdict(list)  # of one shape: worked on together
            for weight in group["params"]:
                alike[weight.shape].append(weight)
            for weights in alike.values():
                updates = orthogonalised(torch.stack(self._directions(weights)))
                scale = _ADAMW_RMS * max(updates.shape[1:]) ** 0.5
                steps = [update.view_as(w) for w, update in zip(weights, updates, strict=True)]
                torch._foreach_mul_(weights, 1 - lr * decay)
                torch._foreach_add_(weights, steps, alpha=-lr * scale)

    def _directions(self, weights: list[nn.Parameter]) -> list[torch.Tensor]:
        """``u`` of each, as a matrix."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        averages = [self.state[weight]["momentum_buffer"] for weight in weights]
        grads = [weight.grad for weight in weights]
        torch._foreach_lerp_(averages, grads, 1 - _MOMENTUM)
        return [u.flatten(1) for u in torch._foreach_lerp(grads, averages, _MOMENTUM)]


def filters_and_others(
    weights: list[nn.Parameter],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those of convolutions, which have four dimensions, and the rest, which Muon is not for."""
    return [w for w in weights if w.ndim == 4], [w for w in weights if w.ndim != 4]


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """``U V^T`` of matrices ``U S V^T``, ``[N, K, L]``, roughly: singular values become 0.73 to
    1.27, but for those below a hundredth of the Frobenius norm.

    Three iterations ``x = (a + b x x^T + c (x x^T)^2) x``, each with the best polynomial for what
    the last one left: what takes Newton and Schulz's with one polynomial for all five (N. Amsel et
    al., "The Polar Express", 2025, arXiv:2505.16932, theorem 3.1). All polynomials are of the first
    ``x x^T``, and so is their product: x itself, which is longer, is multiplied twice alone.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    gram, p, product = x @ x.mT, None, None
    for a, b, c in _COEFFICIENTS:
        if p is not None:
            gram = p @ gram @ p
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
    x = product @ x
    return (x.mT if tall else x).contiguous()
