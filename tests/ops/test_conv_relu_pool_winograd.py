"""The Winograd route of conv_relu_pool: error bound, codes, borders, and who takes it."""

import pytest
import torch
import torch.nn.functional as F
from ops.conv_cases import lay_out, stock

import imgfast
from imgfast.ops.conv_relu_pool import _bind
from imgfast.ops.conv_relu_pool_route import spec_of

BOUND = 4e-5  # of the convolution's standard deviation, as the docstring of conv_relu_pool promises


def normal(n=2, c=16, h=12, w=12, k=32, groups=1, dtype=torch.float32, layout="nchw"):
    torch.manual_seed(n + c + h + w + k)
    x = lay_out(torch.randn(n, c, h, w).to(dtype), layout)
    weight = (torch.randn(k, c // groups, 3, 3) / (3 * (c // groups) ** 0.5)).to(dtype)
    return x, weight, torch.randn(k).to(dtype)


def check_value(x, weight, bias, **options):
    y = imgfast.conv_relu_pool(x, weight, bias, algorithm="winograd", **options)
    wide = stock(x.double(), weight.double(), bias.double(), **options)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(x.dtype, 0.0)
    bare = {k: v for k, v in options.items() if k in ("padding", "groups")}
    conv = F.conv2d(x.double(), weight.double(), **bare)
    bound = BOUND * conv.std() + rounding * wide.abs()
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
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_value(*normal(n=batch, h=16, w=16), padding=1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_codes_name_a_maximum(layout):
    """The convolution at the named position is the window's maximum, within the bound."""
    x, weight, bias = normal(n=3, c=24, h=14, w=18, layout=layout)
    geometry = spec_of(*_bind(padding=1)).geometry(weight.shape, "winograd")
    _, codes = torch.ops.imgfast.conv_relu_pool(x, weight, bias, geometry, True)
    conv = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    windows = F.unfold(conv.flatten(0, 1).unsqueeze(1), 2, stride=2)
    windows = windows.view(3, 32, 4, 7, 9).permute(0, 3, 4, 1, 2)  # [N, PH, PW, K, position]
    bound = BOUND * conv.std()
    named = windows.gather(-1, (codes.long() % 128).unsqueeze(-1)).squeeze(-1)
    assert (windows.amax(-1) - named <= bound).all()
    certain = named.abs() > bound
    assert torch.equal((codes >= 128)[certain], (named <= 0)[certain])


def test_gradients_follow_the_codes():
    x, weight, bias = (t.requires_grad_() for t in normal(n=4))
    loss = imgfast.conv_relu_pool(x, weight, bias, padding=1, algorithm="winograd").square().sum()
    got = torch.autograd.grad(loss, (x, weight, bias))
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want = torch.autograd.grad(stock(*wide, padding=1).square().sum(), wide)
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= 1e-3 * b.norm()  # a near tie may go to its other position


@pytest.mark.parametrize(
    ("shape", "options", "name"),
    [
        ({}, {"padding": 1}, "winograd"),
        ({"c": 3}, {"padding": 1}, "direct"),
        ({"k": 8}, {"padding": 1}, "direct"),
        ({"h": 4, "w": 4}, {}, "direct"),  # 2 x 2 outputs: nothing is saved
        ({}, {"padding": 1, "stride": 2}, "direct"),
        ({}, {"padding": 1, "pool_size": 3}, "direct"),
        ({"dtype": torch.float64}, {"padding": 1}, "direct"),
        ({}, {"padding": 1, "algorithm": "direct"}, "direct"),
        ({"c": 3}, {"padding": 1, "algorithm": "winograd"}, "winograd"),
    ],
    ids=str,
)
def test_route(shape, options, name):
    tensors = normal(**shape)
    assert imgfast.dispatch_info(*tensors, **options).name == name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stride": 2}, "3 x 3 filters of stride 1"),
        ({"pool_size": 3}, "whole 2 x 2 windows"),
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
    geometry = spec_of(*_bind(**options)).geometry(tensors[1].shape, "winograd")
    with pytest.raises(RuntimeError, match="Winograd needs"):
        torch.ops.imgfast.conv_relu_pool(*tensors, geometry, False)
