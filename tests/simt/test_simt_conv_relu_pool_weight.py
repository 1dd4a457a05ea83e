"""conv_relu_pool's weight and bias gradients on CUDA in the emulator.

A block takes 64 filters by 32 columns of 4 channels (simt), of 1 (simt_few) or by 18 of 8 (mma); a
box is 64 positions of 32-bit elements, or 128.
"""

from __future__ import annotations

import math

import pytest
import simt
import simt_mutate
import torch
from conv_relu_pool_calls import NARROW, POOLS, SEEDS
from conv_relu_pool_gradient_calls import inputs
from conv_relu_pool_weight_calls import check, compare, run

simt.load("conv_backward_weight")

INSTANCES = [
    ("simt", torch.float32),
    ("simt_few", torch.float32),
    *[("mma", dtype) for dtype in (torch.float32, *NARROW)],
]


def dtype_of(kernel):
    return torch.bfloat16 if kernel == "mma" else torch.float32


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("kernel", "dtype"), INSTANCES, ids=lambda value: str(value).removeprefix("torch.")
)
def test_every_instance(kernel, dtype, pool):
    c = 3 if kernel == "simt_few" else 24
    for seed in SEEDS:
        # NHWC and NCHW; K beyond one tile of filters, or less than one
        for channels_last, k in ((True, 8), (False, 67)):
            options = {"dtype": dtype, "channels_last": channels_last, "padding": 1}
            check(2, c, 7, 9, k, 3, 3, kernel=kernel, seed=seed, run_options={"seed": seed},
                  **options, **POOLS[pool])  # fmt: skip


@pytest.mark.parametrize("kernel", ["simt", "mma"])
@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 65, 131])
def test_filters_at_the_edge_of_a_tile(kernel, k):
    check(1, 8, 4, 5, k, 1, 1, kernel=kernel, dtype=dtype_of(kernel), **POOLS["quad"])


# Of one tap, of three and of nine: at a piece of channels, at a tile of columns and beyond.
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize(
    ("kernel", "dtype", "channels"),
    [
        ("simt", torch.float32, (1, 4, 5, 16, 43, 128, 129)),
        ("simt_few", torch.float32, (1, 2, 3, 5, 33)),
        ("mma", torch.bfloat16, (1, 7, 8, 16, 17, 144, 145)),
        ("mma", torch.float32, (4, 12, 16, 17, 145)),
    ],
)
def test_channels_at_the_edge_of_a_tile(kernel, dtype, channels, channels_last):
    for c in channels:
        for taps in ((1, 1), (1, 3), (3, 3)) if c < 100 else ((1, 1),):
            check(1, c, 4, 5, 5, *taps, kernel=kernel, dtype=dtype, channels_last=channels_last,
                  padding=(taps[0] // 2, 1), **POOLS["none"])  # fmt: skip


# Positions of one map at 63, 64, 65, 127, 128 and 129, a prime number of them, and maps of a few
# positions of which a box takes several.
@pytest.mark.parametrize("kernel", ["simt", "simt_few", "mma"])
@pytest.mark.parametrize(
    ("n", "h", "w"),
    [
        (1, 1, 63),
        (1, 8, 8),
        (1, 5, 13),
        (1, 1, 127),
        (1, 8, 16),
        (1, 3, 43),
        (7, 4, 4),
        (130, 1, 1),
    ],
)
def test_positions_at_the_edge_of_a_box(kernel, n, h, w):
    options = {"kernel": kernel, "dtype": dtype_of(kernel)}
    check(n, 4, h, w, 6, 1, 3, padding=(0, 1), **options, **POOLS["none"])
    if h > 1:
        check(n, 4, h, w, 6, 3, 3, padding=1, **options, **POOLS["quad"])


@pytest.mark.parametrize("kernel", ["simt", "simt_few", "mma"])
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1, "pool": "none"},
        {"stride": (1, 3), "padding": (2, 0), "pool": "max", "pool_size": 2},
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


@pytest.mark.parametrize("taps", [(1, 1), (1, 7), (5, 5), (7, 7)])
@pytest.mark.parametrize("kernel", ["simt", "simt_few", "mma"])
def test_filter_sizes(kernel, taps):
    c = 3 if kernel == "simt_few" else 16
    padding = (taps[0] // 2 + 1, taps[1] // 2)
    check(1, c, 6, 8, 5, *taps, kernel=kernel, dtype=dtype_of(kernel), padding=padding,
          **POOLS["quad"])  # fmt: skip


@pytest.mark.parametrize("kernel", ["simt", "simt_few", "mma"])
def test_groups(kernel):
    for c, k, groups in ((6, 4, 2), (32, 16, 2), (5, 5, 5)):
        check(1, c, 5, 6, k, 3, 3, kernel=kernel, dtype=dtype_of(kernel), padding=1, groups=groups,
              **POOLS["quad"])  # fmt: skip


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


@pytest.mark.parametrize("kernel", ["simt", "simt_few", "mma"])
@pytest.mark.parametrize("pool", [*POOLS, "avg"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(kernel, pool, value):
    """A gradient that is not finite reaches its filter, and no other; none where it is blocked."""
    options = POOLS.get(pool, {"pool": "avg", "pool_size": 2})
    given = inputs(1, 3, 9, 7, 5, 3, 3, dtype=dtype_of(kernel), padding=1, blocked=[3], **options)
    given.x.abs_().add_(0.25)  # no zeros: infinity times zero would be NaN in one order of sums
    _, hit, *place = (given.y > 0).nonzero()[0].tolist()
    given.grad_y[:, hit, place[0], place[1]] = value
    given.grad_y[:, 3, 1, 1] = value
    answer = run(given, kernel=kernel, seed=1)
    others = [k for k in range(5) if k != hit]
    assert not answer.bias[hit].isfinite() and not answer.weight[hit].isfinite().any()
    assert answer.bias[others].isfinite().all() and answer.weight[others].isfinite().all()


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize("pool", [*POOLS, "avg"])
def test_bias_alone(dtype, pool, channels_last):
    """Filters at the edge of a block's 32, windows at that of a block's 64."""
    options = POOLS.get(pool, {"pool": "avg", "pool_size": 2})
    for k in (1, 31, 32, 33):
        given = inputs(3, 4, 9, 15, k, 1, 1, dtype=dtype, channels_last=channels_last, **options)
        answer = run(given, need_weight=False, seed=1)
        assert answer.plan.kernel == "bias" and answer.weight is None
        compare(answer, given)


def test_weight_alone():
    answer = check(
        1, 8, 6, 6, 8, 3, 3, padding=1, run_options={"need_bias": False}, **POOLS["quad"]
    )
    assert answer.bias is None and answer.plan.bias_parts == 0


def test_memory_of_any_strides():
    """Rows with gaps, height and width exchanged, and one gradient for all windows."""
    given = inputs(1, 8, 6, 5, 6, 3, 3, pool="none")
    wide = given.x.new_full((1, 8, 6, 9), math.nan)
    wide[..., :5] = given.x
    turned = given.x.transpose(2, 3).contiguous().transpose(2, 3)
    expanded = given.grad_y[:, :, :1, :1].contiguous().expand_as(given.grad_y)
    weight = given.weight.transpose(0, 1).contiguous().transpose(0, 1)
    for changed in ({"x": wide[..., :5]}, {"x": turned}, {"grad_y": expanded}, {"weight": weight}):
        for kernel in ("simt", "mma"):
            other = given._replace(**changed)
            compare(run(other, kernel=kernel, need_bias=True), other)


@pytest.mark.parametrize(
    ("dtype", "c", "tf32", "kernel"),
    [
        (torch.float32, 3, False, "simt_few"),
        (torch.float32, 16, False, "simt"),
        (torch.float32, 16, True, "mma"),
        (torch.float32, 3, True, "simt_few"),
        (torch.bfloat16, 3, False, "mma"),
        (torch.float16, 16, False, "mma"),
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
    given = inputs(4, 16, 9, 14, 8, 3, 3, dtype=torch.bfloat16, padding=1, **POOLS["quad"])
    given.x.copy_(torch.randn(given.x.shape, generator=generator))
    plain = run(given)
    assert plain.plan.parts > 1 and plain.plan.bias_parts > 1
    for seed in SEEDS:
        other = run(given, seed=seed, preempt=50)
        assert torch.equal(other.weight, plain.weight) and torch.equal(other.bias, plain.bias)


# --- what it moves --------------------------------------------------------------------------------


def fewest_sectors(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors if t is not None) / 32


LAYERS = {
    "first": ((1, 3, 32, 32, 64, 3, 3), {"padding": 1, **POOLS["quad"]}),
    "inner": ((2, 64, 16, 16, 64, 3, 3), {"padding": 1, **POOLS["quad"]}),
    "no pool": ((1, 32, 28, 28, 64, 3, 3), {"padding": 1, "pool": "none"}),
    "one by one": ((1, 64, 16, 16, 64, 1, 1), {"pool": "none"}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_bytes_moved_over_the_fewest_possible(layer, dtype):
    """Of the device's memory: everything once, and the sums of the parts."""
    shape, options = LAYERS[layer]
    given = inputs(*shape, dtype=dtype, **options)
    answer = run(given, profile=True)
    y = given.y if options["pool"] == "none" else None
    read = fewest_sectors(given.x, given.grad_y, y, given.codes)
    sums = answer.plan.workspace / 32
    fewest = read + sums + fewest_sectors(answer.weight, answer.bias)
    assert answer.profile.missed_sectors <= 1.05 * fewest


@pytest.mark.parametrize("kernel", ["simt", "mma"])
@pytest.mark.parametrize("pool", ["none", "quad"])
def test_everything_is_read_once_a_tile(kernel, pool):
    """And not once a tap: pixels with a halo, of the channels of the tile's columns."""
    c = 16  # two pieces of eight channels under nine taps are the columns of an mma tile
    given = inputs(1, c, 16, 16, 64, 3, 3, dtype=dtype_of(kernel), padding=1, **POOLS[pool])
    answer = run(given, kernel=kernel, need_bias=False, profile=True)
    moved = answer.profile.select(space="global", direction="read")
    tiles = {"simt": 2, "mma": 1}[kernel]
    for argument, tensor in ((6, given.grad_y), (8, given.codes)):
        if tensor is not None:
            assert moved.select(memory=f"argument {argument}").sectors == tiles * fewest_sectors(
                tensor
            )
    # simt: tiles of 32 columns reach over four and two of the four pieces of channels
    share = {"simt": 1.5, "mma": 1}[kernel]
    assert moved.select(memory="argument 9").sectors <= 1.5 * share * fewest_sectors(given.x)


@pytest.mark.parametrize("pool", ["none", "quad"])
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [("simt", torch.float32), ("mma", torch.float32), ("mma", torch.bfloat16)],
    ids=["simt", "tf32", "mma"],
)
def test_shared_memory_without_bank_conflicts(kernel, dtype, pool):
    """Where rows of a box are multiples of eight positions."""
    given = inputs(1, 16, 16, 16, 64, 3, 3, dtype=dtype, padding=1, **POOLS[pool])
    profile = run(given, kernel=kernel, profile=True).profile
    assert profile.passes <= 1.05 * profile.least_passes


# --- what would be noticed ------------------------------------------------------------------------


def test_no_synchronisation_can_be_left_out():
    """A part has several boxes, more than the two buffers hold."""
    given = inputs(9, 16, 8, 16, 8, 1, 1, dtype=torch.bfloat16, **POOLS["quad"])

    def notice(module):
        compare(run(given, kernel="mma", blocks=2, module=module, seed=1), given)

    names = ("conv_backward_weight_tile", "conv_sum", "conv_backward_bias")
    files = [f"cuda/{name}.cuh" for name in names]
    assert {mutant.file for mutant in simt_mutate.mutants(files)} == set(files)
    assert simt_mutate.survivors(files, "conv_backward_weight_one", notice) == []
