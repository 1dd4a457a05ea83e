"""conv_relu_pool's gradient at x on CUDA in the emulator.

It is a convolution, of the forward's kernels and tiles: 128 positions of x by 64 channels, or 128
for mma_wide; of a stride, one for every phase of its rows and columns.
"""

from __future__ import annotations

import math

import pytest
import simt
import simt_mutate
import torch
from conv_relu_pool_calls import NARROW, POOLS, SEEDS
from conv_relu_pool_gradient_calls import inputs
from conv_relu_pool_input_calls import check, compare, run

simt.load("conv_backward_input")

INSTANCES = [
    ("simt", torch.float32),
    *[("mma", dtype) for dtype in (torch.float32, *NARROW)],
    *[("mma_wide", dtype) for dtype in (torch.float32, *NARROW)],
]


def dtype_of(kernel):
    return torch.float32 if kernel == "simt" else torch.bfloat16


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("kernel", "dtype"), INSTANCES, ids=lambda value: str(value).removeprefix("torch.")
)
def test_every_instance(kernel, dtype, pool):
    """Two chunks of filters, the second not full; channels beyond one tile, or less than one."""
    for seed in SEEDS:
        for channels_last, c, k in ((True, 8, 40), (False, 67, 24)):
            check(2, c, 7, 9, k, 3, 3, kernel=kernel, seed=seed, run_options={"seed": seed},
                  dtype=dtype, channels_last=channels_last, padding=1, **POOLS[pool])  # fmt: skip


@pytest.mark.parametrize("kernel", ["simt", "mma"])
@pytest.mark.parametrize("c", [1, 4, 63, 64, 65, 131])
def test_channels_at_the_edge_of_a_tile(kernel, c):
    check(1, c, 4, 5, 8, 1, 1, kernel=kernel, dtype=dtype_of(kernel), **POOLS["quad"])


@pytest.mark.parametrize("c", [127, 128, 129])
def test_channels_at_the_edge_of_a_wide_tile(c):
    check(1, c, 4, 5, 8, 1, 1, kernel="mma_wide", dtype=torch.float16, **POOLS["quad"])


@pytest.mark.parametrize(
    ("kernel", "dtype", "filters"),
    [
        ("simt", torch.float32, (1, 4, 15, 16, 17, 33)),
        ("mma", torch.bfloat16, (1, 8, 15, 16, 17, 31, 32, 33, 72)),
        ("mma", torch.float32, (4, 15, 16, 17, 37)),
    ],
)
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
def test_filters_at_the_edge_of_a_chunk(kernel, dtype, filters, channels_last):
    for k in filters:
        check(1, 5, 5, 6, k, 3, 2, kernel=kernel, dtype=dtype, channels_last=channels_last,
              padding=1, **POOLS["none"])  # fmt: skip


# Positions of one map at 127, 128 and 129, a prime number of them, and maps of a few positions of
# which a tile takes several.
@pytest.mark.parametrize("kernel", ["simt", "mma"])
@pytest.mark.parametrize(
    ("n", "h", "w"), [(1, 1, 127), (1, 8, 16), (1, 3, 43), (1, 1, 131), (7, 4, 4), (130, 1, 1)]
)
def test_positions_at_the_edge_of_a_tile(kernel, n, h, w):
    options = {"kernel": kernel, "dtype": dtype_of(kernel)}
    check(n, 4, h, w, 6, 1, 3, padding=(0, 1), **options, **POOLS["none"])
    if h > 1:
        check(n, 4, h, w, 6, 3, 3, padding=1, **options, **POOLS["quad"])


@pytest.mark.parametrize("kernel", ["simt", "mma"])
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1, "pool": "none"},
        {"stride": 2, "padding": 1, "pool": "max", "pool_size": 2},
        {"stride": (1, 3), "padding": (2, 0), "pool": "max", "pool_size": 2},
        {"stride": 4, "pool": "none"},  # more phases than taps
        {"stride": 2, "dilation": 2, "padding": 2, "pool": "none"},  # of which half have none
        {"stride": (2, 3), "dilation": (3, 2), "padding": 3, "pool": "none"},
        {"padding": 5, "pool": "none"},  # beyond the filter
        {"dilation": 2, "padding": 3, "pool": "max", "pool_size": 2},
        {"pool": "max", "pool_size": 3},
        {"pool": "max", "pool_size": 3, "pool_stride": 1, "pool_padding": 1},
        {"padding": 1, "pool": "max", "pool_size": 2, "ceil_mode": True},
        {"padding": 1, "pool": "max", "pool_size": 2, "pool_stride": 1, "pool_dilation": 2},
        {"padding": 2, "pool": "max", "pool_size": (11, 9)},  # a window as large as the map
        {"pool": "avg", "pool_size": 2},
        {"pool": "avg", "pool_size": (2, 3), "pool_stride": 2, "pool_padding": 1},
        {
            "activation": "none",  # no codes, so a window of nine positions has a gradient
            "pool": "avg",
            "pool_size": 3,
            "pool_stride": 2,
            "pool_padding": 1,
            "ceil_mode": True,
            "count_include_pad": False,
        },
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_geometry(kernel, options):
    for channels_last in (True, False):
        check(2, 3, 9, 7, 6, 3, 3, kernel=kernel, dtype=dtype_of(kernel), run_options={"seed": 1},
              channels_last=channels_last, **options)  # fmt: skip


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("taps", [(1, 1), (1, 7), (5, 5), (7, 7), (2, 4)])
@pytest.mark.parametrize("kernel", ["simt", "mma"])
def test_filter_sizes(kernel, taps, stride):
    padding = (taps[0] // 2 + 1, taps[1] // 2)
    check(1, 16, 9, 10, 5, *taps, kernel=kernel, dtype=dtype_of(kernel), padding=padding,
          stride=stride, **POOLS["quad"])  # fmt: skip


def test_a_stride_has_as_many_phases():
    assert check(1, 4, 8, 8, 8, 3, 3, stride=(2, 3), pool="none").plan.phases == 6
    assert check(1, 4, 1, 8, 8, 1, 3, stride=(2, 3), pool="none").plan.phases == 3


@pytest.mark.parametrize("kernel", ["simt", "mma"])
def test_groups(kernel):
    for c, k, groups in ((6, 4, 2), (32, 16, 2), (5, 5, 5)):
        for stride in (1, 2):
            check(1, c, 5, 6, k, 3, 3, kernel=kernel, dtype=dtype_of(kernel), padding=1,
                  groups=groups, stride=stride, **POOLS["quad"])  # fmt: skip


@pytest.mark.parametrize("pool", [*POOLS, "avg"])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "sigmoid", "tanh"])
def test_activations(activation, pool):
    if pool == "avg" and activation in ("sigmoid", "tanh"):
        pytest.skip("stock's: no kernel has this gradient")
    options = POOLS.get(pool, {"pool": "avg", "pool_size": 2})
    for kernel in ("simt", "mma"):
        for channels_last in (True, False):
            check(1, 8, 6, 7, 16, 3, 3, kernel=kernel, dtype=dtype_of(kernel), padding=1,
                  channels_last=channels_last, activation=activation, **options)  # fmt: skip


@pytest.mark.parametrize("kernel", ["simt", "mma"])
@pytest.mark.parametrize("pool", [*POOLS, "avg"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(kernel, pool, value):
    """A gradient that is not finite reaches the pixels under its filter, of an average those under
    four of them, and no others; none where it is blocked."""
    options = POOLS.get(pool, {"pool": "avg", "pool_size": 2})
    given = inputs(1, 3, 9, 7, 5, 3, 3, dtype=dtype_of(kernel), padding=1, blocked=[3], **options)
    given.weight.abs_().add_(0.25)  # no zeros: infinity times zero is NaN
    given.grad_y[:, 3, 1, 1] = value
    assert run(given, kernel=kernel, seed=1).grad_x.isfinite().all()
    _, *place = (given.y > 0).nonzero()[0].tolist()
    given.grad_y[0, place[0], place[1], place[2]] = value
    hit = ~run(given, kernel=kernel, seed=1).grad_x.isfinite()
    rows, cols = (hit.any(1).any(dim)[0].nonzero() for dim in (2, 1))
    reach = 4 if pool == "avg" else 3
    assert 0 < rows.numel() <= reach and rows.max() - rows.min() < reach
    assert 0 < cols.numel() <= reach and cols.max() - cols.min() < reach


def test_memory_of_any_strides():
    """One gradient for all windows, weights and x with their dimensions exchanged."""
    given = inputs(1, 8, 6, 5, 6, 3, 3, pool="none")
    expanded = given.grad_y[:, :, :1, :1].contiguous().expand_as(given.grad_y)
    weight = given.weight.transpose(0, 1).contiguous().transpose(0, 1)
    turned = given.x.transpose(2, 3).contiguous().transpose(2, 3)
    for changed in ({"grad_y": expanded}, {"weight": weight}, {"x": turned}):
        for kernel in ("simt", "mma"):
            other = given._replace(**changed)
            compare(run(other, kernel=kernel), other)


@pytest.mark.parametrize(
    ("dtype", "c", "tf32", "kernel"),
    [
        (torch.float32, 16, False, "simt"),
        (torch.float32, 16, True, "mma"),
        (torch.bfloat16, 64, False, "mma"),
        (torch.float16, 65, False, "mma_wide"),
    ],
)
def test_the_kernel_that_is_chosen(dtype, c, tf32, kernel):
    answer = check(1, c, 4, 4, 8, 3, 3, padding=1, dtype=dtype, run_options={"tf32": tf32},
                   **POOLS["quad"])  # fmt: skip
    assert answer.plan.kernel == kernel


def test_what_does_not_fit_is_left_to_others():
    given = inputs(1, 8, 320, 320, 8, 2, 2, dilation=300, pool="none")
    assert run(given).plan.kernel == "none"


def test_schedules_and_preemption_change_no_bit():
    generator = torch.Generator().manual_seed(0)
    given = inputs(2, 16, 9, 14, 40, 3, 3, dtype=torch.bfloat16, padding=1, **POOLS["quad"])
    given.grad_y.copy_(torch.randn(given.grad_y.shape, generator=generator))
    plain = run(given)
    for seed in SEEDS:
        assert torch.equal(run(given, seed=seed, preempt=50).grad_x, plain.grad_x)


# --- what it moves --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 64, 32, 32, 128, 3, 3), {"padding": 1, **POOLS["quad"]}),
        ((1, 64, 28, 28, 64, 3, 3), {"padding": 1, "pool": "none"}),
        ((1, 64, 28, 28, 64, 3, 3), {"padding": 1, **POOLS["window"]}),
    ],
    ids=["quad", "none", "window"],
)
def test_bytes_moved_over_the_fewest_possible(shape, options, dtype):
    """The map of the convolution's gradient is never in memory."""
    given = inputs(*shape, dtype=dtype, **options)
    answer = run(given, profile=True)
    tensors = [given.grad_y, given.codes, given.weight, given.x]  # the last one as grad_x
    tensors += [given.y] if options["pool"] == "none" else []
    fewest = sum(t.numel() * t.element_size() for t in tensors if t is not None) / 32
    assert answer.profile.missed_sectors <= 1.05 * (fewest + answer.plan.workspace / 32)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [("simt", torch.float32), ("mma", torch.float32), ("mma", torch.bfloat16)],
    ids=["simt", "tf32", "mma"],
)
def test_weights_are_turned_in_whole_sectors(kernel, dtype, stride):
    """All phases together read every tap once."""
    given = inputs(1, 64, 6, 6, 64, 3, 3, dtype=dtype, stride=stride, pool="none")
    answer = run(given, kernel=kernel, profile=True)
    packing = answer.profile.select(file="conv_pack.cuh", space="global")
    fewest = given.weight.numel() * given.weight.element_size() / 32
    assert packing.select(direction="read").sectors == fewest
    assert packing.select(direction="write").sectors == fewest == answer.plan.workspace / 32


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kernel", ["simt", "mma"])
def test_shared_memory_without_bank_conflicts(kernel, pool):
    given = inputs(1, 64, 16, 16, 64, 3, 3, dtype=dtype_of(kernel), padding=1, **POOLS[pool])
    profile = run(given, kernel=kernel, profile=True).profile
    assert profile.passes <= 1.1 * profile.least_passes


# --- what would be noticed ------------------------------------------------------------------------


def test_no_synchronisation_can_be_left_out():
    """Those of conv_simt.cuh are the forward's."""
    given = inputs(1, 8, 6, 6, 72, 1, 2, dtype=torch.bfloat16, **POOLS["quad"])

    def notice(module):
        compare(run(given, kernel="mma", module=module, seed=1), given)

    files = ["cuda/conv_mma.cuh", "cuda/conv_pack.cuh"]
    assert {mutant.file for mutant in simt_mutate.mutants(files)} == set(files)
    assert simt_mutate.survivors(files, "conv_backward_input_one", notice) == []
