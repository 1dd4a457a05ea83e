"""conv_relu_pool around torch's convolution, on CUDA: two operators of ours, and torch's between.

Where cuDNN's convolution is fast enough, the way of its output through memory does not matter. What
is kept for backward is what the direct kernels keep: the output is not. Pictures in NCHW are turned
into channels_last, as cuDNN would turn them; the output and its gradient need not be turned back.
"""

import torch
from torch._prims_common import suggest_memory_format

from imgfast.ops.conv_relu_pool_route import Spec
from imgfast.ops.conv_relu_pool_stock import expand_gradient

_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default
_epilogue = torch.ops.imgfast.conv_relu_pool_epilogue.default
_epilogue_backward = torch.ops.imgfast.conv_relu_pool_epilogue_backward.default
_CHANNELS_LAST = torch.channels_last


def forward(x, weight, bias, geometry, save_codes):
    """y and codes, as torch.ops.imgfast.conv_relu_pool returns them."""
    sums = _convolution(_turned(x), _turned(weight), None, *_conv(geometry))
    return _epilogue(_turned(sums), x, weight, bias, geometry, save_codes)


def backward(grad_y, x, weight, y, codes, geometry, need_x, need_weight, need_bias):
    """The gradients, as torch.ops.imgfast.conv_relu_pool_backward returns them."""
    needs = [need_x, need_weight, need_bias]
    if torch.is_grad_enabled():  # a second derivative may follow
        spec = Spec.of_geometry(geometry)
        shape = (x.shape[0], weight.shape[0], *spec.conv_size(x.shape, weight.shape))
        grad_sums = expand_gradient(grad_y, y, codes, spec, shape)
        return _convolution_backward(grad_sums, x, weight, shape[1:2], *_conv(geometry), needs)
    need_sums = need_x or need_weight
    grad_sums, grad_bias = _epilogue_backward(
        grad_y, x, weight, y, codes, geometry, need_sums, need_bias
    )
    if not need_sums:
        return None, None, grad_bias
    needs[2] = False
    grad_x, grad_weight, _ = _convolution_backward(
        grad_sums, _turned(x), _turned(weight), None, *_conv(geometry), needs
    )
    if need_x and _CHANNELS_LAST not in map(suggest_memory_format, (x, weight)):
        grad_x = grad_x.contiguous()
    if need_weight:
        grad_weight = grad_weight.contiguous(memory_format=suggest_memory_format(weight))
    return grad_x, grad_weight, grad_bias


def _turned(t):
    return t.contiguous(memory_format=_CHANNELS_LAST)


def _conv(geometry):
    """The arguments of torch's convolution behind its bias."""
    return geometry[0:2], geometry[2:4], geometry[4:6], False, (0, 0), geometry[6]


@torch.library.register_fake("imgfast::conv_relu_pool_epilogue_backward")
def _(grad_y, x, weight, y, codes, geometry, need_sums, need_bias):
    spec, filters = Spec.of_geometry(geometry), weight.shape[0]
    shape = (x.shape[0], filters, *spec.conv_size(x.shape, weight.shape))
    grad_sums = x.new_empty(shape).contiguous(memory_format=_CHANNELS_LAST)
    return (
        grad_sums if need_sums else x.new_empty(0),
        x.new_empty(filters if need_bias else 0),
    )
