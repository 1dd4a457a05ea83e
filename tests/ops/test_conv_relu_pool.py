"""Values and gradients of conv_relu_pool at the edges of its tiles, layouts, dtypes and rules."""

import copy

import pytest
import torch
from ops.conv_cases import assert_near, check, exact, gradients, lay_out, make, ours, stock

import imgfast
from imgfast.ops.conv_relu_pool import _bind
from imgfast.ops.conv_relu_pool_route import spec_of

ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "none")
POOLS = ("max", "avg", "none")
LAYOUTS = ("nchw", "channels_last", "transposed", "offset")


# Vectors hold 4, 8 or 16 lanes, a block of filters two vectors, a block of channels 16 or 32.
@pytest.mark.devices(simt_every=5)
@pytest.mark.parametrize("channels", [1, 3, 4, 15, 16, 17, 31, 32, 33, 48, 64])
@pytest.mark.parametrize("filters", [1, 3, 8, 15, 16, 17, 33, 64])
def test_channels_and_filters(channels, filters, device):
    check(*make(2, channels, 6, 6, filters, 3, 3, device=device), padding=1)


# A tile covers up to 6 or 12 columns, or 3 windows.
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("width", [2, 3, 5, 6, 7, 11, 12, 13, 14, 23, 26])
def test_map_sizes(width, pool, device):
    check(*make(2, 3, width + 1, width, 17, 3, 3, device=device), padding=1, pool=pool)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [3, 16, 20])
def test_layouts_and_dtypes(dtype, layout, channels, device):
    tensors = make(2, channels, 9, 10, 18, 3, 3, dtype=dtype, layout=layout, device=device)
    check(*tensors, padding=1)


# Without padding, channels that lie together are read where they are: of dense pixels a row of taps
# is one run, of a slice of the channels or a dilated filter it is several. Rows of 8, 7 and 27
# results are copied to NCHW singly or several at a time, and 32 filters, not 20, straight to
# channels_last.
@pytest.mark.devices(simt_every=23)
@pytest.mark.parametrize("channels", [slice(None), slice(2, 18), slice(5, 6)])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("filters", [20, 32])
@pytest.mark.parametrize(
    ("taps", "options"),
    [
        (1, {}),
        (1, {"stride": 2, "pool": "none"}),
        (1, {"pool_size": 3, "pool_stride": 1}),
        (2, {"pool": "none", "activation": "gelu"}),
        (3, {"pool": "avg"}),
        (3, {"dilation": 2}),
        (3, {"stride": (1, 2), "pool": "none"}),
    ],
)
def test_without_padding(taps, options, filters, layout, channels, device):
    for height, width in ((16, 16), (17, 56)):
        x, _, _ = make(2, 20, height, width, 1, 1, 1, layout=layout, device=device)
        x = x[:, channels]
        _, weight, bias = make(1, x.shape[1], 1, 1, filters, taps, taps, device=device)
        check(x, weight, bias, **options)


def test_without_padding_in_groups(device):
    x, weight, bias = make(2, 24, 9, 9, 64, 3, 3, groups=2, layout="channels_last", device=device)
    check(x, weight, bias, groups=2)
    check(x, weight, bias, groups=2, pool="none")


@pytest.mark.parametrize("weight_layout", LAYOUTS)
def test_weight_layouts(weight_layout, device):
    x, weight, bias = make(2, 5, 8, 8, 18, 3, 3, device=device)
    check(x, lay_out(weight, weight_layout), bias, padding=1)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, pool, layout, device):
    tensors = make(2, 4, 8, 9, 20, 3, 3, layout=layout, device=device)
    check(*tensors, padding=1, activation=activation, pool=pool)


@pytest.mark.devices(simt_every=3)
@pytest.mark.parametrize("filter_size", [(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1), (2, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("channels", [3, 33])
def test_filters_and_strides(filter_size, stride, channels, device):
    x, weight, bias = make(1, channels, 15, 13, 9, *filter_size, device=device)
    check(x, weight, bias, stride=stride, padding=tuple(size // 2 for size in filter_size))


@pytest.mark.parametrize("padding", [0, 1, 3, (4, 0), "same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
def test_padding_and_dilation(padding, dilation, device):
    check(*make(2, 3, 11, 12, 10, 3, 3, device=device), padding=padding, dilation=dilation)


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize(
    "window",
    [
        {"pool_size": 2},
        {"pool_size": 2, "pool_stride": 1},
        {"pool_size": 2, "pool_padding": 1},
        {"pool_size": 2, "ceil_mode": True},
        {"pool_size": 1},
        {"pool_size": 1, "pool_stride": 2},
        {"pool_size": 3},
        {"pool_size": 3, "pool_stride": 1},
        {"pool_size": 3, "pool_stride": 2, "pool_padding": 1},
        {"pool_size": 3, "pool_stride": 2, "pool_padding": 1, "ceil_mode": True},
        {"pool_size": (2, 3), "pool_stride": (3, 1), "pool_padding": (0, 1)},
        {"pool_size": (11, 9)},
        {"pool_size": 3, "pool_padding": 1, "count_include_pad": False},
    ],
    ids=str,
)
def test_windows(pool, window, device):
    check(*make(2, 3, 11, 9, 10, 3, 3, device=device), padding=1, pool=pool, **window)


# The weight gradient of few input channels has a kernel of its own: filters fill vectors, taps come
# in blocks of at most 4 x 4 and 12, rows and columns are sorted by their remainder to the stride.
@pytest.mark.devices(simt_every=47)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(
    "window",
    [
        {"pool_size": 2},
        {"pool_size": 2, "pool_stride": 1},
        {"pool_size": 3},
        {"pool_size": 3, "pool_stride": 2, "pool_padding": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (5, 1), (7, 2)])
@pytest.mark.parametrize("filters", [1, 7, 16, 33, 64])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_few_channels(channels, filters, taps, stride, window, layout, device):
    tensors = make(2, channels, 21, 19, filters, taps, taps, layout=layout, device=device)
    check(*tensors, stride=stride, padding=taps // 2, **window)


# A few filters without a pool have kernels of their own, whose lanes are channels: 5 filters and 7
# channels are beyond them. Rows of several strips, tiles of columns, taps in several passes, and
# padding beyond the filter; a filter of 1 x 1 is left to stock unless it is asked for.
@pytest.mark.devices(simt_every=29)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(
    ("taps", "padding"), [((3, 3), 1), ((1, 1), 0), ((5, 2), (1, 3)), ((2, 7), (3, 0))]
)
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("channels", [7, 8, 24, 65])
@pytest.mark.parametrize("filters", [1, 4, 5])
def test_few_filters(filters, channels, activation, taps, padding, layout, device):
    tensors = make(2, channels, 19, 27, filters, *taps, layout=layout, device=device)
    check(*tensors, padding=padding, activation=activation, pool="none", algorithm="direct")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("filters", [1, 4])
def test_few_filters_in_other_dtypes(filters, dtype, device):
    tensors = make(1, 40, 9, 70, filters, 3, 3, dtype=dtype, device=device)
    check(*tensors, padding=1, activation="tanh", pool="none", algorithm="direct")


# Windows of up to a whole vector of 4, 8 or 16 positions and beyond, taps that no block divides.
@pytest.mark.devices(simt_every=31)
@pytest.mark.parametrize("window", [1, (1, 4), (4, 1), (2, 4), (4, 2), (4, 4), (1, 16), (16, 1), 5])
@pytest.mark.parametrize("taps", [(1, 1), (1, 9), (9, 1), (2, 5), (11, 11)])
@pytest.mark.parametrize("stride", [1, (2, 3), 4])
def test_few_channels_odd_windows(stride, taps, window, device):
    size = (window, window) if isinstance(window, int) else window
    steps = (stride, stride) if isinstance(stride, int) else stride
    height, width = (
        tap + step * (2 * side + 1) for tap, step, side in zip(taps, steps, size, strict=True)
    )
    tensors = make(2, 4, height, width, 96, *taps, groups=2, device=device)
    check(*tensors, stride=stride, groups=2, pool_size=window, pool_stride=1, ceil_mode=True)


@pytest.mark.parametrize("dilation", [2, (1, 3)])
def test_dilated_windows(dilation, device):
    tensors = make(2, 3, 11, 12, 10, 3, 3, device=device)
    check(*tensors, padding=1, pool_dilation=dilation, pool_stride=1)


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups(groups, device):
    check(*make(2, 6, 8, 8, 18, 3, 3, groups=groups, device=device), padding=1, groups=groups)


# Depthwise filters have kernels whose lanes are channels: less than a vector, whole ones, one or
# two in the last block, several blocks. Without padding, whole vectors are read where they are.
def check_depthwise(channels, taps=(3, 3), *, n=2, size=(11, 13), options=None, **tensors):
    options = {"padding": tuple(tap // 2 for tap in taps), "groups": channels} | (options or {})
    check(*make(n, channels, *size, channels, *taps, groups=channels, **tensors), **options)


@pytest.mark.devices(simt_every=29)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [2, 3, 16, 17, 33, 64, 70])
def test_depthwise_layouts_and_dtypes(channels, dtype, layout, device):
    of_tensors = {"dtype": dtype, "layout": layout, "device": device}
    check_depthwise(channels, **of_tensors)
    check_depthwise(channels, **of_tensors, options={"padding": 0, "pool": "none"})


@pytest.mark.devices(simt_every=7)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("channels", [20, 32])
@pytest.mark.parametrize(
    "options",
    [
        {"pool": "none", "activation": "none"},
        {"pool": "none", "activation": "tanh", "padding": 4},
        {"pool": "avg"},
        {"pool": "avg", "activation": "leaky_relu", "pool_size": (2, 3), "pool_stride": (1, 2)},
        {"pool": "avg", "activation": "none", "pool_size": 3, "pool_stride": 2, "pool_padding": 1},
        {"activation": "sigmoid"},
        {"activation": "silu"},
        {"pool_size": 3, "pool_stride": 2, "pool_padding": 1},
        {"pool_size": 3, "pool_stride": 1, "ceil_mode": True},
        {"pool_size": 2, "pool_stride": 3},
        {"pool_size": 2, "pool_dilation": 3, "pool_stride": 2},
        {"pool_size": (11, 13)},
    ],
    ids=str,
)
def test_depthwise_windows(options, channels, layout, device):
    check_depthwise(channels, layout=layout, options=options, device=device)


# The input gradient falls into phases of the stride, some of them without a tap, some without a
# column; the weight gradient takes 25 or 12 taps at a time, of 7 columns at most.
@pytest.mark.devices(simt_every=41)
@pytest.mark.parametrize("taps", [(1, 1), (2, 4), (3, 3), (5, 5), (7, 7), (1, 8), (9, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1), (16, 17)])
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
def test_depthwise_filters(dilation, stride, taps, device):
    options = {"stride": stride, "dilation": dilation, "pool": "none"}
    for padding in ({}, {"padding": 6}):
        check_depthwise(18, taps, size=(20, 22), options=options | padding, device=device)


# Units of a few rows, of a few channels and of both.
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("size", [(40, 70), (3, 200), (120, 8)])
@pytest.mark.parametrize("taps", [(3, 3), (7, 7)])
def test_depthwise_units(taps, size, layout):
    check_depthwise(80, taps, n=1, size=size, layout=layout)
    check_depthwise(80, taps, n=1, size=size, layout=layout, options={"pool": "none", "stride": 2})


def test_depthwise_routes():
    x, weight, bias = make(2, 16, 8, 8, 16, 3, 3, groups=16)
    info = imgfast.dispatch_info(x, weight, bias, groups=16)
    assert info.name == "direct" and "depthwise" in info.reason
    bare = imgfast.dispatch_info(
        *make(2, 16, 64, 64, 16, 3, 3, groups=16), groups=16, pool="none", activation="none"
    )
    assert bare.name == "stock" and "without a pool" in bare.reason
    with pytest.raises(RuntimeError, match="depthwise filters have kernels of their own"):
        imgfast.conv_relu_pool(x, weight, bias, groups=16, algorithm="winograd")


def test_groups_of_few_filters_are_left_to_stock():
    x, weight, bias = make(2, 16, 8, 8, 16, 3, 3, groups=8)
    assert imgfast.dispatch_info(x, weight, bias, groups=8).name == "stock"
    check(x, weight, bias, groups=8, padding=1)


@pytest.mark.parametrize("batch", [1, 2, 257])
def test_batches(batch, device):
    check(*make(batch, 3, 5, 5, 8, 3, 3, device=device), padding=1)


def test_empty_batch():
    x, weight, bias = make(0, 3, 6, 6, 8, 3, 3)
    y = imgfast.conv_relu_pool(x, weight.requires_grad_(), bias)
    assert y.shape == (0, 8, 2, 2)
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_unbatched(device):
    x, weight, bias = make(1, 3, 6, 6, 8, 3, 3, device=device)
    y = imgfast.conv_relu_pool(x[0], weight, bias)
    assert torch.equal(y, stock(x[0], weight, bias))


def test_without_bias(device):
    check(*make(2, 3, 8, 8, 10, 3, 3, bias=False, device=device), padding=1)


@pytest.mark.parametrize("training", [False, True])
def test_first_of_equal_values_wins(training, device):
    x = torch.zeros(1, 1, 4, 4, device=device, requires_grad=training)
    weight = torch.ones(1, 1, 1, 1, device=device, requires_grad=training)
    y = ours(x, weight, torch.ones(1, device=device))
    assert torch.equal(y.cpu(), torch.ones(1, 1, 2, 2))
    if training:
        y.sum().backward()
        first = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).repeat(2, 2)
        assert torch.equal(x.grad[0, 0].cpu(), first)


def test_no_gradient_at_zero(device):
    x = torch.zeros(1, 1, 2, 2, device=device, requires_grad=True)
    ours(x, torch.ones(1, 1, 1, 1, device=device), None).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.devices(simt_every=7)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "none"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("place", [(0, 0), (3, 2), (5, 5)])
@pytest.mark.parametrize("pool", ["max", "none"])
def test_not_finite(value, place, activation, pool, device):
    x, weight, bias = make(1, 3, 6, 6, 18, 3, 3, device=device)
    x[0, 1][place] = value
    options = {"padding": 1, "activation": activation, "pool": pool}
    wide = [t.double().cpu() for t in (x, weight, bias)]
    y = imgfast.conv_relu_pool(x, weight, bias, **options)
    assert_near(y, stock(*wide, **options).float(), "y")


def test_gradient_of_infinity_stays_in_its_patch(device):
    x, weight, _ = make(1, 3, 8, 8, 18, 3, 3, device=device)
    x.requires_grad_()
    y = imgfast.conv_relu_pool(x, weight, activation="none")
    grad_y = torch.zeros_like(y)
    grad_y[0, 0, 0, 0] = float("inf")
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    assert grad_x[0, :, 4:].eq(0).all() and grad_x[0, :, :, 4:].eq(0).all()


# Any subset of (x, weight, bias).
@pytest.mark.parametrize("subset", range(1, 8))
@pytest.mark.parametrize("pool", POOLS)
def test_only_what_is_asked_for(subset, pool, device):
    tensors = make(2, 3, 6, 6, 10, 3, 3, device=device)
    options = {"padding": 1, "pool": pool}
    wide = [t.double().cpu() for t in tensors]
    _, reference = gradients(stock, wide, torch.ones_like, **options)
    leaves = [t.requires_grad_(bool(subset >> i & 1)) for i, t in enumerate(tensors)]
    imgfast.conv_relu_pool(*leaves, **options).sum().backward()
    for i, (leaf, grad) in enumerate(zip(leaves, reference, strict=True)):
        if subset >> i & 1:
            assert_near(leaf.grad, grad, f"gradient {i}")
        else:
            assert leaf.grad is None


@pytest.mark.devices("cpu", "cuda")  # seconds in the emulator
def test_what_is_kept_for_backward(device):
    """x, weight and one byte a pooled output; stock keeps 5.6 times as much for this layer."""
    x, weight, bias = make(2, 64, 32, 32, 128, 3, 3, layout="channels_last", device=device)
    weight.requires_grad_()
    kept = {}

    def pack(t):
        kept[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = imgfast.conv_relu_pool(x, weight, bias, padding=1)
    outside = x.untyped_storage().nbytes() + weight.untyped_storage().nbytes()
    assert sum(kept.values()) - outside == y.numel()


def test_gradients_keep_layouts(device):
    x, weight, bias = make(2, 8, 8, 8, 18, 3, 3, layout="channels_last", device=device)
    weight = weight.contiguous(memory_format=torch.channels_last)
    _, (grad_x, grad_weight, _) = gradients(
        imgfast.conv_relu_pool, (x, weight, bias), torch.ones_like, padding=1
    )
    assert grad_x.is_contiguous(memory_format=torch.channels_last)
    assert grad_weight.is_contiguous(memory_format=torch.channels_last)


# One image, whose rows, filters or both are shared out: maps larger and smaller than the filters,
# an odd number of filter blocks, a row that cannot be divided, groups, and rings of rows.
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 16, 40, 40, 40, 3, 3), {"padding": 1}),
        ((1, 64, 7, 7, 200, 3, 3), {"padding": 1, "pool": "none"}),
        ((1, 64, 7, 7, 200, 3, 3), {"padding": 1, "pool_size": 3, "pool_stride": 2}),
        ((2, 48, 3, 30, 100, 3, 3), {"padding": (0, 1), "pool": "none", "activation": "silu"}),
        ((1, 256, 14, 14, 72, 1, 1), {"pool": "avg"}),
        ((1, 64, 8, 8, 192, 3, 3), {"padding": 1, "groups": 2, "stride": 2, "pool": "none"}),
        ((1, 70, 30, 30, 70, 3, 3), {"padding": 1, "groups": 70}),
    ],
)
def test_threads_do_not_change_a_bit(shape, options):
    tensors = [torch.randn_like(t) for t in make(*shape, groups=options.get("groups", 1))]
    geometry = spec_of(*_bind(**options)).geometry(tensors[1].shape)
    save_codes = options.get("pool") != "none"
    results = []
    for threads in (1, 2, 4, 7):
        torch.set_num_threads(threads)
        results.append(torch.ops.imgfast.conv_relu_pool(*tensors, geometry, save_codes))
    assert_near(results[0][0], stock(*(t.double() for t in tensors), **options), "y")
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_divide_images(threads):
    """Rows of one image on several threads, and the same bits every time."""
    torch.set_num_threads(threads)
    tensors = make(1, 16, 40, 40, 32, 3, 3)
    check(*tensors, padding=1)
    check(*tensors, padding=1, pool_size=3, pool_stride=2, pool_padding=1)
    check_depthwise(70, n=1, size=(40, 40))
    options = {"padding": 1}
    tensors = [torch.randn_like(t) for t in tensors]
    _, once = gradients(imgfast.conv_relu_pool, tensors, torch.ones_like, **options)
    _, again = gradients(imgfast.conv_relu_pool, tensors, torch.ones_like, **options)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"x": (2, 4, 8, 8)},
        {"x": (2, 8, 8)},
        {"x": (8, 8)},
        {"weight": (8, 3, 3)},
        {"bias": (7,)},
        {"x": (2, 3, 2, 2)},
        {"dtype": torch.int64},
        {"stride": 0},
        {"padding": -1},
        {"dilation": 0},
        {"groups": 2},
        {"padding": "same", "stride": 2},
        {"padding": "full"},
        {"pool_padding": 2},
        {"pool_size": 0},
        {"pool_size": 9},
        {"pool_stride": 0},
        {"stride": (1, 2, 3)},
    ],
    ids=str,
)
def test_errors_are_those_of_stock(change):
    options = {k: v for k, v in change.items() if k not in ("x", "weight", "bias", "dtype")}
    x = torch.zeros(change.get("x", (2, 3, 8, 8)), dtype=change.get("dtype", torch.float32))
    weight, bias = (
        torch.zeros(change.get("weight", (8, 3, 3, 3))),
        torch.zeros(change.get("bias", (8,))),
    )
    with pytest.raises(Exception) as expected:
        stock(x, weight, bias, **options)
    with pytest.raises(type(expected.value)):
        imgfast.conv_relu_pool(x, weight, bias, **options)


def test_errors_of_its_own():
    x, weight, bias = make(1, 3, 8, 8, 8, 3, 3)
    for options, text in (
        ({"activation": "mish"}, "activation must be one of .*got 'mish'"),
        ({"pool": "min"}, "pool must be one of .*got 'min'"),
        ({"algorithm": "magic"}, "algorithm must be one of .*got 'magic'"),
        ({"pool": "avg", "pool_dilation": 2}, "pool_dilation must be 1 for pool='avg'"),
    ):
        with pytest.raises(ValueError, match=text):
            imgfast.conv_relu_pool(x, weight, bias, **options)
    with pytest.raises(RuntimeError, match=r"algorithm='direct' has no kernel here: .*int32"):
        imgfast.conv_relu_pool(x.int(), weight.int(), None, algorithm="direct")


@pytest.mark.devices("cpu", "cuda")  # the emulated operators are no guards
def test_operator_guards_itself(device):
    """torch.ops.imgfast.conv_relu_pool may be called directly, with anything."""
    x, weight, bias = make(1, 3, 8, 8, 8, 3, 3, device=device)
    geometry = [1, 1, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 1, 1, 0, 1, 0, 0, 0]
    call = torch.ops.imgfast.conv_relu_pool
    assert torch.equal(call(x, weight, bias, geometry, False)[0], stock(x, weight, bias))
    for arguments, text in (
        ((x, weight[:, :2], bias), "weight must have C / groups = 3 input channels, got 2"),
        ((x, weight.double(), bias), "weight must have the dtype of x"),
        ((x, weight, bias[:5]), r"bias must be \[K = 8\]"),
        ((x[..., :2], weight, bias), "larger than the padded input"),
        ((x[0], weight, bias), r"x must be \[N, C, H, W\]"),
    ):
        with pytest.raises(RuntimeError, match=text):
            call(*arguments, geometry, False)
    for place in (*range(17), 19, 20):  # 17, 18 and 21 are flags
        broken = copy.copy(geometry)
        broken[place] = -3
        with pytest.raises(RuntimeError, match="conv_relu_pool"):
            call(x, weight, bias, broken, False)
    with pytest.raises(RuntimeError, match="geometry must have 22 numbers"):
        call(x, weight, bias, geometry[:-1], False)


def test_dispatch_info():
    x, weight, bias = make(1, 3, 8, 8, 8, 3, 3)
    info = imgfast.dispatch_info(x, weight, bias)
    assert (info.name, info.isa) == ("direct", imgfast._C.cpu_isa())
    assert imgfast.dispatch_info(x, weight, bias, algorithm="stock").reason == "asked for"
    assert "dtype" in imgfast.dispatch_info(x, weight.double(), bias).reason
    assert "meta" in imgfast.dispatch_info(*(t.to("meta") for t in (x, weight, bias))).reason
    trained = imgfast.dispatch_info(x, weight.requires_grad_(), bias, activation="gelu")
    assert trained.name == "stock" and "gelu" in trained.reason


def test_environment_forces_the_algorithm(monkeypatch):
    x, weight, bias = make(1, 3, 8, 8, 8, 3, 3)
    monkeypatch.setenv("IMGFAST_ALGORITHM", "stock")
    assert imgfast.dispatch_info(x, weight, bias).name == "stock"


def test_accuracy_is_stocks_or_better():
    """On data that rounds, the error against float64 is at most twice stock's, plus one unit."""
    for seed, (c, k) in enumerate(((3, 32), (64, 64), (256, 32))):
        torch.manual_seed(seed)
        x, weight, bias = torch.randn(2, c, 16, 16), torch.randn(k, c, 3, 3), torch.randn(k)
        wide = stock(x.double(), weight.double(), bias.double())
        ours = (imgfast.conv_relu_pool(x, weight, bias, algorithm="direct") - wide).abs().max()
        theirs = (stock(x, weight, bias) - wide).abs().max()
        assert ours <= 2 * theirs + 2**-23 * wide.abs().max()


def test_layer_is_a_drop_in(device):
    options = {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}
    layer = imgfast.nn.ConvReLUPool2d(3, 10, **options, device=device)
    conv = torch.nn.Conv2d(3, 10, **options, device=device)
    conv.load_state_dict(layer.state_dict())
    x = exact((2, 3, 8, 8), 0).to(device)
    expected = torch.nn.functional.max_pool2d(conv(x).relu(), 2)
    torch.testing.assert_close(layer(x), expected)
    assert "activation=relu, pool=max, pool_size=2" in repr(layer)
    again = copy.deepcopy(layer)
    assert torch.equal(again(x), layer(x))
