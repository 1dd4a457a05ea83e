"""The normalised positions of a sequence and, number by number, some others that a table names.

    m_nt = g norm(x_nt)
    y_nt = m_nt + sum over j of w_j m_{n p_jt},  no term where p_jt is -1

``m`` is :func:`torch.nn.functional.layer_norm` without a bias, and y is m where there are no
neighbours. With the positions of a picture in raster order and a table of those above and to the
left, a causal depthwise convolution. Stock PyTorch passes over the sequences some four times for
each neighbour, forward and backward, and some more for the norm; the kernel
(csrc/cpu/neighbour_mix-inl.h) passes once.
"""

import torch
import torch.nn.functional as F

from imgfast.ops import autocast

_forward = torch.ops.imgfast.neighbour_mix.default
_backward = torch.ops.imgfast.neighbour_mix_backward.default
_below_autograd = torch._C._AutoDispatchBelowAutograd
_DTYPES = (torch.float32, torch.float64)
_MOST_NEIGHBOURS = 16  # csrc/cpu/neighbour_mix.h


def neighbour_mix(x, gain, weight=None, places=None):
    """Normalise the positions of whole sequences and mix them.

    Args:
        x: float ``[N, T, D]``: sequences, positions, numbers of each.
        gain: g, ``[D]``, of x's dtype.
        weight: ``[J, D]``, for each neighbour. None: there are none.
        places: int64 ``[J, T]``, on x's device: where the neighbours of each position are, -1 for
            none.

    Returns:
        y, ``[N, T, D]``, and x itself, to go on with: a residual connection that takes this x has
        its gradient added in the same pass.

    Note:
        The kernel is for the CPU, float32 and float64, up to 16 neighbours, without autocast; all
        else takes :func:`neighbour_mix_stock`. No second derivatives. Deterministic: the same bits
        in any number of threads.
    """
    if weight is None:
        weight = x.new_empty(0, x.shape[-1])
        places = torch.empty(0, x.shape[1], dtype=torch.int64, device=x.device)
    fits = x.is_cpu and x.dtype in _DTYPES and len(weight) <= _MOST_NEIGHBOURS
    if not fits or autocast.is_active(x):
        return neighbour_mix_stock(x, gain, weight, places)
    return _NeighbourMix.apply(
        x.contiguous(), gain.contiguous(), weight.contiguous(), places.contiguous()
    )


def neighbour_mix_stock(x, gain, weight=None, places=None):
    """The same in stock PyTorch."""
    y = normed = F.layer_norm(x, gain.shape, gain)
    if weight is not None:
        padded = F.pad(normed, (0, 0, 0, 1))  # number -1, the last row, is zero
        for factor, place in zip(weight, places % padded.shape[1], strict=True):
            y = torch.addcmul(y, padded.index_select(1, place), factor)
    return y, x


class _NeighbourMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *others):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *others)
        with _below_autograd():
            return _forward(x, *others), x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y, grad_too):
        if grad_y is None:
            return grad_too, None, None, None
        if grad_too is not None:
            grad_too = grad_too.contiguous()
        with _below_autograd():
            return *_backward(grad_y.contiguous(), grad_too, *ctx.saved_tensors), None


@torch.library.register_fake("imgfast::neighbour_mix")
def _(x, gain, weight, places):
    return torch.empty_like(x)


@torch.library.register_fake("imgfast::neighbour_mix_backward")
def _(grad_y, grad_too, x, gain, weight, places):
    return torch.empty_like(x), torch.empty_like(gain), torch.empty_like(weight)
