"""torch.ops.imgfast on CPU tensors by the CUDA kernels, in the emulator: the public functions and
their derivatives then run on these."""

import contextlib
import warnings

import conv_relu_pool_calls
import cross_entropy_calls
import torch

OPERATORS = (*cross_entropy_calls.OPERATORS, conv_relu_pool_calls.conv_relu_pool)


@contextlib.contextmanager
def installed():
    """In the place of the CPU's own kernels; skips a test where the emulator cannot be built."""
    for calls in (cross_entropy_calls, conv_relu_pool_calls):
        calls.kernels()
    with torch.library._scoped_library("imgfast", "IMPL") as library:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what is meant: kernels are replaced
            for operator in OPERATORS:
                library.impl(operator.__name__, torch.no_grad()(operator), "CPU")
        yield
