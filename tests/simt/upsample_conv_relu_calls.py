"""Calls of upsample_conv_relu's CUDA kernels in the emulator, what they are given and how they are
compared."""

from __future__ import annotations

import functools
from typing import NamedTuple

import conv_relu_pool_calls as conv
import conv_relu_pool_weight_calls
import simt
import torch
from conv_relu_pool_calls import DTYPES, TOLERANCE, exact, layout_of

from imgfast.ops.conv_relu_pool_stock import ACTIVATIONS
from imgfast.ops.upsample_conv_relu_route import Spec
from imgfast.ops.upsample_conv_relu_stock import upsample_conv_relu_stock


class Answer(NamedTuple):
    tensors: tuple  # y; grad_x; grad_weight and grad_bias, None where one is not wanted
    kernel: str  # the convolution's
    workspace: int
    profile: simt.Profile


@functools.cache
def kernels():
    return simt.load("upsample_conv_relu")


def _run(names, function, x, weight, activation, tf32, views, inputs, outputs, options):
    """Plans and launches one pass.

    Args:
        names: of its convolution's kernels.
        views: the tensors whose strides it takes.
        outputs: None where one is not wanted.
    """
    head = (
        torch.tensor([*x.shape, weight.shape[0]]),
        torch.tensor([t.stride() for t in views]),
        DTYPES[x.dtype],
        activation,
        tf32,
    )
    given = [None if t is None else simt.memory_of(t) for t in inputs]

    def run(told, workspace, partial, **options):
        written = [None if t is None else simt.out(t, partial) for t in outputs]
        return kernels().run(function, *head, told, *given, *written, workspace, **options)

    told = torch.zeros(3, dtype=torch.int64)
    run(simt.inout(told), None, True)
    served, kernel, workspace = told.tolist()
    if not served:
        raise RuntimeError("upsample_conv_relu: no CUDA kernel for a map this large")
    memory = simt.out(torch.empty(workspace, dtype=torch.uint8), True)
    profile = run(None, memory, False, **options)
    return Answer(tuple(outputs), names[kernel], workspace, profile)


def forward(x, weight, bias, activation, *, tf32=False, **options):
    """Of the arguments of torch.ops.imgfast.upsample_conv_relu; options for the emulator."""
    n, _, h, w = x.shape
    last = layout_of(x, weight)
    if weight.shape[0] == 1 and activation:  # as answers_channels_last in conv_relu_pool_call.h
        last = torch.contiguous_format
    y = torch.empty((n, weight.shape[0], 2 * h, 2 * w), dtype=x.dtype, memory_format=last)
    return _run(
        conv.KERNELS, "upsample_conv_relu", x, weight, activation, tf32,
        (x, weight, y), (x, weight, bias), (y,), options,
    )  # fmt: skip


def backward_input(grad_y, x, weight, y, activation, *, tf32=False, **options):
    y = y if activation else None
    grad_x = torch.empty(x.shape, dtype=x.dtype, memory_format=layout_of(x, weight))
    return _run(
        conv.KERNELS, "upsample_backward_input", x, weight, activation, tf32,
        (grad_y, grad_y if y is None else y, weight, grad_x), (grad_y, y, weight), (grad_x,),
        options,
    )  # fmt: skip


def backward_weight(
    grad_y, x, weight, y, activation, need_weight=True, need_bias=True, *, tf32=False, **options
):
    y = y if activation else None
    grad_weight = torch.empty_like(weight, memory_format=layout_of(weight))
    return _run(
        conv_relu_pool_weight_calls.KERNELS, "upsample_backward_weight", x, weight, activation,
        tf32, (grad_y, grad_y if y is None else y, x, grad_weight), (grad_y, y, x),
        (
            grad_weight if need_weight else None,
            torch.empty(weight.shape[0], dtype=x.dtype) if need_bias else None,
        ),
        options,
    )  # fmt: skip


# --- the operators, as csrc/cuda/upsample_conv_relu.cu has them -----------------------------------


def upsample_conv_relu(x, weight, bias, activation, winograd, allow_tf32):
    assert winograd == 0
    bias = None if bias is None else bias.contiguous()
    return forward(x, weight, bias, activation, tf32=allow_tf32, seed=1).tensors[0]


def upsample_conv_relu_backward(
    grad_y, x, weight, y, activation, winograd, allow_tf32, need_x, need_weight, need_bias
):
    assert winograd == 0
    given = grad_y, x, weight, y, activation
    grads = [None, None, None]
    if need_x:
        grads[:1] = backward_input(*given, tf32=allow_tf32, seed=1).tensors
    if need_weight or need_bias:
        needs = need_weight, need_bias
        grads[1:] = backward_weight(*given, *needs, tf32=allow_tf32, seed=1).tensors
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)


OPERATORS = (upsample_conv_relu, upsample_conv_relu_backward)


# --- comparison -----------------------------------------------------------------------------------


def make(n, c, h, w, k, *, dtype=torch.float32, channels_last=True, seed=0):
    """x, weight, bias and grad_y, exact: small multiples of 1/4."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = exact((n, c, h, w), seed, dtype).contiguous(memory_format=layout)
    weight = exact((k, c, 3, 3), seed + 1, dtype, top=3).contiguous(memory_format=layout)
    grad_y = exact((n, k, 2 * h, 2 * w), seed + 3, dtype).contiguous(memory_format=layout)
    return x, weight, exact((k,), seed + 2, dtype), grad_y


def stock(x, weight, bias, activation):
    return upsample_conv_relu_stock(x, weight, bias, Spec(2, 1, 1, activation, "stock"))


def check(x, weight, bias, grad_y, activation="relu", *, tf32=False, **options):
    """Runs forward and both backward passes, compares with stock in float64, and returns their
    answers."""
    number = tuple(ACTIVATIONS).index(activation)
    wide = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    reference = stock(*wide, activation)
    answer = forward(x, weight, bias, number, tf32=tf32, **options)
    (y,) = answer.tensors
    assert_near(y, reference.detach(), activation)
    if activation in ("gelu", "silu"):  # no gradient kernels
        return (answer,)
    expected = torch.autograd.grad(reference, [t for t in wide if t is not None], grad_y.double())
    given = grad_y, x, weight, y, number
    of_x = backward_input(*given, tf32=tf32, **options)
    of_weight = backward_weight(*given, need_bias=bias is not None, tf32=tf32, **options)
    found = [t for t in of_x.tensors + of_weight.tensors if t is not None]
    for got, want in zip(found, expected, strict=True):
        assert_near(got, want, activation)
    return answer, of_x, of_weight


def assert_near(got, expected, activation="none"):
    """Where a derivative is read off a rounded y, as in conv_relu_pool_gradient_calls.py."""
    tolerance = TOLERANCE[got.dtype] * (4 if activation in ("sigmoid", "tanh") else 1)
    finite = expected[expected.isfinite()]
    most = finite.abs().max().item() if finite.numel() else 1.0
    torch.testing.assert_close(
        got.double(), expected, rtol=tolerance, atol=tolerance * most, equal_nan=True
    )
