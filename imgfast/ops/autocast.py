"""Autocast on the devices that have kernels."""

import functools

import torch


def is_active(t) -> bool:
    """Whether autocast decides about dtypes of operators on the device of tensor ``t``."""
    if t.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return t.is_cuda and torch.is_autocast_enabled("cuda")


def without(function):
    """Decorates a function that casts by itself; its first argument is a tensor."""

    @functools.wraps(function)
    def run(first, *args, **options):
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **options)

    return run
