"""Autocast on the devices that have kernels."""

import functools

import torch


def is_active(t) -> bool:
    """Whether autocast decides about dtypes of operators on the device of tensor ``t``."""
    if t.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return t.is_cuda and torch.is_autocast_enabled("cuda")


def cast_convolution(*tensors):
    """Tensors, or None, as autocast wants them of a convolution, which is on its list of lower
    precision; float64 stays."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)

    def cast(t):
        eligible = t is not None and t.is_floating_point() and t.dtype != torch.float64
        return t.to(dtype) if eligible else t

    return tuple(cast(t) for t in tensors)


def without(function):
    """Decorates a function that casts by itself; its first argument is a tensor."""

    @functools.wraps(function)
    def run(first, *args, **options):
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **options)

    return run
