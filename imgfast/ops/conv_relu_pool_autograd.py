"""Derivatives and fakes of the conv_relu_pool operators.

Eager calls go through a ctx-style autograd.Function, which costs less than half of what
torch.library's registration does per call; torch.compile, export and direct calls of
torch.ops.imgfast.conv_relu_pool go through the registration. Both end in the same two operators.
"""

import torch

from imgfast.ops.conv_relu_pool_route import Spec, needs_codes, needs_y
from imgfast.ops.conv_relu_pool_stock import conv_relu_pool_stock, expand_gradient

_forward = torch.ops.imgfast.conv_relu_pool.default
_backward = torch.ops.imgfast.conv_relu_pool_backward.default
_below_autograd = torch._C._AutoDispatchBelowAutograd


def run(x, weight, bias, geometry, route):
    """Any route but stock's, eagerly: x is [N, C, H, W], and everything has been checked."""
    if route.needs_grad:
        return _ConvReLUPool.apply(x, weight, bias, geometry, route)
    with _below_autograd():
        return _forward(x, weight, bias, geometry, False)[0]


class _ConvReLUPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, geometry, route):
        with _below_autograd():
            y, codes = _forward(x, weight, bias, geometry, route.saves_codes)
        ctx.geometry = geometry
        ctx.save_for_backward(
            x, weight, y if route.saves_y else None, codes if route.saves_codes else None
        )
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, weight, y, codes = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a second derivative may follow
            grads = _backward(grad_y, x, weight, y, codes, ctx.geometry, *needs)
        else:
            with _below_autograd():
                grads = _backward(grad_y, x, weight, y, codes, ctx.geometry, *needs)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), None, None


def _convolution_backward(grad, x, weight, spec, needs):
    filters = [weight.shape[0]]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, filters, *spec[:3], False, [0, 0], spec.groups, needs
    )


@torch.library.register_fake("imgfast::conv_relu_pool")
def _(x, weight, bias, geometry, save_codes):
    y = torch.empty_like(conv_relu_pool_stock(x, weight, bias, Spec.of_geometry(geometry)))
    n, k, ph, pw = y.shape
    return y, x.new_empty((n, ph, pw, k) if save_codes else (0,), dtype=torch.uint8)


@torch.library.register_fake("imgfast::conv_relu_pool_backward")
def _(grad_y, x, weight, y, codes, geometry, need_x, need_weight, need_bias):
    spec = Spec.of_geometry(geometry)
    conv = conv_relu_pool_stock(x, weight, None, spec._replace(activation="none", pool="none"))
    grad_x = _convolution_backward(conv, x, weight, spec, (True, False, False))[0]
    layout = torch._prims_common.suggest_memory_format(weight)
    return (
        torch.empty_like(grad_x) if need_x else x.new_empty(0),
        torch.empty_like(weight, memory_format=layout) if need_weight else x.new_empty(0),
        x.new_empty(weight.shape[0] if need_bias else 0),
    )


def _setup_forward(ctx, inputs, output):
    x, weight, _, geometry, save_codes = inputs
    y, codes = output
    ctx.geometry = geometry
    spec = Spec.of_geometry(geometry)
    ctx.missing_codes = needs_codes(spec) and not save_codes
    ctx.save_for_backward(x, weight, y if needs_y(spec) else None, codes if save_codes else None)


def _derivative_forward(ctx, grad_y, grad_codes):
    if ctx.missing_codes:
        raise RuntimeError("conv_relu_pool: a gradient needs a forward pass with save_codes=True")
    x, weight, y, codes = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    grads = _backward(grad_y, x, weight, y, codes, ctx.geometry, *needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None, None


torch.library.register_autograd(
    "imgfast::conv_relu_pool", _derivative_forward, setup_context=_setup_forward
)


def _setup_backward(ctx, inputs, output):
    grad_y, x, weight, y, codes, ctx.geometry, *needs = inputs
    ctx.needs = tuple(needs)
    ctx.save_for_backward(grad_y, x, weight, y, codes)


def _derivative_backward(ctx, *grads):
    """Second derivatives, through the expanded gradient and stock's convolution_backward."""
    *inputs, codes = ctx.saved_tensors
    spec = Spec.of_geometry(ctx.geometry)
    wanted = [i for i in range(4) if ctx.needs_input_grad[i]]
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: derivatives stop here, and do not follow what one input owes to another.
        inputs = [None if t is None else t.view_as(t) for t in inputs]
        grad_y, x, weight, y = inputs
        bare = spec._replace(activation="none", pool="none")
        conv_shape = conv_relu_pool_stock(x.to("meta"), weight.to("meta"), None, bare).shape
        conv_grad = expand_gradient(grad_y, y, codes, spec, conv_shape)
        first = _convolution_backward(conv_grad, x, weight, spec, ctx.needs)
        pairs = [
            (output, grad)
            for output, grad, need in zip(first, grads, ctx.needs, strict=True)
            if need and grad is not None and output.requires_grad
        ]
        second = torch.autograd.grad(
            [output for output, _ in pairs],
            [inputs[i] for i in wanted],
            [grad for _, grad in pairs],
            create_graph=further,
            allow_unused=True,
        )
    found = dict(zip(wanted, second, strict=True))
    return *(found.get(i) for i in range(4)), *(None,) * 5  # codes, geometry, needs


torch.library.register_autograd(
    "imgfast::conv_relu_pool_backward", _derivative_backward, setup_context=_setup_backward
)
