"""The stock composition that conv_relu_pool equals: reference, and route where no kernel fits."""

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}


def conv_relu_pool_stock(x, weight, bias, spec):
    """``pool(activation(conv2d(x, weight, bias)))`` for a :class:`Spec`, by torch's operators."""
    y = F.conv2d(x, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)
    y = ACTIVATIONS[spec.activation](y)
    if spec.pool == "none":
        return y
    if spec.pool == "avg":
        return F.avg_pool2d(
            y,
            spec.pool_size,
            spec.pool_stride,
            spec.pool_padding,
            spec.ceil_mode,
            spec.count_include_pad,
        )
    return F.max_pool2d(
        y, spec.pool_size, spec.pool_stride, spec.pool_padding, spec.pool_dilation, spec.ceil_mode
    )


def expand_gradient(grad_y, y, codes, spec, conv_shape):
    """The gradient at the convolution's output, ``[N, K, P, Q]``, by differentiable operators.

    The kernels never store this map; it defines what their codes mean (csrc/conv_relu_pool.h), and
    carries second derivatives. Linear in ``grad_y``; sigmoid and tanh depend on ``y`` as well.
    """
    n, k, p, q = conv_shape
    slope = {"relu": 0.0, "leaky_relu": 0.01}.get(spec.activation)
    if spec.activation == "sigmoid":
        grad_y = grad_y * (y * (1 - y))
    elif spec.activation == "tanh":
        grad_y = grad_y * (1 - y * y)
    if spec.pool == "none":
        return grad_y if slope is None else torch.where(y <= 0, grad_y * slope, grad_y)
    if codes is not None:
        codes = codes.permute(0, 3, 1, 2)
    if spec.pool == "max" and slope is not None:
        grad_y = torch.where(codes >= 128, grad_y * slope, grad_y)

    (kh, kw), (sh, sw), (ph, pw) = spec.pool_size, spec.pool_stride, spec.pool_padding
    dh, dw = spec.pool_dilation
    top = torch.arange(grad_y.shape[2], device=grad_y.device).view(-1, 1) * sh - ph
    left = torch.arange(grad_y.shape[3], device=grad_y.device) * sw - pw
    flat = grad_y.new_zeros(n, k, p * q)
    if spec.pool == "max":
        place = codes.long() % 128
        index = (top + place // kw * dh) * q + left + place % kw * dw
        return flat.scatter_add(2, index.flatten(2), grad_y.flatten(2)).view(conv_shape)

    bottom, right = (top + kh).clamp(max=p + ph), (left + kw).clamp(max=q + pw)
    if spec.count_include_pad:
        area = (bottom - top) * (right - left)
    else:
        area = (bottom.clamp(max=p) - top.clamp(min=0)) * (right.clamp(max=q) - left.clamp(min=0))
    share = grad_y / area
    for position in range(kh * kw):
        h, w = top + position // kw, left + position % kw
        inside = (h >= 0) & (h < p) & (w >= 0) & (w < q)
        part = share
        if slope is not None:
            part = torch.where((codes >> position & 1) == 1, share, share * slope)
        index = torch.where(inside, h * q + w, 0).expand_as(part)
        part = torch.where(inside, part, torch.zeros_like(part))
        flat = flat.scatter_add(2, index.flatten(2), part.flatten(2))
    return flat.view(conv_shape)
