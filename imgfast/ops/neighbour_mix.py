"""Every position of a sequence and, number by number, some others that a table names.

    y_nt = x_nt + sum over j of w_j x_{n p_jt},  no term where p_jt is -1

With the positions of a picture in raster order and a table of those above and to the left, a causal
depthwise convolution. Stock PyTorch passes over the sequences some four times for each neighbour,
forward and backward; the kernel (csrc/cpu/neighbour_mix-inl.h) passes once.
"""

import torch
import torch.nn.functional as F

from imgfast.ops import autocast

_forward = torch.ops.imgfast.neighbour_mix.default
_backward = torch.ops.imgfast.neighbour_mix_backward.default
_below_autograd = torch._C._AutoDispatchBelowAutograd
_DTYPES = (torch.float32, torch.float64)
_MOST_NEIGHBOURS, _MIXED_AT_ONCE = 16, 4  # csrc/cpu/neighbour_mix.h


def neighbour_mix(x, weight, places):
    """Mix the positions of whole sequences.

    Args:
        x: float ``[N, T, D]``: sequences, positions, numbers of each.
        weight: ``[J, D]``, of x's dtype, for each neighbour.
        places: int64 ``[J, T]``, on x's device: where the neighbours of each position are, -1 for
            none.

    Returns:
        ``[N, T, D]``.

    Note:
        The kernel is for the CPU, float32 and float64, up to 16 neighbours, without autocast; all
        else takes :func:`neighbour_mix_stock`. No second derivatives. Deterministic: the same bits
        in any number of threads.
    """
    fits = x.is_cpu and x.dtype in _DTYPES and len(weight) <= _MOST_NEIGHBOURS
    if not fits or autocast.is_active(x):
        return neighbour_mix_stock(x, weight, places)
    return _NeighbourMix.apply(x.contiguous(), weight.contiguous(), places.contiguous())


def neighbour_mix_stock(x, weight, places):
    """The same in stock PyTorch."""
    padded = F.pad(x, (0, 0, 0, 1))  # number -1, the last row, is zero
    for factor, place in zip(weight, places % padded.shape[1], strict=True):
        x = torch.addcmul(x, padded.index_select(1, place), factor)
    return x


class _NeighbourMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, places):
        ctx.save_for_backward(x, weight, places)
        with _below_autograd():
            return _forward(x, weight, places)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        with _below_autograd():
            grad_x, parts = _backward(grad_y.contiguous(), *ctx.saved_tensors)
        return grad_x, parts.sum(0), None


@torch.library.register_fake("imgfast::neighbour_mix")
def _(x, weight, places):
    return torch.empty_like(x)


@torch.library.register_fake("imgfast::neighbour_mix_backward")
def _(grad_y, x, weight, places):
    units = -(-len(x) // _MIXED_AT_ONCE)
    return torch.empty_like(x), x.new_empty(units, *weight.shape)
