"""conv_relu_pool's CUDA kernels in the emulator: every instance, edges of tiles, ties and NaN.

A tile is 128 positions by 64 filters, or 128 for mma_wide; its positions are a box of the map. A
chunk is 16 channels in float32 arithmetic, on tensor cores 32, or 16 of tf32.
"""

from __future__ import annotations

import math

import pytest
import simt
import simt_mutate
import torch
from conv_relu_pool_calls import KERNELS, NARROW, POOLS, SEEDS, check, exact, make, run

simt.load("conv_relu_pool")

INSTANCES = [
    ("simt", torch.float32),
    ("simt_few", torch.float32),
    *[("mma", dtype) for dtype in (torch.float32, *NARROW)],
    *[("mma_wide", dtype) for dtype in (torch.float32, *NARROW)],
    *[("mma_few", dtype) for dtype in NARROW],
]


def channels_for(kernel):
    """Two chunks, the second not full, or few."""
    return 3 if kernel.endswith("few") else 40


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("kernel", "dtype"), INSTANCES, ids=lambda value: str(value).removeprefix("torch.")
)
def test_every_instance(kernel, dtype, pool):
    c = channels_for(kernel)
    for seed in SEEDS:
        # NCHW and NHWC; K beyond one tile of filters, or less than one
        for channels_last, k in ((True, 8), (False, 67)):
            tensors = make(2, c, 7, 9, k, 3, 3, dtype=dtype, channels_last=channels_last, seed=seed)
            check(*tensors, kernel=kernel, padding=1, seed=seed, **POOLS[pool])


@pytest.mark.parametrize("kernel", ["simt", "mma"])
@pytest.mark.parametrize("k", [1, 4, 63, 64, 65, 131])
def test_filters_at_the_edge_of_a_tile(kernel, k):
    dtype = torch.float32 if kernel == "simt" else torch.bfloat16
    check(*make(1, 8, 4, 5, k, 1, 1, dtype=dtype), kernel=kernel, seed=1, **POOLS["quad"])


@pytest.mark.parametrize("k", [127, 128, 129])
def test_filters_at_the_edge_of_a_wide_tile(k):
    check(*make(1, 8, 4, 5, k, 1, 1, dtype=torch.float16), kernel="mma_wide", **POOLS["quad"])


@pytest.mark.parametrize(
    ("kernel", "dtype", "channels"),
    [
        ("simt", torch.float32, (1, 4, 15, 16, 17, 33)),
        ("simt_few", torch.float32, (1, 2, 3, 5)),
        ("mma", torch.bfloat16, (8, 15, 16, 17, 31, 32, 33, 72)),
        ("mma", torch.float32, (4, 15, 16, 17, 37)),
        ("mma_few", torch.bfloat16, (1, 2, 3, 4, 7)),
    ],
)
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
def test_channels_at_the_edge_of_a_chunk(kernel, dtype, channels, channels_last):
    for c in channels:
        tensors = make(1, c, 5, 6, 5, 3, 2, dtype=dtype, channels_last=channels_last)
        check(*tensors, kernel=kernel, padding=1, seed=2, **POOLS["none"])


# Positions of one map at 127, 128 and 129, a prime number of them, and maps of a few positions of
# which a tile takes several.
@pytest.mark.parametrize("kernel", ["simt", "mma", "mma_few"])
@pytest.mark.parametrize(
    ("n", "h", "w"), [(1, 1, 127), (1, 8, 16), (1, 3, 43), (1, 1, 131), (7, 4, 4), (130, 1, 1)]
)
def test_positions_at_the_edge_of_a_tile(kernel, n, h, w):
    dtype = torch.float32 if kernel == "simt" else torch.bfloat16
    check(*make(n, 4, h, w, 6, 1, 3, dtype=dtype), kernel=kernel, padding=(0, 1), pool="none")
    if h > 1:
        check(*make(n, 4, h, w, 6, 3, 3, dtype=dtype), kernel=kernel, padding=1, **POOLS["quad"])


@pytest.mark.parametrize("kernel", ["simt", "simt_few", "mma", "mma_few"])
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
    dtype = torch.float16 if kernel.startswith("mma") else torch.float32
    for channels_last in (True, False):
        tensors = make(2, 3, 9, 7, 6, 3, 3, dtype=dtype, channels_last=channels_last)
        check(*tensors, kernel=kernel, seed=1, **options)


@pytest.mark.parametrize("taps", [(1, 1), (1, 7), (5, 5), (7, 7)])
@pytest.mark.parametrize("kernel", ["simt", "simt_few", "mma", "mma_few"])
def test_filter_sizes(kernel, taps):
    dtype = torch.bfloat16 if kernel.startswith("mma") else torch.float32
    c = 3 if kernel.endswith("few") else 24
    padding = (taps[0] // 2 + 1, taps[1] // 2)
    tensors = make(1, c, 6, 8, 5, *taps, dtype=dtype)
    check(*tensors, kernel=kernel, padding=padding, **POOLS["quad"])


@pytest.mark.parametrize("kernel", ["simt", "simt_few", "mma", "mma_few"])
def test_groups(kernel):
    dtype = torch.bfloat16 if kernel.startswith("mma") else torch.float32
    for c, k, groups in ((6, 4, 2), (16, 8, 2), (5, 5, 5)):
        tensors = make(1, c, 5, 6, k, 3, 3, groups=groups, dtype=dtype)
        check(*tensors, kernel=kernel, padding=1, groups=groups, **POOLS["quad"])


@pytest.mark.parametrize("pool", [*POOLS, "avg"])
@pytest.mark.parametrize(
    "activation", ["none", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu"]
)
def test_activations(activation, pool):
    options = POOLS.get(pool, {"pool": "avg", "pool_size": 2})
    for kernel, dtype in (("simt", torch.float32), ("mma", torch.bfloat16)):
        x, weight, bias = make(1, 8, 6, 7, 6, 3, 3, dtype=dtype)
        for given in (bias, None):
            check(x, weight, given, kernel=kernel, padding=1, activation=activation, **options)


@pytest.mark.parametrize("kernel", ["simt", "mma", "mma_few"])
@pytest.mark.parametrize("pool", ["quad", "window"])
def test_ties_take_the_first_position(kernel, pool):
    dtype = torch.float32 if kernel == "simt" else torch.bfloat16
    x, weight, bias = make(1, 4, 8, 8, 8, 1, 1, dtype=dtype)
    answer = check(x.fill_(0.5), weight, bias, kernel=kernel, **POOLS[pool])
    positions = answer.codes % 128
    # of a padded window, the first position that is inside the map
    inside = torch.zeros(1, 4, 4, 8, dtype=torch.uint8)
    if pool == "window":
        inside[:, 0] += 3
        inside[:, :, 0] += 1
    assert torch.equal(positions, inside)


@pytest.mark.parametrize("kernel", ["simt", "mma", "mma_few"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(kernel, pool, value):
    """NaN wins every window that it is in, the last one; infinities are ordinary sums; neither
    leaks into positions that do not read it, be it as a product with a padding's zero."""
    dtype = torch.float32 if kernel == "simt" else torch.float16
    x, weight, bias = make(1, 3, 9, 7, 5, 3, 3, dtype=dtype)
    weight.abs_().add_(0.25)  # no zeros: infinity times zero would be NaN in one order of sums
    x[0, 0, 3, 2] = value
    x[0, 2, 8, 6] = value
    check(x, weight, bias, kernel=kernel, padding=1, **POOLS[pool])


@pytest.mark.parametrize("kernel", ["simt", "mma"])
def test_padding_of_a_pool_never_wins(kernel):
    """Sums below any finite padding: -inf is what the padding of a max pool counts as."""
    dtype = torch.float32 if kernel == "simt" else torch.bfloat16
    x, weight, bias = make(1, 8, 6, 6, 8, 1, 1, dtype=dtype)
    check(x.fill_(1), weight.fill_(-1), bias, kernel=kernel, activation="none", **POOLS["window"])


def test_no_codes_are_written_unless_asked_for():
    answer = check(*make(1, 8, 6, 6, 8, 3, 3), save_codes=False, padding=1, **POOLS["quad"])
    assert answer.codes is None


def test_memory_of_any_strides():
    """Rows with gaps, and height and width exchanged."""
    x, weight, bias = make(1, 8, 6, 5, 6, 3, 3)
    wide = x.new_full((1, 8, 6, 9), math.nan)
    wide[..., :5] = x
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    for view in (wide[..., :5], turned):
        for kernel in ("simt", "mma"):
            check(view, weight.transpose(0, 1).contiguous().transpose(0, 1), bias, kernel=kernel)


@pytest.mark.parametrize(
    ("dtype", "c", "k", "tf32", "kernel"),
    [
        (torch.float32, 3, 8, False, "simt_few"),
        (torch.float32, 16, 8, False, "simt"),
        (torch.float32, 16, 8, True, "mma"),
        (torch.float32, 3, 8, True, "simt_few"),
        (torch.bfloat16, 3, 8, False, "mma_few"),
        (torch.bfloat16, 16, 64, False, "mma"),
        (torch.float16, 16, 65, False, "mma_wide"),
        (torch.float32, 8, 65, True, "mma_wide"),
    ],
)
def test_the_kernel_that_is_chosen(dtype, c, k, tf32, kernel):
    tensors = make(1, c, 4, 4, k, 3, 3, dtype=dtype)
    assert check(*tensors, padding=1, tf32=tf32, **POOLS["quad"]).plan.kernel == kernel


def test_what_does_not_fit_is_left_to_others():
    """A window of 128 positions under a filter so far dilated that no tile holds the input."""
    x, weight, bias = exact((1, 8, 900, 900), 0), exact((1, 8, 2, 2), 1), None
    options = {"pool": "max", "pool_size": (8, 16), "dilation": 400}
    assert run(x, weight, bias, **options).plan.kernel == "none"


def test_schedules_and_preemption_change_no_bit():
    tensors = make(2, 40, 7, 9, 8, 3, 3, dtype=torch.bfloat16)
    plain = run(*tensors, kernel="mma", padding=1, **POOLS["quad"])
    for seed in SEEDS:
        other = run(*tensors, kernel="mma", padding=1, seed=seed, preempt=50, **POOLS["quad"])
        assert torch.equal(other.y, plain.y) and torch.equal(other.codes, plain.codes)


# --- what it moves --------------------------------------------------------------------------------


def fewest_sectors(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors if t is not None) / 32


# Layers in the manner of those that people train, in one picture of each.
LAYERS = {
    "first": ((1, 3, 32, 32, 64, 3, 3), {"padding": 1, **POOLS["quad"]}),
    "inner": ((2, 64, 32, 32, 128, 3, 3), {"padding": 1, **POOLS["quad"]}),
    "no pool": ((1, 64, 28, 28, 64, 3, 3), {"padding": 1, "pool": "none"}),
    "stem": ((1, 3, 64, 64, 64, 7, 7), {"stride": 2, "padding": 3, **POOLS["window"]}),
    "one by one": ((1, 64, 16, 16, 64, 1, 1), {"pool": "none"}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_bytes_moved_over_the_fewest_possible(layer, dtype):
    """Of the device's memory, and of the caches: halos, and weights once a tile."""
    shape, options = LAYERS[layer]
    x, weight, bias = make(*shape, dtype=dtype)
    answer = run(x, weight, bias, profile=True, **options)
    fewest = fewest_sectors(x, weight, bias, answer.y, answer.codes)
    packed = answer.plan.workspace / 32
    assert answer.profile.missed_sectors <= 1.05 * (fewest + packed)
    assert answer.profile.sectors <= 8 * fewest


@pytest.mark.parametrize(
    ("kernel", "dtype"), [("simt", torch.float32), ("mma", torch.bfloat16)], ids=["simt", "mma"]
)
def test_input_is_read_once_and_a_halo(kernel, dtype):
    """Not once a tap, and outputs are written once, in whole sectors."""
    x, weight, bias = make(1, 64, 16, 16, 64, 3, 3, dtype=dtype)
    answer = run(x, weight, bias, kernel=kernel, padding=1, profile=True, **POOLS["quad"])
    plan, moved = answer.plan, answer.profile.select(space="global")

    def sectors(argument, direction):
        return moved.select(memory=f"argument {argument}", direction=direction).sectors

    # Two tiles of 16 x 8 positions, of which each reads a column of the other's.
    assert (plan.blocks, plan.rows, plan.cols) == (2, 8, 4)
    assert sectors(5, "read") == fewest_sectors(x) * 18 / 16
    assert sectors(8, "write") == fewest_sectors(answer.y)
    assert sectors(9, "write") == fewest_sectors(answer.codes)
    if kernel == "mma":
        assert sectors(6, "read") == fewest_sectors(weight) * plan.blocks


@pytest.mark.parametrize("pool", ["none", "quad"])
@pytest.mark.parametrize(
    ("kernel", "dtype"), [("simt", torch.float32), ("mma", torch.bfloat16)], ids=["simt", "mma"]
)
def test_shared_memory_without_bank_conflicts(kernel, dtype, pool):
    """Where rows of a tile are multiples of eight positions: under window pools they are odd."""
    tensors = make(1, 64, 16, 16, 64, 3, 3, dtype=dtype)
    profile = run(*tensors, kernel=kernel, padding=1, profile=True, **POOLS[pool]).profile
    assert profile.passes <= 1.1 * profile.least_passes


# --- what would be noticed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "file"), [("simt", "conv_simt"), ("mma", "conv_mma"), ("mma_few", "conv_mma_few")]
)
def test_no_synchronisation_can_be_left_out(kernel, file):
    dtype = torch.float32 if kernel == "simt" else torch.bfloat16
    tensors = make(1, 3 if kernel == "mma_few" else 72, 6, 6, 8, 1, 2, dtype=dtype)

    def notice(module):
        check(*tensors, kernel=kernel, module=module, seed=1, **POOLS["quad"])

    defines = (f"CONV_KERNEL={KERNELS.index(kernel)}",)
    files = [f"cuda/{file}.cuh"]
    assert simt_mutate.mutants(files) != []
    assert simt_mutate.survivors(files, "conv_relu_pool_one", notice, defines) == []
