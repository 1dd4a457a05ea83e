"""The two layers of a transformer's feed-forward half, with a threshold and a square in between.

    z_n = U x_n    h_n = z_n where z_n > threshold, else 0    y_n = r_n + V (h_n h_n)

With a threshold of 0 that is the square of ReLU (D. So et al., "Primer", 2021, arXiv:2109.08668),
with a larger one that of a JumpReLU (N. B. Erichson et al., 2019, arXiv:1904.03750), whose jump the
gradient does not see. Where h is zero, five of the six matrix products of a training step have
nothing to add: y, the gradients at h and at x, and those at both weights. The kernel
(csrc/cpu/feed_forward-inl.h) walks along lists of what is not zero, which are all that is kept.
"""

import torch
import torch.nn.functional as F

from imgfast.ops import autocast

_forward = torch.ops.imgfast.feed_forward.default
_backward = torch.ops.imgfast.feed_forward_backward.default
_below_autograd = torch._C._AutoDispatchBelowAutograd
_DTYPES = (torch.float32, torch.float64)
_ROWS, _HIDDEN = 48, 64  # of a tile: csrc/cpu/feed_forward.h


def feed_forward(x, up, down, threshold=0.0, residual=None):
    """``r + h^2 V^T`` with h those of ``x U^T`` that exceed the threshold, and 0 for the others.

    Args:
        x: float ``[..., D]``.
        up: U, ``[H, D]``, of x's dtype.
        down: V, ``[D, H]``.
        threshold: at least 0.
        residual: r, as x; None for zeros.

    Returns:
        ``[..., D]``.

    Note:
        The kernel is for the CPU, float32 and float64, without autocast; all else takes
        :func:`feed_forward_stock`. What a zero of h would be multiplied by is not read: a weight
        that is not finite shows only where its hidden number counts. No second derivatives.
        Deterministic: the same bits in any number of threads.
    """
    if not (x.is_cpu and x.dtype in _DTYPES) or autocast.is_active(x):
        return feed_forward_stock(x, up, down, threshold, residual)
    rows, residual = (
        t if t is None else t.flatten(0, -2) if t.dim() > 1 else t.unsqueeze(0)
        for t in (x, residual)
    )
    y = _FeedForward.apply(rows, up.contiguous(), down.contiguous(), threshold, residual)
    return y.view(x.shape)


def feed_forward_stock(x, up, down, threshold=0.0, residual=None):
    """The same in stock PyTorch."""
    y = F.linear(F.threshold(F.linear(x, up), threshold, 0.0).square(), down)
    return y if residual is None else residual + y


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up, down, threshold, residual):
        if residual is not None:
            residual = residual.contiguous()
        with _below_autograd():
            y, h = _forward(x.contiguous(), up, down, threshold, residual)
        ctx.save_for_backward(x, up, down, h)
        ctx.adds = residual is not None
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        with _below_autograd():
            x, *others = ctx.saved_tensors
            grads = _backward(grad_y.contiguous(), x.contiguous(), *others)
            return *grads, None, grad_y if ctx.adds else None


@torch.library.register_fake("imgfast::feed_forward")
def _(x, up, down, threshold, residual=None):
    units, tiles = -(-len(x) // _ROWS), -(-len(up) // _HIDDEN)
    tile_bytes = 4 * _ROWS + _ROWS * _HIDDEN * (x.dtype.itemsize + 4)
    return torch.empty_like(x), x.new_empty(units, tiles * tile_bytes, dtype=torch.uint8)


@torch.library.register_fake("imgfast::feed_forward_backward")
def _(grad_y, x, up, down, h):
    return torch.empty_like(x), torch.empty_like(up), torch.empty_like(down)
