"""Mixing by the kernel beside the formula in float64."""

import pytest
import torch

from imgfast.ops.neighbour_mix import neighbour_mix, neighbour_mix_stock

pytestmark = pytest.mark.cpu

# Sequences, positions, numbers, neighbours: fewer than a vector, than a unit of sequences; no
# multiple of either, of either; none at all.
SHAPES = [
    (1, 1, 1, 1), (3, 5, 7, 2), (4, 49, 96, 4), (9, 16, 33, 16), (32, 64, 24, 4), (5, 4, 8, 0),
    (0, 4, 8, 2), (2, 0, 8, 2), (2, 4, 0, 2), (11, 9, 65, 3),
]  # fmt: skip


def case(shape, dtype=torch.float32):
    n, length, size, neighbours = shape
    torch.manual_seed(sum(shape))
    x, grad, grad_too = torch.randn(3, n, length, size, dtype=dtype)
    gain, weight = torch.randn(size, dtype=dtype), torch.randn(neighbours, size, dtype=dtype)
    places = torch.randint(-1, max(0, length), (neighbours, length))
    return x + 3, gain, weight, places, grad, grad_too


def by_formula(x, gain, weight, places):
    away = x - x.mean(2, keepdim=True)
    normed = gain * away / (away.square().mean(2, keepdim=True) + 1e-5).sqrt()
    y = normed.clone()
    for factor, row in zip(weight, places.tolist(), strict=True):
        for position, place in enumerate(row):
            if place >= 0:
                y[:, position] += factor * normed[:, place]
    return y, x


def outcome(mix, x, gain, weight, places, grad, grad_too=None):
    leaves = [t.clone().requires_grad_() for t in (x, gain, weight)]
    y, same = mix(*leaves, places)
    assert torch.equal(same, x)
    # As of a residual connection, where there is one.
    used = ([y], [grad.to(y)]) if grad_too is None else ([y, same], [grad.to(y), grad_too.to(y)])
    grads = torch.autograd.grad(used[0], leaves, used[1], materialize_grads=True)
    return [y.detach(), *grads]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mix", [neighbour_mix, neighbour_mix_stock])
@pytest.mark.parametrize("residual", [False, True])
def test_values_and_gradients(shape, dtype, mix, residual):
    tensors = case(shape, dtype)[: 6 if residual else 5]
    wide = [t.double() if t.is_floating_point() else t for t in tensors]
    expected = outcome(by_formula, *wide)
    tolerance = {torch.float32: 3e-5, torch.float64: 1e-11}[dtype]
    for found, wanted in zip(outcome(mix, *tensors), expected, strict=True):
        assert found.dtype == dtype
        scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("place", [-1, 0, 4])
def test_values_of_neighbours_that_are_all_one(place):
    """Nothing, oneself, or one position that all others and all neighbours share."""
    x, gain, weight, _, *grads = case((6, 5, 12, 3), torch.float64)
    places = torch.full((3, 5), place)
    expected = outcome(by_formula, x, gain, weight, places, *grads)
    torch.testing.assert_close(outcome(neighbour_mix, x, gain, weight, places, *grads), expected)


@pytest.mark.parametrize("mix", [neighbour_mix, neighbour_mix_stock])
def test_without_neighbours_it_is_layer_norm(mix):
    x, gain, _, _, grad, _ = case((6, 5, 12, 3), torch.float64)
    found, expected = [], []
    for results, function in ((found, lambda x, g: mix(x, g)[0]), (expected, layer_norm)):
        leaves = [t.clone().requires_grad_() for t in (x, gain)]
        y = function(*leaves)
        results += [y, *torch.autograd.grad(y, leaves, grad)]
    torch.testing.assert_close(found, expected)


def layer_norm(x, gain):
    return torch.nn.functional.layer_norm(x, gain.shape, gain)


def test_a_residual_alone_has_its_gradient():
    x, gain, weight, places, _, grad_too = case((6, 5, 12, 3))
    x.requires_grad_()
    _, same = neighbour_mix(x, gain, weight, places)
    assert torch.equal(torch.autograd.grad(same, x, grad_too)[0], grad_too)


def test_gradcheck():
    x, gain, weight, places, _, _ = case((5, 6, 3, 2), torch.float64)
    leaves = [t.requires_grad_() for t in (x, gain, weight)]
    assert torch.autograd.gradcheck(lambda *tensors: neighbour_mix(*tensors, places), leaves)


def test_threads_and_company_do_not_matter():
    x, *others = case((37, 49, 96, 4))
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(outcome(neighbour_mix, x, *others))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    assert torch.equal(neighbour_mix(x[21:23], *others[:3])[0], results[0][0][21:23])


def test_strides_of_the_caller():
    tensors = case((6, 9, 16, 4))
    spread = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    assert not any(t.is_contiguous() for t in spread)
    expected = outcome(neighbour_mix, *tensors)
    for found, wanted in zip(outcome(neighbour_mix, *spread), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_position_that_is_not_finite_stays_where_it_is():
    x, gain, weight, _, _, _ = case((3, 6, 20, 1))
    places = torch.tensor([[-1, 0, 1, 2, 3, 4]])
    expected, _ = neighbour_mix(x, gain, weight, places)
    x[1, 2, 7] = torch.inf
    found, _ = neighbour_mix(x, gain, weight, places)
    assert not found[1, 2:4].isfinite().any()
    found[1, 2:4] = expected[1, 2:4]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("neighbours", [16, 17])
def test_many_neighbours(neighbours):
    *tensors, _, _ = case((3, 20, 8, neighbours), torch.float64)
    torch.testing.assert_close(neighbour_mix(*tensors)[0], by_formula(*tensors)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_take_stock(dtype):
    *tensors, _, _ = case((2, 5, 8, 2), dtype)
    assert torch.equal(neighbour_mix(*tensors)[0], neighbour_mix_stock(*tensors)[0])


def test_autocast_takes_stock():
    *tensors, _, _ = case((2, 5, 8, 2))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = neighbour_mix(*tensors)
        assert torch.equal(found, neighbour_mix_stock(*tensors)[0])


def test_registration():
    for dtype in (torch.float32, torch.float64):
        *tensors, grad, grad_too = case((5, 7, 9, 3), dtype)
        for operator, arguments in (
            (torch.ops.imgfast.neighbour_mix.default, tensors),
            (torch.ops.imgfast.neighbour_mix_backward.default, (grad, grad_too, *tensors)),
            (torch.ops.imgfast.neighbour_mix_backward.default, (grad, None, *tensors)),
        ):
            torch.library.opcheck(
                operator, tuple(arguments), test_utils=("test_schema", "test_faketensor")
            )


X, GAIN = torch.zeros(2, 3, 4), torch.zeros(4)
WEIGHT, PLACES = torch.zeros(1, 4), torch.zeros(1, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "gain", "weight", "places", "message"),
    [
        (X[0], GAIN, WEIGHT, PLACES, r"x must be dense \[N, T, D\]"),
        (X.half(), GAIN.half(), WEIGHT.half(), PLACES, "x must be float32 or float64"),
        (X, GAIN[:3], WEIGHT, PLACES, r"gain must be dense \[D\]"),
        (X, GAIN.double(), WEIGHT, PLACES, r"gain must be dense \[D\]"),
        (X, GAIN, WEIGHT[:, :3], PLACES, r"weight must be dense \[J, D\]"),
        (X, GAIN, WEIGHT.double(), PLACES, r"weight must be dense \[J, D\]"),
        (X, GAIN, torch.zeros(()), PLACES, r"weight must be dense \[J, D\]"),
        (X, GAIN, torch.zeros(17, 4), PLACES.repeat(17, 1), "at most 16 neighbours, got 17"),
        (X, GAIN, WEIGHT, PLACES[:, :2], r"places must be dense int64 \[J, T\]"),
        (X, GAIN, WEIGHT, PLACES.int(), r"places must be dense int64 \[J, T\]"),
        (X, GAIN, WEIGHT, PLACES + 3, r"places must lie in \[-1, 3\)"),
        (X, GAIN, WEIGHT, PLACES - 2, r"places must lie in \[-1, 3\)"),
    ],
)
def test_the_operator_refuses(x, gain, weight, places, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.imgfast.neighbour_mix(x, gain, weight, places)


def test_the_operator_refuses_other_gradients():
    backward = torch.ops.imgfast.neighbour_mix_backward
    with pytest.raises(RuntimeError, match="grad_y must be dense"):
        backward(X[:1], None, X, GAIN, WEIGHT, PLACES)
    with pytest.raises(RuntimeError, match="grad_too must be dense"):
        backward(X, X.double(), X, GAIN, WEIGHT, PLACES)
