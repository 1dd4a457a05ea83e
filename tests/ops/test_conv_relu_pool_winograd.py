"""The Winograd route of conv_relu_pool: error bounds, codes, gradients, and who takes it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ops.conv_cases import SCALINGS, badly_scaled, lay_out, stock

import imgfast
from imgfast.ops.conv_relu_pool import _bind
from imgfast.ops.conv_relu_pool_costs import Costs, Winograd, taps_inside
from imgfast.ops.conv_relu_pool_route import spec_of

# Of the convolution's standard deviation, as the docstring of conv_relu_pool promises: from up to
# six points, and from eight.
BOUND, EIGHT_POINTS_BOUND = 6e-5, 2e-4


EVERY_PASS = Winograd.FORWARD | Winograd.INPUT | Winograd.WEIGHT


def normal(n=2, c=16, h=12, w=12, k=32, r=3, s=None, groups=1, dtype=torch.float32, layout="nchw"):
    torch.manual_seed(n + c + h + w + k)
    s = s or r
    x = lay_out(torch.randn(n, c, h, w).to(dtype), layout)
    weight = (torch.randn(k, c // groups, r, s) / (r * s * c // groups) ** 0.5).to(dtype)
    return x, weight, torch.randn(k).to(dtype)


def check_value(x, weight, bias, **options):
    y = imgfast.conv_relu_pool(x, weight, bias, algorithm="winograd", **options)
    wide = stock(x.double(), weight.double(), bias.double(), **options)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(x.dtype, 0.0)
    bare = {k: v for k, v in options.items() if k in ("padding", "groups", "stride", "dilation")}
    conv = F.conv2d(x.double(), weight.double(), **bare)
    costs = Costs(spec_of(*_bind(**options)), x.shape, weight.shape, False)
    loose = EIGHT_POINTS_BOUND if costs._points(costs.conv) == 8 else BOUND
    bound = loose * conv.std() + rounding * wide.abs()
    assert y.dtype == x.dtype and y.stride() == stock(x, weight, bias, **options).stride()
    worst = ((y.double() - wide).abs() / bound).max().item()
    assert worst <= 1


# Tiles of 4 x 4, of which the last row and column may be cut; 1 to 12 tiles in a product.
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
@pytest.mark.parametrize("height", [4, 5, 6, 7, 8, 14])
@pytest.mark.parametrize("width", [4, 7, 16, 50])
def test_map_sizes(height, width, pool):
    check_value(*normal(h=height, w=width), padding=1, pool=pool)


@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 40, 300])
@pytest.mark.parametrize("filters", [1, 16, 17, 40])
def test_channels_and_filters(channels, filters):
    check_value(*normal(c=channels, k=filters), padding=1)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "transposed", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding", [0, 1, 2, (3, 0)])
def test_layouts_dtypes_and_borders(padding, dtype, layout):
    check_value(*normal(c=20, dtype=dtype, layout=layout), padding=padding)


@pytest.mark.parametrize(
    "activation", ["none", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu"]
)
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_activations(activation, pool):
    check_value(*normal(), padding=1, activation=activation, pool=pool)


def test_groups():
    check_value(*normal(c=32, k=48, groups=2), padding=1, groups=2)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 3, 33])
def test_units(batch, threads):
    torch.set_num_threads(threads)
    check_value(*normal(n=batch, h=16, w=16), padding=1)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_codes_name_a_maximum(layout):
    """The convolution at the named position is the window's maximum, within the bound."""
    x, weight, bias = normal(n=3, c=24, h=14, w=18, layout=layout)
    geometry = spec_of(*_bind(padding=1)).geometry(weight.shape, Winograd.FORWARD)
    _, codes = torch.ops.imgfast.conv_relu_pool(x, weight, bias, geometry, True)
    conv = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    windows = F.unfold(conv.flatten(0, 1).unsqueeze(1), 2, stride=2)
    windows = windows.view(3, 32, 4, 7, 9).permute(0, 3, 4, 1, 2)  # [N, PH, PW, K, position]
    bound = BOUND * conv.std()
    named = windows.gather(-1, (codes.long() % 128).unsqueeze(-1)).squeeze(-1)
    assert (windows.amax(-1) - named <= bound).all()
    certain = named.abs() > bound
    assert torch.equal((codes >= 128)[certain], (named <= 0)[certain])


# 2 to 5 taps: F(5, 2), F(4, 3), F(3, 4), F(2, 5); strided filters fall into such ones.
FILTERS = [(2, 1), (3, 1), (4, 1), (5, 1), (3, 2), (5, 2), (6, 2), (7, 2), (9, 2), (11, 4)]
WINDOWS = [  # in registers, from rows, without a window
    {},
    {"pool": "avg"},
    {"pool": "none"},
    {"pool_size": 3, "pool_stride": 2, "pool_padding": 1},
    {"pool_size": 3, "pool_stride": 1},
    {"pool_size": 2, "pool_stride": 3},
    {"pool_size": 2, "ceil_mode": True},
    {"pool": "avg", "pool_size": (2, 3), "pool_stride": 2, "pool_padding": 1},
    {"pool_size": (1, 5), "pool_stride": (2, 3)},
    {"pool_size": 2, "pool_dilation": 2, "pool_stride": 1},
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("taps", "stride"), FILTERS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_filters_and_windows(taps, stride, window, layout):
    tensors = normal(c=7, h=21, w=26, k=19, r=taps, layout=layout)
    check_value(*tensors, padding=taps // 2, stride=stride, **window)


def test_filters_that_are_not_square():
    check_value(*normal(r=2, s=5), padding=(1, 2))
    check_value(*normal(r=4, s=3), padding=1)


# Two taps: tiles of 4 x 4 from five points, or of 5 x 5 from six where they have fewer products; of
# strided filters without a pool also of 7 x 7 from eight.
TWO_TAPS = [(7, 7, 5, 8), (8, 8, 5, 5), (9, 10, 6, 6), (16, 12, 5, 5), (13, 29, 6, 6), (5, 5, 6, 6)]
TWO_TAPS += [(6, 7, 5, 8), (21, 21, 6, 8), (20, 6, 5, 5)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("taps", "stride"), [(2, 1), (4, 2)])
@pytest.mark.parametrize(("height", "width", "points", "strided_points"), TWO_TAPS)
def test_map_sizes_of_two_taps(height, width, points, strided_points, taps, stride, window):
    """Heights and widths are the convolution's, before the pool."""
    h, w = (size * stride - (stride == 1) for size in (height, width))
    tensors = normal(n=3, c=20, k=19, r=taps, h=h, w=w)
    spec = spec_of(*_bind(padding=1, stride=stride, **window))
    costs = Costs(spec, tensors[0].shape, tensors[1].shape, True)
    expected = strided_points if stride > 1 and window.get("pool") == "none" else points
    assert tuple(costs.conv) == (height, width) and costs._points(costs.conv) == expected
    check_value(*tensors, padding=1, stride=stride, **window)
    if stride == 1:
        check_gradients(tensors, padding=1, **window)


def test_packed_weights_of_one_map_do_not_serve_another():
    _, weight, bias = normal(c=20, k=19, r=2)
    for size in (8, 15, 8, 15):
        check_value(torch.randn(2, 20, size - 1, size - 1), weight, bias, padding=1, pool="none")
    _, weight, bias = normal(c=20, k=19, r=4)
    for size in (7, 8, 7, 8):
        x = torch.randn(2, 20, 2 * size, 2 * size)
        check_value(x, weight, bias, padding=1, stride=2, pool="none")


def gradients_of_both(tensors, options, save=True):
    """What the operator's gradients are by Winograd's algorithm and directly, of the same codes."""
    x, weight, bias = tensors
    spec = spec_of(*_bind(**options))
    plain, fast = (spec.geometry(weight.shape, passes) for passes in (Winograd(0), EVERY_PASS))
    y, codes = torch.ops.imgfast.conv_relu_pool(x, weight, bias, plain, save)
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randn(y.shape, generator=generator).to(x.dtype)
    backward = torch.ops.imgfast.conv_relu_pool_backward.default
    return [
        backward(grad_y, x, weight, y, codes if save else None, geometry, True, True, True)
        for geometry in (fast, plain)
    ]


def check_gradients(tensors, **options):
    pool, activation = options.get("pool", "max"), options.get("activation", "relu")
    save = pool == "max" or (pool == "avg" and activation != "none")
    rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(tensors[0].dtype, 0.0)
    for got, want in zip(*gradients_of_both(tensors, options, save), strict=True):
        assert got.dtype == want.dtype and got.stride() == want.stride()
        scale = want.double().square().mean().sqrt()
        error = (got.double() - want.double()).abs()
        assert (error <= 1e-4 * scale + rounding * want.double().abs()).all()


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("taps", [2, 3, 4, 5])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradients(taps, window, layout):
    check_gradients(normal(c=7, h=21, w=26, k=19, r=taps, layout=layout), padding=1, **window)


@pytest.mark.parametrize("pool", ["max", "avg", "none"])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "sigmoid", "tanh"])
def test_gradients_through_activations(activation, pool):
    if pool == "avg" and activation in ("sigmoid", "tanh"):
        pytest.skip("there is no gradient kernel for this average")
    check_gradients(normal(), padding=1, pool=pool, activation=activation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding", [0, 1, 2, (3, 0)])
def test_gradients_of_dtypes_and_borders(padding, dtype):
    check_gradients(normal(c=20, dtype=dtype), padding=padding)
    check_gradients(normal(c=33, k=40, h=5, w=31, dtype=dtype), padding=padding)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 33])
def test_gradients_of_groups_and_units(batch, threads):
    torch.set_num_threads(threads)
    check_gradients(normal(n=batch, c=32, k=48, groups=2), padding=1, groups=2)
    check_gradients(normal(n=batch, c=64, k=96), padding=1, pool="none", activation="none")


def test_gradients_follow_the_codes():
    x, weight, bias = (t.requires_grad_() for t in normal(n=4))
    loss = imgfast.conv_relu_pool(x, weight, bias, padding=1, algorithm="winograd").square().sum()
    got = torch.autograd.grad(loss, (x, weight, bias))
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want = torch.autograd.grad(stock(*wide, padding=1).square().sum(), wide)
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= 1e-3 * b.norm()  # a near tie may go to its other position


# Tiles hold every d-th row and column, and d of them side by side a block of 4 d: maps of a part of
# a block, a whole one, and some, also smaller than the dilation, where a tile holds one output.
@pytest.mark.parametrize("pool", ["max", "none"])
@pytest.mark.parametrize("dilation", [2, 3, 5, (1, 4), (3, 2)])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (8, 16), (11, 13), (12, 33), (21, 24)])
def test_dilated_map_sizes(height, width, dilation, pool):
    for layout in ("nchw", "channels_last"):
        tensors = normal(h=height, w=width, layout=layout)
        options = {"padding": dilation, "dilation": dilation, "pool": pool}
        check_value(*tensors, **options)
        check_gradients(tensors, **options)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("taps", "dilation"), [(2, 3), (3, 2), (3, 6), (4, 2), (5, 3)])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_dilated_filters_and_windows(taps, dilation, window, layout):
    tensors = normal(c=7, h=21, w=26, k=19, r=taps, layout=layout)
    options = {"padding": dilation * (taps // 2), "dilation": dilation, **window}
    check_value(*tensors, **options)
    check_gradients(tensors, **options)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "transposed", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding", [0, 1, 2, 3, 6, (7, 0)])
def test_dilated_layouts_dtypes_and_borders(padding, dtype, layout):
    tensors = normal(c=20, h=17, w=15, dtype=dtype, layout=layout)
    for pool in ("max", "none"):
        options = {"padding": padding, "dilation": 3, "pool": pool, "activation": "leaky_relu"}
        check_value(*tensors, **options)
        check_gradients(tensors, **options)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 33])
def test_dilated_groups_and_units(batch, threads):
    torch.set_num_threads(threads)
    for pool in ("max", "avg", "none"):
        tensors = normal(n=batch, c=32, k=48, groups=2)
        options = {"padding": 2, "dilation": 2, "groups": 2, "pool": pool}
        check_value(*tensors, **options)
        check_gradients(tensors, **options)


@st.composite
def dilated_configurations(draw):
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    size = st.integers(1, 40)
    shape = {
        "n": pick(1, 2, 5),
        "c": pick(1, 7, 16, 20),
        "h": draw(size),
        "w": draw(size),
        "k": pick(1, 16, 19, 40),
        "r": pick(1, 2, 3, 3, 3, 4, 5),
        "s": pick(2, 3, 3, 3, 4, 5),
        "layout": pick("nchw", "channels_last", "transposed", "offset"),
    }
    dilation = (pick(1, 2, 3, 4, 6, 12, 18), pick(1, 2, 3, 4, 6, 12, 18))
    options = {
        "dilation": dilation,
        "padding": tuple(draw(st.integers(0, 2 * d)) for d in dilation),
        "activation": pick("none", "relu", "leaky_relu"),
    }
    return shape, options | pick({"pool": "none"}, *WINDOWS)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(dilated_configurations())
def test_random_dilated_configurations(configuration):
    """By the bound that holds for any data, as there may be but a few outputs."""
    shape, options = configuration
    x, weight, bias = normal(**shape)
    try:
        want = stock(x.double(), weight.double(), bias.double(), **options)
    except RuntimeError:  # not a configuration: the filter or the window is too large
        assume(False)
    bare = {k: options[k] for k in ("padding", "dilation")}
    scale = F.conv2d(x.double().abs(), weight.double().abs(), **bare).amax((1, 2, 3), keepdim=True)
    y = imgfast.conv_relu_pool(x, weight, bias, algorithm="winograd", **options)
    assert ((y.double() - want).abs() <= 5e-6 * scale + 1e-6 * want.abs()).all()
    check_gradients((x, weight, bias), **options)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    ("taps", "stride", "size", "bound"),
    [(3, 1, 20, 5e-6), (5, 1, 20, 5e-6), (7, 2, 20, 5e-6), (4, 2, 12, 1e-5)],
)
def test_badly_scaled_inputs(taps, stride, size, bound, scaling):
    """The error of one picture stays below 5e-6 of the largest sum of |x| |w| in it; from eight
    points, as the last ones are, below 1e-5."""
    x, weight, _ = normal(n=3, c=24, h=size, w=size, r=taps)
    x = badly_scaled(x, scaling)
    options = {"padding": taps // 2, "stride": stride, "pool": "none", "activation": "none"}
    y = imgfast.conv_relu_pool(x, weight, None, algorithm="winograd", **options)
    want = stock(x.double(), weight.double(), None, **options)
    scale = stock(x.double().abs(), weight.double().abs(), None, **options).amax((1, 2, 3))
    assert ((y.double() - want).abs().amax((1, 2, 3)) <= bound * scale).all()


@pytest.mark.parametrize(
    ("shape", "options", "name"),
    [
        ({}, {"padding": 1}, "winograd"),
        ({"c": 3}, {"padding": 1}, "direct"),
        ({"h": 4, "w": 4}, {}, "direct"),  # 2 x 2 outputs: nothing is saved
        ({}, {"padding": 1, "stride": 5}, "direct"),
        ({}, {"padding": 2, "dilation": 2}, "winograd"),
        ({"h": 48, "w": 48}, {"padding": 12, "dilation": 12}, "winograd"),  # whole tiles
        ({"c": 8}, {"padding": 12, "dilation": 12}, "direct"),  # an output a tile: nothing is saved
        ({"c": 64}, {"padding": 12, "dilation": 12}, "stock"),  # 8 of 9 taps lie in the padding
        ({}, {"padding": 2, "dilation": 2, "stride": 2}, "direct"),
        ({}, {"padding": 1, "pool_size": 3}, "winograd"),
        ({"r": 1}, {}, "direct"),
        ({"r": 5, "c": 64, "k": 64}, {"padding": 2}, "winograd"),
        ({"c": 3, "k": 64, "h": 64, "w": 64, "r": 7}, {"padding": 3, "stride": 2}, "winograd"),
        ({"dtype": torch.float64}, {"padding": 1}, "direct"),
        ({}, {"padding": 1, "algorithm": "direct"}, "direct"),
        ({"c": 3}, {"padding": 1, "algorithm": "winograd"}, "winograd"),
    ],
    ids=str,
)
def test_route(shape, options, name):
    tensors = normal(**shape)
    assert imgfast.dispatch_info(*tensors, **options).name == name


@pytest.mark.parametrize("size", [1, 5, 16])
@pytest.mark.parametrize("pad", [0, 2, 7])
@pytest.mark.parametrize(("step", "stride"), [(1, 1), (2, 1), (6, 1), (3, 2)])
def testtaps_inside(size, pad, step, stride):
    if size + 2 * pad <= 2 * step:
        pytest.skip("the filter is larger than the padded input")
    x, weight = torch.ones(1, 1, size), torch.ones(1, 1, 3)
    y = F.conv1d(x, weight, None, stride, pad, step)  # counts the taps of each output
    assert taps_inside(size, y.numel(), 3, pad, step, stride) == y.sum().item()


def test_route_of_gradients():
    tensors = [t.requires_grad_() for t in normal(c=64, k=64, h=32, w=32)]
    dense = imgfast.dispatch_info(*tensors, padding=1, pool="none")
    assert dense.winograd == EVERY_PASS
    assert "gradient of x: Winograd F(4x4, 3x3), of weight: Winograd F(4x4, 3x3)" in dense.reason
    sparse = imgfast.dispatch_info(*tensors, padding=1, pool_size=4)
    assert Winograd.WEIGHT not in sparse.winograd and "of weight: sparse" in sparse.reason
    direct = imgfast.dispatch_info(*tensors, padding=1, algorithm="direct")
    assert direct.winograd == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stride": 5}, "strides of 1 to 4"),
        ({"stride": 2, "dilation": 2}, "1 for dilated filters"),
        ({"padding": 0, "ceil_mode": True}, None),
    ],
)
def test_asking_in_vain_raises(options, text):
    tensors = normal()
    if text is None:
        assert imgfast.conv_relu_pool(*tensors, algorithm="winograd", **options).shape[-1] == 5
        return
    with pytest.raises(RuntimeError, match=f"algorithm='winograd' has no kernel here: .*{text}"):
        imgfast.conv_relu_pool(*tensors, algorithm="winograd", **options)
    geometry = spec_of(*_bind(**options)).geometry(tensors[1].shape, Winograd.FORWARD)
    with pytest.raises(RuntimeError, match="Winograd needs"):
        torch.ops.imgfast.conv_relu_pool(*tensors, geometry, False)
