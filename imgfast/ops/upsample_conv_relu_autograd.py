"""Derivatives and fakes of the upsample_conv_relu operators.

As in conv_relu_pool_autograd.py, eager calls go through a ctx-style autograd.Function, and
torch.compile through the registration.
"""

import torch

from imgfast.ops.conv_relu_pool_stock import ACTIVATIONS
from imgfast.ops.upsample_conv_relu_route import Spec
from imgfast.ops.upsample_conv_relu_stock import upsample_conv_relu_stock

_forward = torch.ops.imgfast.upsample_conv_relu.default
_backward = torch.ops.imgfast.upsample_conv_relu_backward.default
_below_autograd = torch._C._AutoDispatchBelowAutograd
_NONE = tuple(ACTIVATIONS).index("none")
_NO_GRADS = (None, None, None)  # of the numbers


def run(x, weight, bias, numbers, route):
    """Any route but stock's, eagerly: x is [N, C, H, W], and everything has been checked.

    Args:
        numbers: the operators' activation, winograd and allow_tf32.
    """
    if route.needs_grad:
        return _UpsampleConvReLU.apply(x, weight, bias, *numbers)
    with _below_autograd():
        return _forward(x, weight, bias, *numbers)


class _UpsampleConvReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, activation, *numbers):
        with _below_autograd():
            y = _forward(x, weight, bias, activation, *numbers)
        ctx.numbers = activation, *numbers
        ctx.save_for_backward(x, weight, bias, None if activation == _NONE else y)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, weight, bias, y = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a second derivative may follow
            return *_differentiable(grad_y, x, weight, bias, ctx.numbers[0], needs), *_NO_GRADS
        with _below_autograd():
            grads = _backward(grad_y, x, weight, y, *ctx.numbers, *needs)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), *_NO_GRADS


def _differentiable(grad_y, x, weight, bias, activation, needs):
    """The gradients by torch's operators, for further derivatives."""
    spec = Spec(2, 1, 1, tuple(ACTIVATIONS)[activation], "stock")
    # Aliases: derivatives stop here, and do not follow what one input owes to another.
    inputs = [None if t is None else t.view_as(t) for t in (x, weight, bias)]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    y = upsample_conv_relu_stock(*inputs, spec)
    found = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=True))
    return [next(found) if need else None for need in needs]


@torch.library.register_fake("imgfast::upsample_conv_relu")
def _(x, weight, bias, activation, winograd, allow_tf32):
    spec = Spec(2, 1, 1, tuple(ACTIVATIONS)[activation], "stock")
    return torch.empty_like(upsample_conv_relu_stock(x, weight, bias, spec))


@torch.library.register_fake("imgfast::upsample_conv_relu_backward")
def _(grad_y, x, weight, y, activation, winograd, allow_tf32, need_x, need_weight, need_bias):
    layout = torch._prims_common.suggest_memory_format
    last = torch.channels_last in (layout(x), layout(weight))
    of_x = torch.channels_last if last else torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=of_x) if need_x else x.new_empty(0),
        torch.empty_like(weight, memory_format=layout(weight)) if need_weight else x.new_empty(0),
        x.new_empty(weight.shape[0] if need_bias else 0),
    )


def _setup(ctx, inputs, output):
    x, weight, _, activation, *numbers = inputs
    ctx.numbers = activation, *numbers
    ctx.save_for_backward(x, weight, None if activation == _NONE else output)


def _derivative(ctx, grad_y):
    x, weight, y = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    grads = _backward(grad_y, x, weight, y, *ctx.numbers, *needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), *_NO_GRADS


torch.library.register_autograd("imgfast::upsample_conv_relu", _derivative, setup_context=_setup)
