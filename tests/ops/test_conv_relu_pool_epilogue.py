"""conv_relu_pool around torch's convolution: bias, activation, pool and their gradients.

Filters are of 1 x 1 or 2 x 2, for which torch's convolution of exact data is exact, too: of others
it may run by Winograd's algorithm on a GPU, and true ties would not stay ties.
"""

import pytest
import torch
from ops.conv_cases import assert_near, check, exact, gradients, make, ours, stock

import imgfast
from imgfast.ops import conv_relu_pool as conv
from imgfast.ops import timing
from imgfast.ops.conv_relu_pool_route import Epilogue

pytestmark = pytest.mark.devices("simt", "cuda")  # the CPU has no such kernels

EPILOGUE = {"algorithm": "epilogue"}
POOLS = [
    {"pool": "none"},
    {"pool": "max"},
    {"pool": "avg"},
    {"pool": "max", "pool_size": 3, "pool_stride": 2, "pool_padding": 1},
    {"pool": "max", "pool_size": (2, 3), "pool_stride": 1},
    {"pool": "max", "pool_size": 2, "pool_stride": 1, "pool_dilation": 2},
    {"pool": "max", "pool_size": 2, "ceil_mode": True},
    {"pool": "max", "pool_size": (8, 9)},  # the whole map
    {"pool": "avg", "pool_size": (2, 3), "pool_stride": 2, "pool_padding": 1},
    {"pool": "avg", "pool_size": 2, "ceil_mode": True, "count_include_pad": False},
]


def name_of(options):
    return "-".join(f"{name}={value}" for name, value in options.items())


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "transposed"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "none"])
@pytest.mark.parametrize("pool", POOLS, ids=name_of)
def test_pools_and_activations(pool, activation, layout, device):
    if pool["pool"] == "avg" and activation in ("sigmoid", "tanh"):
        pool = {**pool, "pool": "max", "count_include_pad": True}  # averages of these are stock's
    tensors = make(2, 3, 9, 10, 20, 2, 2, layout=layout, device=device)
    check(*tensors, activation=activation, **pool, **EPILOGUE)


# A thread has 4 filters of float32 and 8 of 2 bytes, a block 32 and 64 and 32 outputs.
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("filters", [1, 3, 4, 7, 8, 31, 32, 33, 64, 65, 72])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_filters(dtype, filters, layout, device):
    tensors = make(3, 4, 6, 7, filters, 1, 1, dtype=dtype, layout=layout, device=device)
    check(*tensors, **EPILOGUE)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 31), (4, 8), (3, 11), (8, 9)])
@pytest.mark.parametrize("pool", ["none", "max"])
def test_maps(pool, size, device):
    if min(size) < 2 and pool == "max":
        size = (2, 2)  # one window
    check(*make(5, 3, *size, 9, 1, 1, layout="channels_last", device=device), pool=pool, **EPILOGUE)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": (2, 1)},
        {"groups": 2},
        {"padding": "valid"},
        {"activation": "gelu", "pool": "avg"},
        {"activation": "silu"},
    ],
    ids=name_of,
)
def test_convolutions(options, device):
    groups = options.get("groups", 1)
    tensors = make(2, 4, 9, 8, 6, 2, 2, groups=groups, device=device)
    if options.get("activation") not in ("gelu", "silu"):
        check(*tensors, **options, **EPILOGUE)
        return
    with torch.no_grad():  # their gradients are stock's
        y = ours(*tensors, **options, **EPILOGUE)
    wide = [t.double().cpu() for t in tensors]
    assert_near(y, stock(*wide, **options), "y")


def test_without_a_bias_and_without_a_batch(device):
    x, weight, _ = make(1, 3, 8, 8, 5, 2, 2, bias=False, device=device)
    check(x, weight, None, **EPILOGUE)
    y = ours(x[0], weight, None, **EPILOGUE)
    assert torch.equal(y, ours(x, weight, None, **EPILOGUE)[0])


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_a_part_of_the_gradients(wanted, device):
    tensors = make(2, 3, 8, 8, 5, 2, 2, device=device)
    grad_y = exact((2, 5, 3, 3), 7).to(device)
    _, every = gradients(ours, tensors, grad_y, **EPILOGUE)
    leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    y = ours(*leaves, **EPILOGUE)
    found = torch.autograd.grad(y, [leaves[i] for i in wanted], grad_y)
    for i, grad in zip(wanted, found, strict=True):
        assert torch.equal(grad, every[i])


def test_nan_and_infinities(device):
    x, weight, bias = make(2, 3, 8, 8, 5, 2, 2, device=device)
    x[0, 0, 2, 3], x[1, 1, 4, 4], x[1, 2, 0, 0] = torch.nan, torch.inf, -torch.inf
    with torch.no_grad():
        y = ours(x, weight, bias, **EPILOGUE)
    wide = [t.double().cpu() for t in (x, weight, bias)]
    torch.testing.assert_close(y.double().cpu(), stock(*wide), equal_nan=True)


def test_second_derivatives(device):
    tensors = make(2, 3, 6, 6, 4, 2, 2, device=device)

    def second(function, tensors, **options):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = function(*leaves, activation="tanh", **options)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    found = second(ours, tensors, **EPILOGUE)
    expected = second(stock, [t.double().cpu() for t in tensors])
    for name, grad, wide in zip(("x", "weight", "bias"), found, expected, strict=True):
        assert_near(grad, wide, f"second derivative at {name}", 8)


@pytest.mark.parametrize("way", ["direct, epilogue", "epilogue, direct"])
def test_one_way_forward_and_another_back(way, device, monkeypatch):
    """Both leave for backward what the other one reads."""
    monkeypatch.setattr(imgfast, "benchmark", True)
    monkeypatch.setattr(conv, "_plans", {})
    monkeypatch.setattr(timing, "times", _way_first(way))
    tensors = make(2, 3, 9, 10, 20, 2, 2, device=device)
    leaf = tensors[0].clone().requires_grad_()
    route = imgfast.dispatch_info(leaf, *tensors[1:])
    assert route.epilogue == (Epilogue.FORWARD if way.startswith("ep") else Epilogue.BACKWARD)
    check(*tensors, algorithm="auto")


def _way_first(way):
    """A stopwatch that finds this one fastest, without a look."""
    return lambda runs, tensors: dict.fromkeys(sorted(runs, key=lambda name: name != way), 0.0)


def test_kept_for_backward(device):
    """x, weight, and a byte an output: what the convolution gives is not kept."""
    x, weight, bias = make(2, 3, 9, 9, 8, 2, 2, layout="channels_last", device=device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = ours(x, weight.requires_grad_(), bias, **EPILOGUE)
    sizes = sorted(t.numel() * t.element_size() for t in kept)
    assert sizes == sorted([x.numel() * 4, weight.numel() * 4, y.numel()])


@pytest.mark.devices("cpu")
def test_the_cpu_has_none(device):
    x, weight, bias = make(1, 3, 8, 8, 4, 2, 2, device=device)
    with pytest.raises(RuntimeError, match=r"'epilogue' has no kernel here.*runs on CUDA only"):
        imgfast.conv_relu_pool(x, weight, bias, **EPILOGUE)
