"""Derivatives of conv_relu_pool, and what transforms programs: compile, func, autocast."""

import pytest
import torch
from ops.conv_cases import exact, make, stock
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import imgfast
from imgfast.ops.conv_relu_pool import _bind
from imgfast.ops.conv_relu_pool_route import spec_of

KERNELS = [  # every combination that has gradient kernels
    *(("max", activation) for activation in ("relu", "leaky_relu", "sigmoid", "tanh", "none")),
    *(("none", activation) for activation in ("relu", "leaky_relu", "sigmoid", "tanh", "none")),
    *(("avg", activation) for activation in ("relu", "leaky_relu", "none")),
]
WINDOWS = [{}, {"pool_size": 3, "pool_stride": 2, "pool_padding": 1}]


def differentiable(n=2, c=3, size=6, k=4, dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    shapes = ((n, c, size, size), (k, c, 3, 3), (k,))
    return [torch.randn(shape, dtype=dtype).to(device).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("pool", "activation"), KERNELS)
def test_gradcheck(pool, activation, window):
    if pool == "avg" and activation != "none" and window:
        pytest.skip("averages of 9 activated positions run through stock")
    options = {"pool": pool, "activation": activation, "padding": 1, **window}
    tensors = differentiable()
    assert imgfast.dispatch_info(*tensors, **options).name == "direct"

    def function(*tensors):
        return imgfast.conv_relu_pool(*tensors, **options)

    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_gradcheck_of_the_stock_route(activation):
    def function(*tensors):
        return imgfast.conv_relu_pool(*tensors, activation=activation)

    assert gradcheck(function, differentiable(), fast_mode=True)
    assert gradgradcheck(function, differentiable(), fast_mode=True)


@pytest.mark.devices("cpu", "cuda")  # the emulated operators make layouts of their own
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_opcheck(pool, device):
    tensors = differentiable(dtype=torch.float32, device=device)
    geometry = spec_of(*_bind(pool=pool, padding=1)).geometry(tensors[1].shape)
    codes = pool != "none"
    opcheck(torch.ops.imgfast.conv_relu_pool, (*tensors, geometry, codes))
    y, codes = (t.detach() for t in torch.ops.imgfast.conv_relu_pool(*tensors, geometry, codes))
    x, weight, _ = tensors
    grads = (torch.ones_like(y), x, weight, y, codes if codes.numel() else None)
    opcheck(torch.ops.imgfast.conv_relu_pool_backward, (*grads, geometry, True, True, True))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_operator_is_differentiable_by_itself(layout, device):
    """opcheck passes operators whose gradient is dropped in silence; numbers do not."""
    tensors = make(2, 3, 8, 8, 8, 3, 3, layout=layout, device=device)
    x, weight, bias = (t.requires_grad_() for t in tensors)
    geometry = spec_of(*_bind()).geometry(weight.shape)
    y, _ = torch.ops.imgfast.conv_relu_pool(x, weight, bias, geometry, True)
    grads = torch.autograd.grad(y.sum(), (x, weight, bias))
    expected = torch.autograd.grad(stock(x, weight, bias).sum(), (x, weight, bias))
    for grad, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, want)
    y, _ = torch.ops.imgfast.conv_relu_pool(x, weight, bias, geometry, False)
    with pytest.raises(RuntimeError, match="save_codes=True"):
        y.sum().backward()


@pytest.mark.parametrize(
    "options, dynamic",
    [
        ({}, False),
        ({"padding": 1, "pool": "avg"}, False),
        ({"pool": "none", "activation": "tanh"}, False),
        ({"activation": "gelu"}, False),
        ({"pool_size": 3, "pool_stride": 2, "pool_padding": 1}, False),
        ({}, True),
        ({"padding": 1, "pool": "avg"}, True),
    ],
    ids=str,
)
def test_compile(options, dynamic):
    torch._dynamo.reset()

    def function(*tensors):
        return imgfast.conv_relu_pool(*tensors, **options) * 2

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (2, 3):
        tensors = [t.requires_grad_() for t in make(n, 3, 8, 8, 8, 3, 3)]
        y, expected = compiled(*tensors), function(*tensors)
        assert torch.equal(y, expected) and y.stride() == expected.stride()
        for got, want in zip(
            torch.autograd.grad(y.sum(), tensors),
            torch.autograd.grad(expected.sum(), tensors),
            strict=True,
        ):
            assert torch.equal(got, want)


def test_compile_by_inductor():
    torch._dynamo.reset()
    tensors = [t.requires_grad_() for t in make(2, 3, 8, 8, 8, 3, 3, layout="channels_last")]
    compiled = torch.compile(lambda *t: imgfast.conv_relu_pool(*t).square().sum(), fullgraph=True)
    got = torch.autograd.grad(compiled(*tensors), tensors)
    want = torch.autograd.grad(imgfast.conv_relu_pool(*tensors).square().sum(), tensors)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_export():
    layer = imgfast.nn.ConvReLUPool2d(3, 8, 3).eval()
    x = exact((2, 3, 8, 8), 0)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        assert torch.equal(program.module()(x), layer(x))
    assert any("imgfast.conv_relu_pool" in str(node.target) for node in program.graph.nodes)


def test_func_transforms():
    x, weight, bias = (t.detach() for t in differentiable())

    def loss(weight, x):
        return imgfast.conv_relu_pool(x, weight, bias).square().sum()

    def expected(weight, x):
        return stock(x, weight, bias).square().sum()

    torch.testing.assert_close(
        torch.func.grad(loss)(weight, x), torch.func.grad(expected)(weight, x)
    )
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    torch.testing.assert_close(per_sample.sum(0), torch.func.grad(expected)(weight, x))
    tangent = torch.func.jvp(lambda w: loss(w, x), (weight,), (torch.ones_like(weight),))[1]
    torch.testing.assert_close(tangent, torch.func.grad(expected)(weight, x).sum())


def test_forward_mode():
    x, weight, _ = (t.detach() for t in differentiable())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        got = torch.autograd.forward_ad.unpack_dual(imgfast.conv_relu_pool(dual, weight)).tangent
        want = torch.autograd.forward_ad.unpack_dual(stock(dual, weight, None)).tangent
    torch.testing.assert_close(got, want)


def test_hessian():
    x, weight, bias = (t.detach() for t in differentiable(n=1, c=1, k=1))

    def loss(weight):
        return imgfast.conv_relu_pool(x, weight, bias).pow(3).sum()

    got = torch.autograd.functional.hessian(loss, weight)
    want = torch.autograd.functional.hessian(lambda w: stock(x, w, bias).pow(3).sum(), weight)
    torch.testing.assert_close(got, want)


def test_third_derivative():
    x, weight, bias = differentiable(n=1, c=1, k=1)

    def third(function):
        value = function(x, weight, bias).pow(4).sum()
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), weight, create_graph=True)
        return value

    torch.testing.assert_close(third(imgfast.conv_relu_pool), third(stock))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    x, weight, bias = make(2, 3, 8, 8, 8, 3, 3, device=device)
    weight.requires_grad_()
    with torch.autocast(device.type, dtype=dtype):
        y, expected = imgfast.conv_relu_pool(x, weight, bias), stock(x, weight, bias)
        assert y.dtype == expected.dtype == dtype
        torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
        wide = imgfast.conv_relu_pool(x.double(), weight.double(), bias.double())
        assert wide.dtype == torch.float64
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_deterministic_algorithms_are_no_obstacle():
    tensors = [t.requires_grad_() for t in make(2, 3, 8, 8, 8, 3, 3)]
    torch.use_deterministic_algorithms(True)
    try:
        imgfast.conv_relu_pool(*tensors).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_in_place_change_after_forward_is_an_error(device):
    x, weight, bias = make(2, 3, 8, 8, 8, 3, 3, device=device)
    weight.requires_grad_()
    y = imgfast.conv_relu_pool(x, weight, bias)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
