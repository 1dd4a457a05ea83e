"""Derivatives and fakes of the cross_entropy operators.

Eager calls go through a ctx-style autograd.Function, which costs less than half of what
torch.library's registration does per call; torch.compile, export and direct calls of
torch.ops.imgfast.cross_entropy go through the registration. Both end in the same two operators.
"""

from typing import NamedTuple

import torch

from imgfast.ops.cross_entropy_stock import class_dim, logsumexp, rows_of, wide_dtype

_forward = torch.ops.imgfast.cross_entropy.default
_backward = torch.ops.imgfast.cross_entropy_backward.default
_with_gradient = torch.ops.imgfast.cross_entropy_with_gradient.default._op  # without Python's part
_below_autograd = torch._C._AutoDispatchBelowAutograd
_in_functorch = torch._C._are_functorch_transforms_active
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # by is_grads_batched

NONE, MEAN, SUM = 0, 1, 2  # as in csrc/cross_entropy.h
_WIDE = {torch.float32, torch.float64}
SMALL = 1 << 16  # logits up to which a call costs more than the gradient, which then comes with it


class Options(NamedTuple):
    """What is no tensor, in the order of the operators' schemas; backward takes the first five."""

    reduction: int
    ignore_index: int
    label_smoothing: float
    lam: float  # share of the first of a pair of targets
    z_loss: float
    float_loss: bool
    correct: bool


def run(input, target, other, weight, options, with_lse=False, grad_in_forward=False):
    """The kernel, eagerly; everything has been checked. ``other`` is the second target of a pair.

    Returns:
        The loss, and stats, which torch.ops.imgfast.cross_entropy describes, or None if neither
        log-sum-exps nor correctness are asked for.
    """
    if torch.is_grad_enabled():
        rest = target.requires_grad or (weight is not None and weight.requires_grad)
        if input.requires_grad or rest:
            if not (rest or with_lse) and (
                grad_in_forward
                or (
                    input.numel() <= SMALL
                    and input.is_cpu
                    and options.reduction != NONE
                    and input.dtype in _WIDE  # others would be rounded before they are scaled
                )
            ):
                result = _apply_with_gradient(
                    input, target, other, weight, options, grad_in_forward
                )
            else:
                result = _CrossEntropy.apply(input, target, other, weight, options, with_lse)
            return result if with_lse or options.correct else (result, None)
    with _below_autograd():
        return _forward(input, target, other, weight, *options)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, other, weight, options, with_lse):
        with _below_autograd():
            loss, stats = _forward(input, target, other, weight, *options)
        ctx.options = options
        ctx.save_for_backward(input, target, other, weight, stats)
        if not (with_lse or options.correct):
            return loss
        if with_lse:
            ctx.set_materialize_grads(False)
        else:
            ctx.mark_non_differentiable(stats)
        return loss, stats

    @staticmethod
    def backward(ctx, grad_loss, grad_stats=None):
        return *_gradients(ctx, grad_loss, grad_stats), None, None


class _CrossEntropyWithGradient(torch.autograd.Function):
    """Computes the gradient at input with the loss, for the first pass backward; for others too
    unless this is ``once`` only. It calls as little as it can: that is what it is for."""

    @staticmethod
    def forward(ctx, input, target, other, weight, options, once):
        loss, stats, ctx.grad_input = _with_gradient(input, target, other, weight, *options)
        ctx.options = options
        if not once:
            ctx.save_for_backward(input, target, other, weight)
        ctx.once = once
        if not options.correct:
            return loss
        ctx.mark_non_differentiable(stats)
        return loss, stats

    @staticmethod
    def backward(ctx, grad_loss, _=None):
        if torch.is_grad_enabled() or _in_functorch():
            if ctx.once:
                raise RuntimeError(
                    "cross_entropy: the gradient of grad_in_forward is a constant; call with "
                    "grad_in_forward=False for create_graph"
                )
            at_input, *_ = gradient_reference(grad_loss, None, *ctx.saved_tensors, ctx.options)
            return at_input(), None, None, None, None, None
        grad_input, ctx.grad_input = ctx.grad_input, None
        if grad_input is None:  # it has been given away
            if ctx.once:
                raise RuntimeError(
                    "cross_entropy: grad_in_forward keeps the gradient for one backward pass; call "
                    "with grad_in_forward=False to go backward twice"
                )
            *_, grad_input = _with_gradient(*ctx.saved_tensors, *ctx.options)  # the same bits
        return _scale_(grad_input, grad_loss), None, None, None, None, None


# Without what Function.apply does for torch.func, under which nothing comes here.
_apply_with_gradient = super(torch.autograd.Function, _CrossEntropyWithGradient).apply


def _scale_(grad_input, grad_loss):
    """From the gradient 1 at the loss to another one."""
    if _is_batched(grad_loss):
        return grad_input * (grad_loss.unsqueeze(1) if grad_loss.dim() > 0 else grad_loss)
    if grad_loss.dim() > 0:
        grad_input.mul_(grad_loss.unsqueeze(1))
    # No number is fetched from a GPU. On the CPU tolist() is a shorter way to it than item().
    elif grad_loss.is_cuda or grad_loss.tolist() != 1:
        grad_input.mul_(grad_loss)
    return grad_input


def _gradients(ctx, grad_loss, grad_stats):
    """At input, target, the other target and weight. Differentiable if gradients are being
    recorded.

    What is made of stats is m + log(s), the log-sum-exp: m stands for it, and its gradient is all
    that counts of grad_stats.
    """
    input, target, other, weight, stats = ctx.saved_tensors
    needs_input, needs_target, _, needs_weight = ctx.needs_input_grad[:4]
    if grad_loss is None:
        grad_loss = input.new_zeros(rows_of(input) if ctx.options.reduction == NONE else ())
    grad_lse = None
    if grad_stats is not None:
        grad_lse = grad_stats[: input.numel() // input.shape[class_dim(input)]]
    grad_input = None
    if needs_input and not (torch.is_grad_enabled() or _in_functorch()):
        with _below_autograd():
            grad_input = _backward(
                grad_loss, grad_lse, input, target, other, weight, stats, *ctx.options[:5]
            )
        if not (needs_target or needs_weight):
            return grad_input, None, None, None
        needs_input = False
    at_input, at_target, at_weight = gradient_reference(
        grad_loss, grad_lse, input, target, other, weight, ctx.options
    )
    if needs_input:
        grad_input = at_input()
    return (
        grad_input,
        at_target() if needs_target else None,
        None,
        at_weight() if needs_weight else None,
    )


def gradient_reference(grad_loss, grad_lse, input, target, other, weight, options):
    """The gradients as compositions of torch's operators, for further derivatives.

    With the names of csrc/cross_entropy.h, g the gradient at a row's loss, z that at its lse^2 and
    h that at its lse::

        dl / dx_c = (g sum_k u_k + 2 z lse + h) softmax(x)_c - g u_c
        dl / dt_c = -g w_c (1 - e) log_softmax(x)_c
        dl / dw_c = -g ((1 - e) t_c + e / C) log_softmax(x)_c

    Returns:
        Three functions without arguments, which compute the gradient at input, target and weight.
        The latter two exist for probability targets.
    """
    dim = class_dim(input)
    classes = input.shape[dim]
    mean = options.reduction == MEAN
    probabilities = target.shape == input.shape
    wide = wide_dtype(input)
    logp = torch.log_softmax(input, dim, wide)
    w = None
    if weight is not None:
        w = weight.to(wide).reshape([-1 if d == dim else 1 for d in range(input.dim())])
    g = grad_loss.to(wide)
    if options.reduction == NONE:
        g = g.unsqueeze(dim)
    share, spread = 1 - options.label_smoothing, options.label_smoothing / classes

    if probabilities:
        t = target.to(wide) * share + spread
        if mean:
            g = g / (input.numel() // classes)
        g_u = g * (t if w is None else t * w)
        g_square = g
    else:
        g_u, g_square = 0, 0
        lams = (1.0,) if other is None else (options.lam, 1 - options.lam)
        for y, lam in zip((target, other), lams, strict=False):
            counts = (y != options.ignore_index).unsqueeze(dim)
            y = torch.where(counts, y.unsqueeze(dim), 0)
            w_y = counts.to(wide)
            if w is not None:
                w_y = w_y * weight.to(wide)[y]
            u = torch.zeros_like(logp).scatter(dim, y, w_y * share)
            if spread > 0:
                u = u + counts * (spread if w is None else spread * w)
            # Where, so that it is not inf * 0 if every row is ignored.
            g_u = g_u + torch.where(counts, lam * g / (w_y.sum() if mean else 1), 0) * u
            g_square = g_square + torch.where(counts, lam * g / (counts.sum() if mean else 1), 0)

    def at_input():
        total = g_u.sum(dim, keepdim=True)
        if options.z_loss > 0:
            total = total + 2 * options.z_loss * g_square * logsumexp(input, keepdim=True)
        if grad_lse is not None:
            total = total + grad_lse.to(wide).view(rows_of(input)).unsqueeze(dim)
        return (total * logp.exp() - g_u).to(input.dtype)

    def at_target():
        grad = -g * share * logp
        return (grad if w is None else grad * w).to(target.dtype)

    def at_weight():
        others = [d for d in range(input.dim()) if d != dim]
        grad = -g * t * logp
        return (grad.sum(others) if others else grad).to(weight.dtype)

    return at_input, at_target, at_weight


@torch.library.register_fake("imgfast::cross_entropy")
def _(
    input,
    target,
    other_target,
    weight,
    reduction,
    ignore_index,
    label_smoothing,
    lam,
    z_loss,
    float_loss,
    correct,
):
    wide = wide_dtype(input)
    rows = rows_of(input)
    loss = input.new_empty(
        rows if reduction == NONE else (), dtype=wide if float_loss else input.dtype
    )
    count = 1
    for size in rows:
        count = count * size
    return loss, input.new_empty(((3 if correct else 2) * count + 4,), dtype=wide)


@torch.library.register_fake("imgfast::cross_entropy_with_gradient")
def _(input, *arguments):
    return *torch.ops.imgfast.cross_entropy(input, *arguments), torch.empty_like(input)


@torch.library.register_fake("imgfast::cross_entropy_backward")
def _(grad_loss, grad_lse, input, *arguments):
    return torch.empty_like(input)


def _setup_forward(ctx, inputs, output):
    input, target, other, weight, *options = inputs
    ctx.set_materialize_grads(False)
    ctx.options = Options(*options)
    ctx.save_for_backward(input, target, other, weight, output[1])


def _derivative_forward(ctx, grad_loss, grad_stats):
    return *_gradients(ctx, grad_loss, grad_stats), *[None] * 7


def _derivative_backward(ctx, grad):
    raise NotImplementedError(
        "cross_entropy_backward has no derivative of its own: differentiate imgfast.cross_entropy "
        "with create_graph=True"
    )


torch.library.register_autograd(
    "imgfast::cross_entropy", _derivative_forward, setup_context=_setup_forward
)
torch.library.register_autograd("imgfast::cross_entropy_backward", _derivative_backward)
