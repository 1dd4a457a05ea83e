"""The kernels around torch's convolution in the emulator.

A block takes 32 outputs, or what an output's gradient is expanded to, by 8 pieces of filters, of 4
or of 8.
"""

from __future__ import annotations

import pytest
import simt
import simt_mutate
import torch
from conv_relu_pool_calls import NARROW, POOLS, SEEDS
from conv_relu_pool_epilogue_calls import backward, forward
from conv_relu_pool_gradient_calls import assert_near, inputs

from imgfast.ops.conv_relu_pool_stock import conv_relu_pool_stock, expand_gradient

simt.load("conv_relu_pool_epilogue")

DTYPES = (torch.float32, *NARROW)


def given(*shape, **options):
    """Inputs and the convolution's output, of 1 x 1 filters: exact in every dtype."""
    n, c, h, w, k = shape
    made = inputs(n, c, h, w, k, 1, 1, **options)
    bare = made.spec._replace(activation="none", pool="none")
    sums = conv_relu_pool_stock(made.x.double(), made.weight.double(), None, bare)
    return made, sums.to(made.x.dtype).contiguous(memory_format=torch.channels_last)


def check(*shape, run_options=None, **options):
    made, sums = given(*shape, **options)
    run_options = run_options or {}
    geometry = made.spec.geometry(made.weight.shape)
    saves = made.codes is not None
    y, codes, _ = forward(sums, made.x, made.weight, made.bias, geometry, saves, **run_options)
    assert_near(y, made.y.double(), made)
    assert codes is None or torch.equal(codes, made.codes)
    grad_sums, _ = backward(
        made.grad_y, made.x, made.weight, made.y, made.codes, geometry, **run_options
    )
    wide = [t.double() for t in (made.grad_y, made.y)]
    assert_near(grad_sums, expand_gradient(*wide, made.codes, made.spec, sums.shape), made)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instance(dtype, pool):
    for seed in SEEDS:
        for channels_last, k in ((True, 16), (False, 67), (False, 16), (True, 3)):
            check(2, 4, 7, 9, k, dtype=dtype, channels_last=channels_last, seed=seed,
                  run_options={"seed": seed, "preempt": 7 * seed}, **POOLS[pool])  # fmt: skip


def gradient_runs(module):
    for channels_last in (True, False):
        made, sums = given(2, 4, 7, 9, 67, channels_last=channels_last, **POOLS["quad"])
        geometry = made.spec.geometry(made.weight.shape)
        arguments = (sums, made.x, made.weight, made.bias, geometry, True)
        y, _, _ = forward(*arguments, module=module, seed=1)
        assert_near(y, made.y.double(), made)


def test_the_barrier_is_needed():
    files = ["cuda/conv_relu_pool_epilogue.cuh"]
    assert simt_mutate.survivors(files, "conv_relu_pool_epilogue", gradient_runs) == []


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_bytes_and_banks(pool, dtype, channels_last):
    """Everything is moved once, windows that overlap included, and without conflicts of banks."""
    made, sums = given(2, 4, 32, 32, 64, dtype=dtype, channels_last=channels_last, **POOLS[pool])
    geometry = made.spec.geometry(made.weight.shape)
    size = sums.element_size()
    of_y = made.y.numel() * size + (0 if made.codes is None else made.codes.numel())
    fewest = sums.numel() * size + of_y + 64 * size
    *_, profile = forward(
        sums, made.x, made.weight, made.bias, geometry, made.codes is not None, profile=True
    )
    assert moved(profile) <= 1.05 * fewest
    shared = profile.select(space="shared")
    assert shared.passes <= 1.1 * shared.least_passes
    *_, profile = backward(
        made.grad_y, made.x, made.weight, made.y, made.codes, geometry, profile=True
    )
    reads_y = made.y.numel() * size if pool == "none" else 0
    assert moved(profile) <= 1.05 * (fewest + reads_y)


def moved(profile):
    """Bytes that go on to the device's memory; each is written once."""
    rows = profile.select(space="global")
    return 32 * rows.missed_sectors
