"""Calls of conv_relu_pool's epilogue around torch's convolution in the emulator."""

from __future__ import annotations

import functools

import conv_relu_pool_weight_calls
import simt
import torch
from conv_relu_pool_calls import DTYPES, empty_answer
from conv_relu_pool_gradient_calls import Inputs

from imgfast.ops.conv_relu_pool_route import Spec, needs_y


@functools.cache
def kernels():
    return simt.load("conv_relu_pool_epilogue")


def _head(x, weight, geometry):
    sizes = torch.tensor([*x.shape, weight.shape[0], *weight.shape[2:]])
    return sizes, torch.tensor(geometry), DTYPES[x.dtype]


def forward(sums, x, weight, bias, geometry, save_codes, *, module=None, **options):
    """Of the arguments of torch.ops.imgfast.conv_relu_pool_epilogue: y, codes or None, profile."""
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
    """grad_sums and profile, of arguments of torch.ops.imgfast.conv_relu_pool_epilogue_backward."""
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


def conv_relu_pool_epilogue(sums, x, weight, bias, geometry, save_codes):
    """As csrc/cuda/conv_relu_pool_epilogue.cu has it."""
    bias = None if bias is None else bias.contiguous()
    y, codes, _ = forward(sums, x, weight, bias, geometry, save_codes, seed=1)
    return y, x.new_empty(0, dtype=torch.uint8) if codes is None else codes


def conv_relu_pool_epilogue_backward(grad_y, x, weight, y, codes, geometry, need_sums, need_bias):
    """As csrc/cuda/conv_relu_pool_epilogue.cu has it."""
    grad_sums, grad_bias = x.new_empty(0), x.new_empty(0)
    if need_sums:
        grad_sums, _ = backward(grad_y, x, weight, y, codes, geometry, seed=1)
    if need_bias:
        given = Inputs(x, weight, None, grad_y, y, codes, Spec.of_geometry(geometry))
        grad_bias = conv_relu_pool_weight_calls.run(given, need_weight=False, seed=1).bias
    return grad_sums, grad_bias


OPERATORS = (conv_relu_pool_epilogue, conv_relu_pool_epilogue_backward)
