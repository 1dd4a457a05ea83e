"""Kernel or stock on CUDA, where no figure can be known beforehand: the first call of each kind is
timed both ways, and the faster one is remembered.

A call that may not be timed (graph capture, deterministic algorithms, a dispatch mode) is stock's
until then. This module knows nothing of operators: kinds and callables go in, a choice comes out.
"""

import torch

from imgfast.ops import timing

HAS_KERNELS = torch._C._dispatch_has_kernel_for_dispatch_key("imgfast::cross_entropy", "CUDA")

_wins = {}  # whether the kernel is the faster one, by kind of call


def kernel_wins(kind, run_kernel, run_stock, tensors) -> bool:
    """Whether ``run_kernel(*tensors)`` is the faster one of two that return equal losses.

    Args:
        kind: hashable; what the speed depends on, and what tells devices and gradients apart.
        tensors: of the call; None where there is none.
    """
    wins = _wins.get(kind)
    if wins is None and timing.possible(*(t for t in tensors if t is not None)):
        seconds = timing.times({"imgfast": run_kernel, "stock": run_stock}, tensors)
        wins = _wins[kind] = next(iter(seconds)) == "imgfast"
    return bool(wins)


def is_timed(kind) -> bool:
    """Whether what :func:`kernel_wins` says of a kind of call is a clock's word."""
    return kind in _wins


def needs_grad(tensors):
    """For the kind of a call: which of its tensors require gradients, if any are recorded."""
    return torch.is_grad_enabled() and tuple(t is not None and t.requires_grad for t in tensors)
