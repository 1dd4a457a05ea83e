"""Derivatives and fakes of the cross_entropy operators.

Eager calls go through a ctx-style autograd.Function, which costs less than half of what
torch.library's registration does per call; torch.compile, export and direct calls of
torch.ops.imgfast.cross_entropy go through the registration. Both end in the same two operators.
"""

import torch

_forward = torch.ops.imgfast.cross_entropy.default
_backward = torch.ops.imgfast.cross_entropy_backward.default
_below_autograd = torch._C._AutoDispatchBelowAutograd

NONE, MEAN, SUM = 0, 1, 2  # as in csrc/cross_entropy.h


def run(input, target, weight, reduction, ignore_index, label_smoothing, float_loss):
    """The kernel, eagerly; everything has been checked."""
    if torch.is_grad_enabled() and (
        input.requires_grad or target.requires_grad or (weight is not None and weight.requires_grad)
    ):
        return _CrossEntropy.apply(
            input, target, weight, reduction, ignore_index, label_smoothing, float_loss
        )
    with _below_autograd():
        return _forward(
            input, target, weight, reduction, ignore_index, label_smoothing, float_loss
        )[0]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, weight, reduction, ignore_index, label_smoothing, float_loss):
        with _below_autograd():
            loss, stats = _forward(
                input, target, weight, reduction, ignore_index, label_smoothing, float_loss
            )
        ctx.options = (reduction, ignore_index, label_smoothing)
        ctx.save_for_backward(input, target, weight, stats)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        return *_gradients(ctx, grad_loss), None, None, None, None


def _gradients(ctx, grad_loss):
    """At input, target and weight. Differentiable if gradients are being recorded."""
    input, target, weight, stats = ctx.saved_tensors
    reference = ctx.needs_input_grad[:3]
    grad_input = None
    if reference[0] and not (
        torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    ):
        with _below_autograd():
            grad_input = _backward(grad_loss, input, target, weight, stats, *ctx.options)
        if not (reference[1] or reference[2]):
            return grad_input, None, None
        reference = (False, *reference[1:])
    formulas = gradient_reference(grad_loss, input, target, weight, *ctx.options)
    grads = [formulas[i]() if reference[i] else None for i in range(3)]
    return grad_input if grads[0] is None else grads[0], *grads[1:]


def gradient_reference(grad_loss, input, target, weight, reduction, ignore_index, label_smoothing):
    """The gradients as compositions of torch's operators, for further derivatives.

    With the names of csrc/cross_entropy.h, and g the gradient at a row's loss::

        dl / dx_c = g ((sum_k u_k) softmax(x)_c - u_c)
        dl / dt_c = -g w_c (1 - e) log_softmax(x)_c
        dl / dw_c = -g ((1 - e) t_c + e / C) log_softmax(x)_c

    Returns:
        Three functions without arguments, which compute the gradient at input, target and weight.
        The latter two exist for probability targets.
    """
    dim = 0 if input.dim() == 1 else 1
    classes = input.shape[dim]
    probabilities = target.shape == input.shape
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    logp = torch.log_softmax(input, dim, wide)
    w = None
    if weight is not None:
        w = weight.to(wide).reshape([-1 if d == dim else 1 for d in range(input.dim())])
    g = grad_loss.to(wide)
    if reduction == NONE:
        g = g.unsqueeze(dim)
    spread = label_smoothing / classes

    if probabilities:
        t = target.to(wide) * (1 - label_smoothing) + spread
        u = t if w is None else t * w
        if reduction == MEAN:
            g = g / (input.numel() // classes)
    else:
        counts = (target != ignore_index).unsqueeze(dim)
        y = torch.where(counts, target.unsqueeze(dim), 0)
        w_y = counts.to(wide)
        if w is not None:
            w_y = w_y * weight.to(wide)[y]
        u = torch.zeros_like(logp).scatter(dim, y, w_y * (1 - label_smoothing))
        if label_smoothing > 0:
            u = u + counts * (spread if w is None else spread * w)
        if reduction == MEAN:
            g = g / w_y.sum()
        g = torch.where(counts, g, 0)  # not inf * 0 if every row is ignored

    def at_input():
        return (g * (u.sum(dim, keepdim=True) * logp.exp() - u)).to(input.dtype)

    def at_target():
        grad = -g * (1 - label_smoothing) * logp
        return (grad if w is None else grad * w).to(target.dtype)

    def at_weight():
        others = [d for d in range(input.dim()) if d != dim]
        grad = -g * t * logp
        return (grad.sum(others) if others else grad).to(weight.dtype)

    return at_input, at_target, at_weight


@torch.library.register_fake("imgfast::cross_entropy")
def _(input, target, weight, reduction, ignore_index, label_smoothing, float_loss):
    rows = input.shape[:1] + input.shape[2:] if input.dim() > 1 else ()
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    loss = input.new_empty(
        rows if reduction == NONE else (), dtype=wide if float_loss else input.dtype
    )
    count = 1
    for size in rows:
        count = count * size
    return loss, input.new_empty((2 * count + 1,), dtype=wide)


@torch.library.register_fake("imgfast::cross_entropy_backward")
def _(grad_loss, input, target, weight, stats, reduction, ignore_index, label_smoothing):
    return torch.empty_like(input)


def _setup_forward(ctx, inputs, output):
    input, target, weight, reduction, ignore_index, label_smoothing, _ = inputs
    _, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.options = (reduction, ignore_index, label_smoothing)
    ctx.save_for_backward(input, target, weight, stats)


def _derivative_forward(ctx, grad_loss, grad_stats):
    return *_gradients(ctx, grad_loss), None, None, None, None


def _derivative_backward(ctx, grad):
    raise NotImplementedError(
        "cross_entropy_backward has no derivative of its own: differentiate imgfast.cross_entropy "
        "with create_graph=True"
    )


torch.library.register_autograd(
    "imgfast::cross_entropy", _derivative_forward, setup_context=_setup_forward
)
torch.library.register_autograd("imgfast::cross_entropy_backward", _derivative_backward)
