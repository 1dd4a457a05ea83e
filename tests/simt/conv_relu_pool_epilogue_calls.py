"""Calls of conv_relu_pool's epilogue around torch's convolution in the emulator."""

from __future__ import annotations

import functools

import conv_relu_pool_weight_calls
import simt
import torch
from conv_relu_pool_calls import DTYPES, empty_answer
from conv_relu_pool_gradient_calls import Inputs
from torch._prims_common import suggest_memory_format

from imgfast.ops.conv_relu_pool_route import Spec, needs_y


@functools.cache
def kernels():
    return simt.load("conv_relu_pool_epilogue")


def _head(x, weight, geometry):
    sizes = torch.tensor([*x.shape, weight.shape[0], *weight.shape[2:]])
    return sizes, torch.tensor(geometry), DTYPES[x.dtype]


def forward(sums, x, weight, bias, geometry, save_codes, *, module=None, **options):
    """Of the convolution's output and the operator's arguments: y, codes or None, profile."""
    y = empty_answer(x, weight, Spec.of_geometry(geometry))
    n, k, ph, pw = y.shape
    codes = torch.empty((n, ph, pw, k), dtype=torch.uint8) if save_codes else None
    profile = (module or kernels()).run(
        "conv_relu_pool_epilogue",
        *_head(x, weight, geometry),
        torch.tensor(y.stride()),
        simt.memory_of(sums),
        bias,
        simt.out(y),
        None if codes is None else simt.out(codes),
        **options,
    )
    return y, codes, profile


def backward(grad_y, x, weight, y, codes, geometry, *, module=None, **options):
    """The gradient at the convolution's output, of the operator's arguments, and the profile."""
    spec = Spec.of_geometry(geometry)
    y = y if needs_y(spec) else None
    shape = (x.shape[0], weight.shape[0], *spec.conv_size(x.shape, weight.shape))
    grad_sums = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    strides = torch.tensor([t.stride() for t in (grad_y, grad_y if y is None else y)])
    profile = (module or kernels()).run(
        "conv_relu_pool_epilogue_backward",
        *_head(x, weight, geometry),
        strides,
        simt.memory_of(grad_y),
        None if y is None else simt.memory_of(y),
        codes,
        simt.out(grad_sums),
        **options,
    )
    return grad_sums, profile


def conv_relu_pool(x, weight, bias, geometry, save_codes):
    """As csrc/cuda/conv_relu_pool_epilogue.cu has it, around torch's convolution on the CPU."""
    sums = torch.ops.aten.convolution(x, weight, None, *_convolution(geometry))
    y, codes, _ = forward(
        sums.contiguous(memory_format=torch.channels_last),
        x,
        weight,
        bias,
        geometry,
        save_codes,
        seed=1,
    )
    return y, codes


def conv_relu_pool_backward(grad_y, x, weight, y, codes, geometry, need_x, need_weight, need_bias):
    """As csrc/cuda/conv_relu_pool_epilogue.cu has it."""
    grads = [None, None, None]
    if need_x or need_weight:
        grad_sums, _ = backward(grad_y, x, weight, y, codes, geometry, seed=1)
        needs = [need_x, need_weight, False]
        grads[:2] = torch.ops.aten.convolution_backward(
            grad_sums, x, weight, None, *_convolution(geometry), needs
        )[:2]
    layouts = suggest_memory_format(x), suggest_memory_format(weight)
    if need_x:
        last = torch.channels_last in layouts
        layout = torch.channels_last if last else torch.contiguous_format
        grads[0] = grads[0].contiguous(memory_format=layout)
    if need_weight:
        grads[1] = grads[1].contiguous(memory_format=layouts[1])
    if need_bias:
        given = Inputs(x, weight, None, grad_y, y, codes, Spec.of_geometry(geometry))
        grads[2] = conv_relu_pool_weight_calls.run(given, need_weight=False, seed=1).bias
    return grads


def _convolution(geometry):
    """The arguments of torch's convolution behind its bias."""
    return geometry[0:2], geometry[2:4], geometry[4:6], False, (0, 0), geometry[6]
