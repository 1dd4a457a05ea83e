"""Steps of Muon for matrices and filters: moves whose singular values are all about one.

    b = m b + (1 - m) g,  u = (1 - m) g + m b
    w = (1 - lr * decay) w - 0.2 sqrt(max(K, L)) lr * orthogonalised(u)

of weights ``[K, ...]`` as matrices ``[K, L]``. The scale gives a step the root mean square of
AdamW's, so that both have one learning rate. Small matrices, of which a library's products are
slow, are updated by a kernel (csrc/cpu/muon-inl.h) that keeps one in the cache for all of it.

Source: K. Jordan et al., "Muon", 2024; J. Liu et al., "Muon is scalable", 2025, arXiv:2502.16982,
for the scale; N. Amsel et al., "The Polar Express", 2025, arXiv:2505.16932, for the polynomials.
"""

import math
from collections import defaultdict

import torch

_muon_ = torch.ops.imgfast.muon_.default
_DTYPES = (torch.float32, torch.float64)
# Of a x + b x^3 + c x^5, one polynomial after the other: each is the one whose values on the range
# of the one before are nearest to 1 in the maximum, where the first begins with [0.01, 1].
_COEFFICIENTS = (
    (8.093369, -23.62043, 17.446152),
    (3.636586, -2.721927, 0.536546),
    (2.6613, -1.977155, 0.452616),
)
_ADAMW_RMS = 0.2  # of AdamW's steps, in learning rates
_SIDE = 32  # sides of one multiple of it are worked on together
_WORK = 1 << 25  # K L min(K, L) of a matrix that is better left to one thread and the kernel


def muon_(weights, grads, averages, lr, weight_decay=0.0, momentum=0.95):
    """Update weights, and their moving averages of gradients, in place.

    Args:
        weights: float ``[K, ...]`` each, of at least two dimensions and one dtype.
        grads: g, of the weights' shapes.
        averages: b, of the weights' shapes and strides.
        lr: above 0.
        weight_decay: at least 0.
        momentum: m.

    Note:
        The kernel is for weights on the CPU, float32 and float64, dense or channels_last, up to
        some size: 320 x 320, or 128 x 2048. All others take :func:`muon_stock_`. Deterministic: the
        kernel gives the same bits in any number of threads.
    """
    ours, others = [], []
    for triple in zip(weights, grads, averages, strict=True):
        (ours if _fits(triple[0], triple[2]) else others).append(triple)
    if ours:
        some, theirs, kept = (list(tensors) for tensors in zip(*ours, strict=True))
        theirs = [
            grad if grad.stride() == weight.stride() else torch.empty_like(weight).copy_(grad)
            for grad, weight in zip(theirs, some, strict=True)
        ]
        coefficients = [number for polynomial in _COEFFICIENTS for number in polynomial]
        keep, step = 1 - lr * weight_decay, lr * _ADAMW_RMS
        _muon_(some, theirs, kept, momentum, keep, step, coefficients)
        # A backward that still needs the weights as they were is an error, as after any change.
        torch.autograd.graph.increment_version((*some, *kept))
    if others:
        muon_stock_(*zip(*others, strict=True), lr, weight_decay, momentum)


def muon_stock_(weights, grads, averages, lr, weight_decay=0.0, momentum=0.95):
    """The same in stock PyTorch."""
    torch._foreach_lerp_(averages, grads, 1 - momentum)
    alike = defaultdict(list)  # of one shape: in one tensor
    for weight, update in zip(weights, torch._foreach_lerp(grads, averages, momentum), strict=True):
        alike[weight.shape].append((weight, _as_in_memory(update, weight)))
    pairs = [tuple(zip(*members, strict=True)) for members in alike.values()]
    stacks = [torch.stack([u.flatten(1) for u in updates]) for _, updates in pairs]
    torch._foreach_mul_(weights, 1 - lr * weight_decay)
    for (ours, updates), steps in zip(pairs, orthogonalised(stacks), strict=True):
        scale = _ADAMW_RMS * max(steps.shape[1:]) ** 0.5
        torch._foreach_add_(
            [_as_in_memory(weight, weight) for weight in ours],
            [step.view(u.shape) for step, u in zip(steps, updates, strict=True)],
            alpha=-lr * scale,
        )


def _fits(weight, average):
    """Whether the kernel is for a weight: a matrix in memory, and better off there."""
    if not weight.is_cpu or weight.dtype not in _DTYPES or weight.numel() == 0:
        return False
    if weight.numel() * min(len(weight), weight.numel() // len(weight)) > _WORK:
        return False
    return average.stride() == weight.stride() and (
        weight.is_contiguous()
        or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))
    )


def orthogonalised(stacks):
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


def _inverse_roots(grams):
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


def _is_tall(x):
    return x.shape[1] > x.shape[2]


def _corner(squares, x):
    """What belongs to x of squares with sides that may be longer."""
    side = min(x.shape[1:])
    return squares[:, :side, :side]


def _as_in_memory(values, weight):
    """Channels last where the weight has them so; Muon does not see the order of columns."""
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return values.permute(0, 2, 3, 1) if last else values


@torch.library.register_fake("imgfast::muon_")
def _(weights, grads, averages, momentum, keep, step, coefficients):
    pass
