"""torch.ops.imgfast on CPU tensors by the CUDA kernels, in the emulator: the public functions and
their derivatives then run on these."""

import contextlib
import functools
import warnings
from concurrent.futures import ThreadPoolExecutor

import conv_relu_pool_calls
import conv_relu_pool_epilogue_calls as around_torch
import conv_relu_pool_input_calls
import conv_relu_pool_weight_calls
import cross_entropy_calls
import toolchain  # build_backend/toolchain.py
import torch
import upsample_conv_relu_calls
from conv_relu_pool_gradient_calls import Inputs

from imgfast.ops.conv_relu_pool_route import Epilogue, Spec

MODULES = (
    cross_entropy_calls,
    conv_relu_pool_calls,
    around_torch,
    conv_relu_pool_input_calls,
    conv_relu_pool_weight_calls,
    upsample_conv_relu_calls,
)


EPILOGUE = -2  # its place in the geometry


def conv_relu_pool(x, weight, bias, geometry, save_codes):
    """As csrc/cuda/conv_relu_pool.cu has it."""
    bias = None if bias is None else bias.contiguous()
    if geometry[EPILOGUE] & Epilogue.FORWARD:
        y, codes = around_torch.conv_relu_pool(x, weight, bias, geometry, save_codes)
    else:
        answer = conv_relu_pool_calls.forward(x, weight, bias, geometry, save_codes, seed=1)
        _check_served(answer.plan)
        y, codes = answer.y, answer.codes
    return y, x.new_empty(0, dtype=torch.uint8) if codes is None else codes


def conv_relu_pool_backward(grad_y, x, weight, y, codes, geometry, need_x, need_weight, need_bias):
    """As csrc/cuda/conv_relu_pool_backward.cu has it."""
    needs = need_x, need_weight, need_bias
    if geometry[EPILOGUE] & Epilogue.BACKWARD:
        grads = around_torch.conv_relu_pool_backward(grad_y, x, weight, y, codes, geometry, *needs)
    else:
        grads = _direct_backward(grad_y, x, weight, y, codes, geometry, *needs)
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)


def _direct_backward(grad_y, x, weight, y, codes, geometry, need_x, need_weight, need_bias):
    spec, tf32 = Spec.of_geometry(geometry), bool(geometry[-1])
    given = Inputs(x, weight, None, grad_y, y, codes, spec)
    grads = [None, None, None]
    if need_x:
        answer = conv_relu_pool_input_calls.run(given, tf32=tf32, seed=1)
        _check_served(answer.plan)
        grads[0] = answer.grad_x
    if need_weight or need_bias:
        needs = {"need_weight": need_weight, "need_bias": need_bias}
        answer = conv_relu_pool_weight_calls.run(given, tf32=tf32, seed=1, **needs)
        _check_served(answer.plan)
        grads[1:] = answer.weight, answer.bias
    return grads


def _check_served(plan):
    if plan.kernel == "none":
        raise RuntimeError("conv_relu_pool: no CUDA kernel for a filter and pool this large")


OPERATORS = (
    *cross_entropy_calls.OPERATORS,
    conv_relu_pool,
    conv_relu_pool_backward,
    *upsample_conv_relu_calls.OPERATORS,
)


@functools.cache
def _load_all():
    """Builds what has not been built, a binding a core at once."""
    with ThreadPoolExecutor(toolchain.usable_cores()) as pool:
        list(pool.map(lambda calls: calls.kernels(), MODULES))


@contextlib.contextmanager
def installed():
    """In the place of the CPU's own kernels; skips a test where the emulator cannot be built."""
    _load_all()
    with torch.library._scoped_library("imgfast", "IMPL") as library:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what is meant: kernels are replaced
            for operator in OPERATORS:
                library.impl(operator.__name__, torch.no_grad()(operator), "CPU")
        yield
