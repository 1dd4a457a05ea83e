"""Derivatives, fakes and registration of linear_cross_entropy.

Eager calls go through a ctx-style autograd.Function, which keeps the first tiles of logits and
turns them into gradients in place. torch.compile, export and direct calls of
torch.ops.imgfast.linear_cross_entropy go through the registration, where backward computes all
logits again. The algorithm is in linear_cross_entropy_tiles.py.
"""

import torch
import torch.nn.functional as F

from imgfast.ops import autocast
from imgfast.ops import linear_cross_entropy_tiles as tiles
from imgfast.ops.cross_entropy_autograd import NONE
from imgfast.ops.margins import Margin, margin_logits

_REDUCTION_NAMES = ("none", "mean", "sum")


def run(input, linear_weight, linear_bias, target, weight, options):
    """Eagerly; everything has been checked."""
    if torch.is_grad_enabled() and (
        input.requires_grad
        or linear_weight.requires_grad
        or (linear_bias is not None and linear_bias.requires_grad)
    ):
        return _LinearCrossEntropy.apply(input, linear_weight, linear_bias, target, weight, options)
    with torch.no_grad():
        return tiles.forward(
            input, linear_weight, linear_bias, target, weight, options, keep=False
        )[0]


def call_operator(input, linear_weight, linear_bias, target, weight, options):
    """As :func:`run`, through torch.ops, which torch.compile and export understand."""
    return torch.ops.imgfast.linear_cross_entropy(
        input, linear_weight, linear_bias, target, weight, *_flat(options)
    )[0]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, target, weight, options):
        loss, stats, kept = tiles.forward(
            input, linear_weight, linear_bias, target, weight, options, keep=True
        )
        ctx.options = options
        # Not saved as torch does it, which would see that backward overwrites them.
        ctx.kept = kept
        ctx.save_for_backward(input, linear_weight, linear_bias, target, weight, stats)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        kept = vars(ctx).pop("kept", None)  # a second backward finds none
        batched = torch._C._functorch.is_legacy_batchedtensor(grad_loss)  # is_grads_batched=True
        if not (batched or _wants_reference()):
            *tensors, stats = ctx.saved_tensors
            needs = ctx.needs_input_grad[:3]
            grads = tiles.backward(grad_loss, *tensors, stats, kept, ctx.options, needs)
        else:
            grads = _gradients(ctx, grad_loss)
        return *grads, None, None, None


def _wants_reference():
    """Whether somebody is about to differentiate the gradient, or to batch it."""
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


def _gradients(ctx, grad_loss):
    """Through torch.ops, or differentiable if gradients are being recorded."""
    *tensors, stats = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    if _wants_reference():
        return gradient_reference(grad_loss, *tensors, ctx.options, needs)
    grads = torch.ops.imgfast.linear_cross_entropy_backward(
        grad_loss, *tensors, stats, *_flat(ctx.options), *needs
    )
    return [grad if need else None for grad, need in zip(grads, needs, strict=True)]


def loss_reference(input, linear_weight, linear_bias, target, weight, options):
    """The loss as a composition of torch's operators, which holds all logits."""
    dtype = options.dtype
    input, linear_weight = input.to(dtype), linear_weight.to(dtype)
    if options.margin is not None:
        logits = margin_logits(input, linear_weight, target, options.margin)
    else:
        bias = None if linear_bias is None else linear_bias.to(dtype)
        logits = F.linear(input, linear_weight, bias)
    if options.float_loss and dtype != torch.float64:
        logits = logits.float()
        target = target.float() if target.is_floating_point() else target
        weight = None if weight is None else weight.float()
    return F.cross_entropy(
        logits,
        target,
        weight,
        ignore_index=options.ignore_index,
        reduction=_REDUCTION_NAMES[options.reduction],
        label_smoothing=options.label_smoothing,
    )


@autocast.without
def gradient_reference(
    grad_loss, input, linear_weight, linear_bias, target, weight, options, needs
):
    """The gradients that ``needs`` asks for, themselves differentiable."""
    arguments = [input, linear_weight, linear_bias]
    asked = [i for i in range(3) if needs[i]]

    def loss(*leaves):
        given = list(arguments)
        for i, leaf in zip(asked, leaves, strict=True):
            given[i] = leaf
        return loss_reference(*given, target, weight, options)

    _, vjp = torch.func.vjp(loss, *(arguments[i] for i in asked))
    grads = [None, None, None]
    for i, grad in zip(asked, vjp(grad_loss), strict=True):
        grads[i] = grad
    return grads


# Options, as the operators take them.
_OPTIONS_SCHEMA = (
    "int reduction, int ignore_index, float label_smoothing, bool float_loss, ScalarType dtype, "
    "str margin, float margin_size, float scale"
)


def _flat(options):
    return *options[:5], *(options.margin or Margin("none", 0.0, 1.0))


def _options(*flat):
    *common, name, size, scale = flat
    margin = None if name == "none" else Margin(name, size, scale)
    return tiles.Options(*common, margin)


# stats: [5, N]; see tiles.forward.
@torch.library.custom_op(
    "imgfast::linear_cross_entropy",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, "
    f"Tensor? weight, {_OPTIONS_SCHEMA}) -> (Tensor loss, Tensor stats)",
)
def _forward(input, linear_weight, linear_bias, target, weight, *options):
    return tiles.forward(
        input, linear_weight, linear_bias, target, weight, _options(*options), keep=False
    )[:2]


# A gradient that is not asked for comes back empty.
@torch.library.custom_op(
    "imgfast::linear_cross_entropy_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor grad_loss, Tensor input, Tensor linear_weight, Tensor? linear_bias, "
    f"Tensor target, Tensor? weight, Tensor stats, {_OPTIONS_SCHEMA}, "
    "bool need_input, bool need_weight, bool need_bias) -> "
    "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
)
def _backward(grad_loss, input, linear_weight, linear_bias, target, weight, stats, *rest):
    grads = tiles.backward(
        grad_loss,
        input,
        linear_weight,
        linear_bias,
        target,
        weight,
        stats,
        None,
        _options(*rest[:-3]),
        rest[-3:],
    )
    return tuple(grad_loss.new_empty(0) if grad is None else grad for grad in grads)


@_forward.register_fake
def _(input, linear_weight, linear_bias, target, weight, reduction, *rest):
    _, _, float_loss, dtype, *_ = rest
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shape = input.shape[:1] if reduction == NONE else ()
    loss = input.new_empty(shape, dtype=wide if float_loss else dtype)
    return loss, input.new_empty((5, input.shape[0]), dtype=wide)


@_backward.register_fake
def _(grad_loss, input, linear_weight, linear_bias, target, weight, stats, *rest):
    return tuple(
        torch.empty_like(like) if need else grad_loss.new_empty(0)
        for like, need in zip((input, linear_weight, linear_bias), rest[-3:], strict=True)
    )


def _setup(ctx, inputs, output):
    tensors, flat = inputs[:5], inputs[5:]
    _, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.options = _options(*flat)
    ctx.save_for_backward(*tensors, stats)


def _derivative(ctx, grad_loss, grad_stats):
    return *_gradients(ctx, grad_loss), *(None,) * 10


def _no_derivative(ctx, *grads):
    raise NotImplementedError(
        "linear_cross_entropy_backward has no derivative of its own: differentiate "
        "imgfast.linear_cross_entropy with create_graph=True"
    )


_forward.register_autograd(_derivative, setup_context=_setup)
_backward.register_autograd(_no_derivative)
