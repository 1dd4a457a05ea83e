"""The algorithm of linear_cross_entropy: logits a tile at a time, never all of them.

A tile is a block of rows by a chunk of classes. The matrix products are torch's; what happens to a
tile's logits while they are in the cache is one kernel on the way forward and one on the way back
(csrc/cpu/cross_entropy_tile-inl.h, csrc/cuda/cross_entropy_launch.cuh). On CUDA nothing here waits
for the device. Each row has a state, in float64 for float64 and else in
float32, which goes from chunk to chunk::

    m = max_c x_c,   s = sum_c exp(x_c - m),   mass = sum_c u_c,   dot = sum_c u_c (x_c - m)

with the x_c, u_c of csrc/cross_entropy.h. The loss is ``mass log(s) - dot``, and the gradient
``mass exp(x_c - m) / s - u_c``. As long as m is -inf, differences are taken from 0 instead.

Source: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from typing import NamedTuple

import torch

from imgfast.ops import autocast
from imgfast.ops.cross_entropy_autograd import MEAN, NONE
from imgfast.ops.margins import Margin, normalize, through_normalize_

_accumulate = torch.ops.imgfast.cross_entropy_tile.default
_gradient_ = torch.ops.imgfast.cross_entropy_tile_gradient_.default

ROWS = 1024  # of a tile, at most
TILE_BYTES = 4 << 20  # of a tile's logits, or of its chunk of weights, for each thread
MAX_THREADS = 16  # for which tiles grow, and for as many they are made on CUDA
KEPT_BYTES = 128 << 20  # logits that forward leaves for backward; the others are computed again


class Options(NamedTuple):
    """What is no tensor."""

    reduction: int
    ignore_index: int
    label_smoothing: float
    float_loss: bool  # the loss is float32 whatever the logits are, as under autocast
    dtype: torch.dtype  # of the matrix products
    margin: Margin | None  # of unit vectors; None leaves the linear layer as it is


class Kept(NamedTuple):
    """What forward leaves for backward, which has to cut the logits in the same way."""

    logits: torch.Tensor  # of the first tiles, one after the other
    tile_bytes: int


@autocast.without
def forward(input, linear_weight, linear_bias, target, weight, options, keep):
    """The loss, and what backward wants.

    Args:
        input, linear_weight, linear_bias: ``[N, D]``, ``[C, D]``, and ``[C]`` or None.
        target: class indices ``[N]`` or probabilities ``[N, C]``.
        weight: ``[C]`` or None.
        keep: whether logits are to be kept for backward.

    Returns:
        loss, stats and :class:`Kept`. stats ``[5, N]``: the state of the rows, and with a margin
        the cosines of their targets.
    """
    head = Head(input, linear_weight, linear_bias, options)
    if keep:
        head.keep(KEPT_BYTES)
    target, row_weight, weight = _prepare(target, weight, head)
    stats = input.new_zeros((5, len(input)), dtype=head.wide)
    state, cosines = stats[:4], stats[4]
    state[0] = -torch.inf

    for c in head.chunks:
        head.load(c)
        for r in head.blocks:
            logits, _ = head.next_tile(r)
            head.product(r, logits)
            if head.margin is not None:
                own = _Own(logits, target[r], c.start)
                cosines[r] = torch.where(own.inside, own.read() / head.margin.scale, cosines[r])
                own.write(head.margin.logits(cosines[r]))
            target_tile, logits = _tile_of(target, logits, r, c)
            _accumulate(
                logits,
                target_tile,
                weight,
                state[:, r],
                c.start,
                head.C,
                options.label_smoothing,
            )

    _, total, mass, dot = state
    loss = mass * total.log() - dot
    if row_weight is not None:
        loss = torch.where(target >= 0, loss, 0)  # a row that does not count may be nan
    if options.reduction != NONE:
        loss = loss.sum()
    if options.reduction == MEAN:
        loss = loss / _divisor(target, row_weight)
    return loss.to(head.wide if options.float_loss else options.dtype), stats, head.kept


@autocast.without
def backward(
    grad_loss, input, linear_weight, linear_bias, target, weight, stats, kept, options, needs
):
    """The gradients at input, linear_weight and linear_bias, None where ``needs`` is false.

    ``kept`` is what forward returned, or None; its logits are overwritten with gradients.
    """
    need_input, need_weight, need_bias = needs
    head = Head(input, linear_weight, linear_bias, options, kept)
    target, row_weight, weight = _prepare(target, weight, head)
    state, cosines = stats[:4], stats[4]
    grad_rows = grad_loss.to(head.wide)
    if options.reduction == MEAN:
        grad_rows = grad_rows / _divisor(target, row_weight)
    grad_rows = grad_rows.expand(len(input))
    if row_weight is not None:
        grad_rows = torch.where(target >= 0, grad_rows, 0)  # not inf * 0 if no row counts

    grad_input = torch.empty_like(head.x, dtype=head.wide) if need_input else None
    grad_weight = torch.empty_like(linear_weight) if need_weight else None
    grad_bias = torch.empty_like(linear_bias) if need_bias else None
    # A single product may be written as it comes; what goes on from there is float32 at least.
    direct = linear_weight.dtype == head.dtype and (
        head.dtype == head.wide or (len(head.blocks) == 1 and head.margin is None)
    )
    for c in head.chunks:
        head.load(c)
        if need_weight:
            of_weight = grad_weight[c]
            if not direct:
                of_weight = torch.empty_like(of_weight, dtype=head.wide)
        of_bias = 0
        for r in head.blocks:
            g, is_kept = head.next_tile(r)
            if not is_kept:
                head.product(r, g)
            if head.margin is not None:
                own = _Own(g, target[r], c.start)
                own.write(head.margin.logits(cosines[r]))
            target_tile, logits = _tile_of(target, g, r, c)
            _gradient_(
                logits,
                target_tile,
                weight,
                state[:, r],
                grad_rows[r],
                c.start,
                head.C,
                options.label_smoothing,
            )
            if logits is not g:
                g.copy_(logits)
            if head.margin is not None:
                own.write(own.read() * head.margin.slope(cosines[r]))
            if need_bias:
                of_bias = of_bias + g.sum(0, dtype=head.wide)
            if need_weight:
                add_product(of_weight, g.t(), head.x[r], first=r.start == 0)
            if need_input:
                add_product(grad_input[r], g, head.w, first=c.start == 0)
        if need_weight:
            if head.margin is not None:
                through_normalize_(of_weight, linear_weight[c], head.w_norm)
            if not direct:
                grad_weight[c] = of_weight
        if need_bias:
            grad_bias[c] = of_bias
    if need_input:
        if head.margin is not None:
            through_normalize_(grad_input, input, head.x_norm, head.margin.scale)
        grad_input = grad_input.to(input.dtype)
    return grad_input, grad_weight, grad_bias


class Head:
    """The linear layer, a tile at a time; with a margin, of unit vectors."""

    def __init__(self, input, linear_weight, linear_bias, options, kept=None):
        (N, D), (self.C, _) = input.shape, linear_weight.shape
        self.linear_weight, self.linear_bias = linear_weight, linear_bias
        self.dtype, self.ignore_index = options.dtype, options.ignore_index
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.margin = options.margin
        self.x = input
        if self.margin is not None:
            self.x, self.x_norm = normalize(input.to(self.wide), self.margin.scale)
        self.x = self.x.to(self.dtype)  # [N, D]
        self.blocks = _split(N, ROWS)
        if kept is None:
            threads = MAX_THREADS if input.is_cuda else min(torch.get_num_threads(), MAX_THREADS)
            kept = Kept(self.x.new_empty(0), TILE_BYTES * threads)
        self.kept = kept
        self.taken = 0  # logits of the kept
        tile = kept.tile_bytes // self.dtype.itemsize
        self.chunks = _split(self.C, max(tile // max(self.blocks[0].stop, D), 1))
        self.buffer = None

    def keep(self, most):
        """Makes room for at most so many bytes of logits."""
        size = min(most // self.dtype.itemsize, len(self.x) * self.C)
        self.kept = self.kept._replace(logits=self.x.new_empty(size))

    def load(self, c):
        """Goes on to the classes of the slice ``c``."""
        self.w = self.linear_weight[c]
        if self.margin is not None:
            self.w, self.w_norm = normalize(self.w.to(self.wide))
        self.w = self.w.to(self.dtype)  # [c, D]
        self.b = None if self.linear_bias is None else self.linear_bias[c].to(self.dtype)

    def next_tile(self, r):
        """Memory ``[r, c]`` for logits, and whether it is of those that are kept; all others
        overwrite one another."""
        shape = r.stop - r.start, len(self.w)
        size = shape[0] * shape[1]
        is_kept = self.taken + size <= len(self.kept.logits)
        if is_kept:
            tile = self.kept.logits[self.taken : self.taken + size]
            self.taken += size
        else:
            if self.buffer is None:
                self.buffer = self.x.new_empty(self.blocks[0].stop * self.chunks[0].stop)
            tile = self.buffer[:size]
        return tile.view(shape), is_kept

    def product(self, r, out):
        if self.b is None:
            torch.mm(self.x[r], self.w.t(), out=out)
        else:
            torch.addmm(self.b, self.x[r], self.w.t(), out=out)


def _split(size, most):
    """Slices of at most ``most`` that cover ``size``, as even as can be; the first is a longest."""
    step = -(-size // -(-size // most))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _prepare(target, weight, head):
    """Class targets with -1 for those that do not count, and the w_y of each row (None for
    probabilities); and the weight in the state's dtype."""
    if weight is not None:
        weight = weight.to(head.wide)
    if target.is_floating_point():
        return target, None, weight
    counts = target != head.ignore_index
    outside = counts & ((target < 0) | (target >= head.C))
    if target.is_cuda:  # as torch's: an assertion of the device, which is not waited for
        torch._assert_async(~outside.any(), "Target is out of bounds.")
    elif outside.any():
        raise IndexError(f"Target {target[outside][0].item()} is out of bounds.")
    row_weight = counts.to(head.wide)
    if weight is not None:
        row_weight = row_weight * weight[torch.where(counts, target, 0)]
    return torch.where(counts, target, -1), row_weight, weight


def _divisor(target, row_weight):
    """Of the mean."""
    return len(target) if row_weight is None else row_weight.sum()


def _tile_of(target, logits, r, c):
    """The tile's targets, and its logits for the kernels: probabilities share their dtype."""
    if target.dim() == 1:
        return target[r], logits
    target = target[r, c]
    wider = torch.promote_types(target.dtype, logits.dtype)
    return target.to(wider), logits.to(wider)


class _Own:
    """What a tile holds of each row's own class; ``inside`` says of which rows it does."""

    def __init__(self, tile, target, first_class):
        self.tile = tile
        column = target - first_class
        self.inside = (target >= 0) & (column >= 0) & (column < tile.shape[1])
        self.column = torch.where(self.inside, column, 0).unsqueeze(1)

    def read(self):
        """``[rows]``, float32 or float64; of rows outside, of another class."""
        own = self.tile.gather(1, self.column).squeeze(1)
        return own.to(torch.promote_types(own.dtype, torch.float32))

    def write(self, values):
        """Changes nothing in rows outside."""
        own = self.tile.gather(1, self.column)
        values = torch.where(self.inside.unsqueeze(1), values.unsqueeze(1).to(own.dtype), own)
        self.tile.scatter_(1, self.column, values)


def add_product(total, a, b, first):
    """``total += a @ b``, or ``total = a @ b`` for the first; total may be wider than a and b."""
    if total.dtype == a.dtype:
        if first:
            torch.mm(a, b, out=total)
        else:
            total.addmm_(a, b)
    elif first:
        total.copy_(a @ b)
    else:
        total.add_(a @ b)
