"""upsample_conv_relu equals its stock composition in float64, on data whose sums are exact."""

import pytest
import torch
import torch.nn.functional as F
from conv_cases import SCALINGS, TOLERANCE, badly_scaled, exact, lay_out

import imgfast
from imgfast import _C
from imgfast.ops import cuda_route, timing
from imgfast.ops import upsample_conv_relu_costs as costs
from imgfast.ops import upsample_conv_relu_route as route
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
    (2, 24, 8, 4, 20),  # Winograd's tiles of 4 samples, whole
    (1, 5, 21, 21, 9),  # of 7
    (150, 4, 7, 7, 5),  # more than are transformed at a time
]
ACTIVATIONS = ["relu", "none", "leaky_relu", "sigmoid", "tanh"]
# Winograd's error: of a sum of so many products, in units of the largest output.
LOOSE = 2e-4


def stock(x, weight, bias, activation):
    return upsample_conv_relu_stock(x, weight, bias, Spec(2, 1, 1, activation, "stock"))


def make(shape, dtype=torch.float32, layout="nchw", bias=True, device="cpu"):
    n, c, h, w, k = shape
    x = lay_out(exact((n, c, h, w), 0, dtype).to(device), layout)
    weight = exact((k, c, 3, 3), 1, dtype, top=3).to(device)
    return x, weight, exact((k,), 2, dtype).to(device) if bias else None


def widened(tensors):
    """In float64, on the CPU."""
    return [None if t is None else t.detach().double().cpu() for t in tensors]


def compare(got, want, tolerance):
    scale = max(1.0, want.abs().max().item())
    assert (got.double().cpu() - want).abs().max().item() <= tolerance * scale


def gradients(run, tensors, grad_y):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = run(*leaves)
    wanted = [t for t in leaves if t is not None]
    return y, torch.autograd.grad(y, wanted, grad_y.to(y))


def check(shape, activation, layout, algorithm, device="cpu"):
    tensors = make(shape, layout=layout, device=device)
    wide = widened(tensors)
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
        through = torch.where(got_y.cpu() > 0, grad_y, slope * grad_y)
        _, want = gradients(lambda *t: stock(*t, "none"), wide, through)
    for g, w in zip(got, want, strict=True):
        compare(g, w, tolerance)


@pytest.mark.devices(simt_every=8)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "offset"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, activation, layout, device):
    check(shape, activation, layout, "direct", device)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "offset"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_by_winograd(shape, activation, layout):
    check(shape, activation, layout, "winograd")


def normal(n, c, h, w, k):
    torch.manual_seed(n + c + h + w + k)
    x, weight = torch.randn(n, c, h, w), torch.randn(k, c, 3, 3) / (9 * c) ** 0.5
    return x, weight, torch.randn(n, k, 2 * h, 2 * w)


@pytest.mark.parametrize(
    "points, size", [(5, 4), (5, 8), (5, 11), (6, 5), (6, 14), (8, 7), (8, 21)]
)
def test_winograds_error_on_normal_data(points, size):
    assert costs.winograd_points(size, size) == points
    x, weight, grad_y = normal(8, 32, size, size, 40)

    def run(x, weight):
        return imgfast.upsample_conv_relu(x, weight, activation="none", algorithm="winograd")

    want = gradients(lambda *t: stock(*t, None, "none"), (x.double(), weight.double()), grad_y)
    got = gradients(run, (x, weight), grad_y)
    bound = 2e-4 if points == 8 else 6e-5
    for g, w in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert (g - w).abs().max() <= bound * w.std()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("size", [7, 8, 10])
def test_badly_scaled_inputs(size, scaling):
    """The error of one picture stays below 1e-5 of the largest sum of |x| |weight| in it."""
    x, weight, _ = normal(3, 24, size, size, 16)
    x = badly_scaled(x, scaling)
    y = imgfast.upsample_conv_relu(x, weight, activation="none", algorithm="winograd")
    want = stock(x.double(), weight.double(), None, "none")
    scale = stock(x.double().abs(), weight.double().abs(), None, "none").amax((1, 2, 3))
    assert ((y.double() - want).abs().amax((1, 2, 3)) <= 1e-5 * scale).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 24, 7, 7, 20), (2, 8, 5, 6, 24)])
def test_dtypes_by_winograd(shape, layout, dtype):
    tensors = make(shape, dtype, layout)
    grad_y = exact((shape[0], shape[4], 2 * shape[2], 2 * shape[3]), 3)
    want_y, want = gradients(lambda *t: stock(*t, "none"), widened(tensors), grad_y)

    def run(*t):
        return imgfast.upsample_conv_relu(*t, activation="none", algorithm="winograd")

    got_y, got = gradients(run, tensors, grad_y)
    assert got_y.dtype == dtype and all(g.dtype == dtype for g in got)
    for g, w in zip((got_y, *got), (want_y, *want), strict=True):
        compare(g, w, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_dtypes(dtype, bias, device):
    tensors = make((2, 8, 5, 6, 24), dtype, bias=bias, device=device)
    grad_y = exact((2, 24, 10, 12), 3)
    want_y, want = gradients(lambda *t: stock(*t, "relu"), widened(tensors), grad_y)

    def run(*t):
        return imgfast.upsample_conv_relu(*t, algorithm="direct")

    got_y, got = gradients(run, tensors, grad_y)
    assert got_y.dtype == dtype and all(g.dtype == dtype for g in got)
    compare(got_y, want_y, TOLERANCE[dtype])
    for g, w in zip(got, want, strict=True):
        compare(g, w, 2 * TOLERANCE[dtype])


def test_no_rounding_on_the_way():
    """The folded filters of bfloat16 are float32 on the CPU: 1 + 2^-8 is none of its numbers. What
    tensor cores lose is measured in test_simt_upsample_conv_relu.py."""
    x = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16)
    weight[0, 0, 1, 1], weight[0, 0, 1, 2], weight[0, 0, 2, 1] = 1, 2**-8, -1
    y = imgfast.upsample_conv_relu(x, weight, activation="none", algorithm="direct")
    assert y[0, 0, 0, 0].item() == 2**-8


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_smooth_forward_alone(activation, device):
    x, weight, bias = make((2, 8, 5, 6, 24), device=device)
    got = imgfast.upsample_conv_relu(x, weight, bias, activation=activation, algorithm="direct")
    compare(got, stock(*widened((x, weight, bias)), activation), LOOSE)
    route = imgfast.upsample_dispatch_info(x.requires_grad_(), weight, bias, activation=activation)
    assert route.name == "stock" and activation in route.reason


@pytest.mark.parametrize("shape", [(2, 8, 5, 6, 24), (2, 8, 5, 6, 1)])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_memory_format_is_stocks(layout, shape, device):
    x, weight, bias = make(shape, layout=layout, device=device)
    x.requires_grad_()
    got = imgfast.upsample_conv_relu(x, weight, bias, algorithm="direct")
    want = stock(x, weight, bias, "relu")
    assert got.stride() == want.stride()
    grad_y = torch.ones_like(want)
    ours, theirs = (torch.autograd.grad(y, x, grad_y)[0] for y in (got, want))
    assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
@pytest.mark.parametrize("threads", [1, 2, 5, 7])  # 7: more than pictures
def test_threads(threads, algorithm):
    torch.set_num_threads(threads)
    check((5, 24, 9, 9, 40), "relu", "channels_last", algorithm)


NEEDS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)]


@pytest.mark.parametrize("needs", NEEDS)
def test_gradients_that_are_wanted(needs, device):
    check_wanted(needs, "direct", device)


@pytest.mark.parametrize("needs", NEEDS)
def test_gradients_that_are_wanted_by_winograd(needs):
    check_wanted(needs, "winograd", "cpu")


def check_wanted(needs, algorithm, device):
    tensors = make((2, 8, 5, 6, 24), device=device)

    def gradients_of(run, tensors):
        for tensor, need in zip(tensors, needs, strict=True):
            tensor.requires_grad_(bool(need))
        wanted = [t for t in tensors if t.requires_grad]
        return torch.autograd.grad(run(*tensors).square().sum(), wanted)

    def run(*t):
        return imgfast.upsample_conv_relu(*t, activation="none", algorithm=algorithm)

    expected = gradients_of(lambda *t: stock(*t, "none"), widened(tensors))
    for g, w in zip(gradients_of(run, tensors), expected, strict=True):
        compare(g, w, LOOSE)


def test_second_derivatives():
    x, weight, bias = (t.double().requires_grad_() for t in make((1, 2, 2, 3, 3)))

    def run(*t):
        return imgfast.upsample_conv_relu(*t, activation="tanh", algorithm="direct")

    assert torch.autograd.gradcheck(run, (x, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias))


def test_operators_are_well_formed(device):
    x, weight, bias = (t.requires_grad_() for t in make((1, 4, 3, 3, 8), device=device))
    torch.library.opcheck(torch.ops.imgfast.upsample_conv_relu, (x, weight, bias, 1, 0, False))


def test_compile(device):
    tensors = [t.requires_grad_() for t in make((2, 8, 5, 6, 24), device=device)]

    def run(*t):
        return imgfast.upsample_conv_relu(*t, algorithm="direct")

    got, want = torch.compile(run, backend="aot_eager", fullgraph=True)(*tensors), run(*tensors)
    assert torch.equal(got, want)
    for g, w in zip(
        torch.autograd.grad(got.sum(), tensors),
        torch.autograd.grad(want.sum(), tensors),
        strict=True,
    ):
        assert torch.equal(g, w)


def test_transforms_and_autocast(device):
    x, weight, bias = make((2, 8, 5, 6, 24), device=device)
    each = torch.func.vmap(lambda a: imgfast.upsample_conv_relu(a, weight, bias))(x)
    want = stock(*widened((x, weight, bias)), "relu")
    compare(each, want, TOLERANCE[torch.float32])
    with torch.autocast(device.type, torch.bfloat16):
        y = imgfast.upsample_conv_relu(x, weight, bias, algorithm="direct")
    assert y.dtype == torch.bfloat16
    compare(y, want, TOLERANCE[torch.bfloat16])


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


# --- the route on CUDA, from facts alone: the choice needs no GPU ---------------------------------


@pytest.fixture
def cuda_kernels(monkeypatch):
    monkeypatch.setattr(route, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(route, "_no_cuda", lambda *_: None)
    monkeypatch.setattr(cuda_route, "_wins", {})


def choose(dtype=torch.float32, needs_grad=True, **options):
    spec = Spec.of(*({"scale_factor": 2, "padding": 1, "groups": 1, "activation": "relu",
                      "algorithm": "auto"} | options).values())  # fmt: skip
    shapes = (2, 8, 5, 6), (24, 8, 3, 3), (24,)
    return route.choose(spec, True, "cuda", False, dtype, *shapes, False, needs_grad)


def test_routes_of_cuda(cuda_kernels, monkeypatch):
    for algorithm in ("auto", "direct"):
        chosen = choose(algorithm=algorithm)
        assert (chosen.name, chosen.isa, chosen.saves_y) == ("direct", "cuda", True)
        assert not chosen.winograd
    assert choose(torch.float64).name == choose(activation="gelu").name == "stock"
    assert choose(activation="gelu", needs_grad=False).name == "direct"
    with pytest.raises(RuntimeError, match="Winograd's algorithm runs on the CPU only"):
        choose(algorithm="winograd")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert (choose().name, choose().reason) == ("stock", route.UNTIMED)
    assert choose(algorithm="direct").name == "direct"


def test_what_no_cuda_kernel_serves_is_stocks(cuda_kernels, monkeypatch):
    monkeypatch.setattr(route, "_no_cuda", lambda *_: "no CUDA kernel for this")
    assert choose().reason == "no CUDA kernel for this"
    with pytest.raises(RuntimeError, match="no CUDA kernel for this"):
        choose(algorithm="direct")


class OnCUDA:
    """What faster() asks of tensors of a device that is not here."""

    is_cuda, device, dtype, requires_grad = True, torch.device("cuda"), torch.float32, False
    layout = torch.strided

    def __init__(self, *shape):
        self.shape = shape

    def stride(self):
        return torch.empty(self.shape).stride()


@pytest.mark.parametrize("winner", ["imgfast", "stock"])
def test_the_faster_one_is_remembered(winner, cuda_kernels, monkeypatch):
    timed, possible = [], False
    monkeypatch.setattr(timing, "possible", lambda *_: possible)

    def times(candidates, tensors):
        timed.append([run.keywords["route"].name for run in candidates.values()])
        return dict.fromkeys(sorted(candidates, key=lambda name: name != winner), 0.0)

    monkeypatch.setattr(timing, "times", times)
    x, weight, spec = OnCUDA(2, 8, 5, 6), OnCUDA(24, 8, 3, 3), Spec(2, 1, 1, "relu", "auto")

    def judge(x=x, spec=spec, tf32=False):
        return route.faster(choose(), spec, x, weight, None, tf32, run=lambda **_: None)

    assert (judge().name, judge().reason, timed) == ("stock", route.UNTIMED, [])
    possible = True
    found = [judge() for _ in range(3)][-1]
    assert found.name == ("direct" if winner == "imgfast" else "stock")
    assert "timed" in found.reason and "not timed" not in found.reason
    assert timed == [["direct", "stock"]]
    possible = False  # what is known holds
    assert judge() == found
    possible = True
    judge(OnCUDA(3, 8, 5, 6)), judge(spec=spec._replace(activation="none")), judge(tf32=True)
    assert len(timed) == 4
    assert judge(spec=spec._replace(algorithm="direct")).name == "direct"
    assert len(timed) == 4


@pytest.mark.skipif(not _C.build_info()["cuda"], reason="this build has no CUDA kernels")
@pytest.mark.parametrize("gradients", [False, True])
def test_the_library_says_what_it_serves(gradients):
    for dtype in ("float32", "bfloat16"):
        assert _C.cuda_serves_upsample_conv_relu([2, 8, 64, 64, 8], dtype, False, gradients)
        served = _C.cuda_serves_upsample_conv_relu([1, 8, 2**28, 2, 8], dtype, False, gradients)
        assert not served
