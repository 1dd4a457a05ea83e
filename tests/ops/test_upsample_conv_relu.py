"""upsample_conv_relu equals its stock composition in float64, on data whose sums are exact."""

import pytest
import torch
import torch.nn.functional as F
from conv_cases import TOLERANCE, exact, lay_out

import imgfast
from imgfast.ops.upsample_conv_relu_route import Spec
from imgfast.ops.upsample_conv_relu_stock import upsample_conv_relu_stock

SHAPES = [  # N, C, H, W, K
    (2, 3, 4, 5, 8),
    (1, 1, 1, 1, 1),
    (3, 16, 7, 7, 33),
    (2, 64, 14, 14, 32),
    (5, 20, 1, 9, 17),
    (1, 37, 11, 3, 70),
    (1, 16, 64, 64, 8),  # rows in several units, of as many bytes as fit only without padding
]
ACTIVATIONS = ["relu", "none", "leaky_relu", "sigmoid", "tanh"]
# Winograd's error: of a sum of so many products, in units of the largest output.
LOOSE = 2e-4


def stock(x, weight, bias, activation):
    return upsample_conv_relu_stock(x, weight, bias, Spec(2, 1, 1, activation, "stock"))


def make(shape, dtype=torch.float32, layout="nchw", bias=True):
    n, c, h, w, k = shape
    x = lay_out(exact((n, c, h, w), 0, dtype), layout)
    weight = exact((k, c, 3, 3), 1, dtype, top=3)
    return x, weight, exact((k,), 2, dtype) if bias else None


def compare(got, want, tolerance):
    scale = max(1.0, want.abs().max().item())
    assert (got.double() - want).abs().max().item() <= tolerance * scale


def gradients(run, tensors, grad_y):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = run(*leaves)
    wanted = [t for t in leaves if t is not None]
    return y, torch.autograd.grad(y, wanted, grad_y.to(y))


@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "offset"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, activation, layout, algorithm):
    tensors = make(shape, layout=layout)
    wide = [t.double() for t in tensors]
    grad_y = exact((shape[0], shape[4], 2 * shape[2], 2 * shape[3]), 3)
    want_y, want = gradients(lambda *t: stock(*t, activation), wide, grad_y)

    def run(*t):
        return imgfast.upsample_conv_relu(*t, activation=activation, algorithm=algorithm)

    got_y, got = gradients(run, tensors, grad_y)
    smooth = activation in ("sigmoid", "tanh")
    tolerance = LOOSE if algorithm == "winograd" or smooth else TOLERANCE[torch.float32]
    compare(got_y, want_y, tolerance)
    slope = {"relu": 0.0, "leaky_relu": 0.01}.get(activation)
    if slope is not None:  # where a sum is 0 but for rounding, either side's derivative is right
        through = torch.where(got_y > 0, grad_y, slope * grad_y)
        _, want = gradients(lambda *t: stock(*t, "none"), wide, through)
    for g, w in zip(got, want, strict=True):
        compare(g, w, tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_dtypes(dtype, bias):
    tensors = make((2, 8, 5, 6, 24), dtype, bias=bias)
    grad_y = exact((2, 24, 10, 12), 3)
    wide = [None if t is None else t.double() for t in tensors]
    want_y, want = gradients(lambda *t: stock(*t, "relu"), wide, grad_y)

    def run(*t):
        return imgfast.upsample_conv_relu(*t, algorithm="direct")

    got_y, got = gradients(run, tensors, grad_y)
    assert got_y.dtype == dtype and all(g.dtype == dtype for g in got)
    compare(got_y, want_y, TOLERANCE[dtype])
    for g, w in zip(got, want, strict=True):
        compare(g, w, 2 * TOLERANCE[dtype])


def test_no_rounding_on_the_way():
    """The folded filters of bfloat16 are float32: 1 + 2^-8 is none of its numbers."""
    x = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16)
    weight[0, 0, 1, 1], weight[0, 0, 1, 2], weight[0, 0, 2, 1] = 1, 2**-8, -1
    y = imgfast.upsample_conv_relu(x, weight, activation="none", algorithm="direct")
    assert y[0, 0, 0, 0].item() == 2**-8


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_smooth_forward_alone(activation):
    x, weight, bias = make((2, 8, 5, 6, 24))
    got = imgfast.upsample_conv_relu(x, weight, bias, activation=activation, algorithm="direct")
    compare(got, stock(x.double(), weight.double(), bias.double(), activation), LOOSE)
    route = imgfast.upsample_dispatch_info(x.requires_grad_(), weight, bias, activation=activation)
    assert route.name == "stock" and activation in route.reason


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_memory_format_is_stocks(layout):
    x, weight, bias = make((2, 8, 5, 6, 24), layout=layout)
    x.requires_grad_()
    got, want = imgfast.upsample_conv_relu(x, weight, bias), stock(x, weight, bias, "relu")
    assert got.stride() == want.stride()
    grad_y = torch.ones_like(want)
    ours, theirs = (torch.autograd.grad(y, x, grad_y)[0] for y in (got, want))
    assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("threads", [1, 2, 5, 7])  # 7: more than pictures
def test_threads(threads):
    tensors = make((5, 24, 9, 9, 40), layout="channels_last")
    grad_y = exact((5, 40, 18, 18), 3)
    want = gradients(lambda *t: stock(*t, "relu"), [t.double() for t in tensors], grad_y)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = gradients(
            lambda *t: imgfast.upsample_conv_relu(*t, algorithm="direct"), tensors, grad_y
        )
    finally:
        torch.set_num_threads(before)
    compare(got[0], want[0], TOLERANCE[torch.float32])
    for g, w in zip(got[1], want[1], strict=True):
        compare(g, w, TOLERANCE[torch.float32])


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_gradients_that_are_wanted(needs, algorithm):
    tensors = make((2, 8, 5, 6, 24))
    wanted = []
    for tensor, need in zip(tensors, needs, strict=True):
        if need:
            wanted.append(tensor.requires_grad_())

    def total(run):
        return torch.autograd.grad(run(*tensors).square().sum(), wanted)

    ours = total(lambda *t: imgfast.upsample_conv_relu(*t, activation="none", algorithm=algorithm))
    for g, w in zip(ours, total(lambda *t: stock(*t, "none")), strict=True):
        compare(g, w.double(), LOOSE)


def test_second_derivatives():
    x, weight, bias = (t.double().requires_grad_() for t in make((1, 2, 2, 3, 3)))

    def run(*t):
        return imgfast.upsample_conv_relu(*t, activation="tanh", algorithm="direct")

    assert torch.autograd.gradcheck(run, (x, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias))


def test_operators_are_well_formed():
    x, weight, bias = (t.requires_grad_() for t in make((1, 4, 3, 3, 8)))
    torch.library.opcheck(torch.ops.imgfast.upsample_conv_relu, (x, weight, bias, 1, 0))


def test_compile():
    tensors = [t.requires_grad_() for t in make((2, 8, 5, 6, 24))]
    compiled = torch.compile(imgfast.upsample_conv_relu, backend="aot_eager", fullgraph=True)
    got, want = compiled(*tensors), imgfast.upsample_conv_relu(*tensors)
    assert torch.equal(got, want)
    for g, w in zip(
        torch.autograd.grad(got.sum(), tensors),
        torch.autograd.grad(want.sum(), tensors),
        strict=True,
    ):
        assert torch.equal(g, w)


def test_transforms_and_autocast():
    x, weight, bias = make((2, 8, 5, 6, 24))
    each = torch.func.vmap(lambda a: imgfast.upsample_conv_relu(a, weight, bias))(x)
    compare(each, stock(x, weight, bias, "relu").double(), TOLERANCE[torch.float32])
    with torch.autocast("cpu", torch.bfloat16):
        assert imgfast.upsample_conv_relu(x, weight, bias).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options, kernel", [({"scale_factor": 3}, 3), ({"padding": 0}, 3), ({"padding": 2}, 5)]
)
def test_others_are_stocks(options, kernel):
    x, _, bias = make((2, 8, 5, 6, 24))
    weight = exact((24, 8, kernel, kernel), 1)
    assert imgfast.upsample_dispatch_info(x, weight, bias, **options).name == "stock"
    spec = Spec(**{"scale_factor": 2, "padding": 1} | options, groups=1, activation="relu",
                algorithm="stock")  # fmt: skip
    want = upsample_conv_relu_stock(x, weight, bias, spec)
    assert torch.equal(imgfast.upsample_conv_relu(x, weight, bias, **options), want)


def test_unbatched_and_layer():
    layer = imgfast.nn.UpsampleConvReLU2d(8, 24)
    twin = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(8, 24, 3, 1, 1))
    twin[1].load_state_dict(layer.state_dict())
    x = exact((8, 5, 6), 0)
    compare(layer(x), F.relu(twin(x[None])[0]).double(), LOOSE)
    assert "scale_factor=2" in repr(layer)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"activation": "swish"}, "activation must be one of"),
        ({"algorithm": "fast"}, "algorithm must be one of"),
        ({"scale_factor": 1.5}, "scale_factor must be a positive int, got 1.5"),
    ],
)
def test_names_that_do_not_exist(options, words):
    with pytest.raises(ValueError, match=words):
        imgfast.upsample_conv_relu(*make((1, 2, 3, 3, 4)), **options)


def test_a_kernel_that_is_asked_for_and_not_there():
    x, weight, bias = make((1, 2, 3, 3, 4))
    with pytest.raises(RuntimeError, match="scale factor of 2"):
        imgfast.upsample_conv_relu(x, weight, bias, scale_factor=3, algorithm="direct")
    with pytest.raises(RuntimeError, match="Winograd is not"):
        imgfast.upsample_conv_relu(*(t.double() for t in (x, weight, bias)), algorithm="winograd")
    with pytest.raises(RuntimeError):  # torch's own
        imgfast.upsample_conv_relu(x, weight[:, :1], bias)
