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


def case(shape, dtype):
    n, length, size, neighbours = shape
    torch.manual_seed(sum(shape))
    x, grad = torch.randn(2, n, length, size, dtype=dtype)
    weight = torch.randn(neighbours, size, dtype=dtype)
    return x, weight, torch.randint(-1, max(0, length), (neighbours, length)), grad


def by_formula(x, weight, places):
    y = x.clone()
    for factor, row in zip(weight, places.tolist(), strict=True):
        for position, place in enumerate(row):
            if place >= 0:
                y[:, position] += factor * x[:, place]
    return y


def outcome(mix, x, weight, places, grad):
    x, weight = (t.clone().requires_grad_() for t in (x, weight))
    y = mix(x, weight, places)
    grads = torch.autograd.grad(y, (x, weight), grad.to(y), materialize_grads=True)
    return [y.detach(), *grads]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mix", [neighbour_mix, neighbour_mix_stock])
def test_values_and_gradients(shape, dtype, mix):
    x, weight, places, grad = case(shape, dtype)
    expected = outcome(by_formula, x.double(), weight.double(), places, grad)
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    for found, wanted in zip(outcome(mix, x, weight, places, grad), expected, strict=True):
        assert found.dtype == dtype
        close = tolerance * max(1.0, shape[0] * shape[1]) ** 0.5
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=close)


@pytest.mark.parametrize("place", [-1, 0, 4])
def test_values_of_neighbours_that_are_all_one(place):
    """Nothing, oneself, or one position that all others and all neighbours share."""
    x, weight, _, grad = case((6, 5, 12, 3), torch.float64)
    places = torch.full((3, 5), place)
    expected = outcome(by_formula, x, weight, places, grad)
    torch.testing.assert_close(outcome(neighbour_mix, x, weight, places, grad), expected)
    if place < 0:
        assert torch.equal(neighbour_mix(x, weight, places), x)


def test_gradcheck():
    x, weight, places, _ = case((5, 6, 3, 2), torch.float64)
    leaves = x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: neighbour_mix(x, w, places), leaves)


def test_threads_and_company_do_not_matter():
    x, weight, places, grad = case((37, 49, 96, 4), torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(outcome(neighbour_mix, x, weight, places, grad))
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    assert torch.equal(neighbour_mix(x[21:23], weight, places), results[0][0][21:23])


def test_strides_of_the_caller():
    x, weight, places, grad = case((6, 9, 16, 4), torch.float32)
    spread = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in (x, weight, places, grad)]
    assert not any(t.is_contiguous() for t in spread)
    expected = outcome(neighbour_mix, x, weight, places, grad)
    for found, wanted in zip(outcome(neighbour_mix, *spread), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_position_that_is_not_finite_stays_where_it_is():
    x, weight, _, _ = case((3, 6, 20, 1), torch.float32)
    places = torch.tensor([[-1, 0, 1, 2, 3, 4]])
    expected = neighbour_mix(x, weight, places)
    x[1, 2, 7] = torch.inf
    found = neighbour_mix(x, weight, places)
    assert not found[1, 2:4, 7].isfinite().any()
    found[1, 2:4, 7] = expected[1, 2:4, 7]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("neighbours", [16, 17])
def test_many_neighbours(neighbours):
    x, weight, places, _ = case((3, 20, 8, neighbours), torch.float64)
    torch.testing.assert_close(neighbour_mix(x, weight, places), by_formula(x, weight, places))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_take_stock(dtype):
    x, weight, places, _ = case((2, 5, 8, 2), dtype)
    assert torch.equal(neighbour_mix(x, weight, places), neighbour_mix_stock(x, weight, places))


def test_autocast_takes_stock():
    x, weight, places, _ = case((2, 5, 8, 2), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = neighbour_mix(x, weight, places)
        assert torch.equal(found, neighbour_mix_stock(x, weight, places))


def test_registration():
    for dtype in (torch.float32, torch.float64):
        x, weight, places, grad = case((5, 7, 9, 3), dtype)
        for operator, arguments in (
            (torch.ops.imgfast.neighbour_mix.default, (x, weight, places)),
            (torch.ops.imgfast.neighbour_mix_backward.default, (grad, x, weight, places)),
        ):
            torch.library.opcheck(
                operator, arguments, test_utils=("test_schema", "test_faketensor")
            )


X, WEIGHT, PLACES = torch.zeros(2, 3, 4), torch.zeros(1, 4), torch.zeros(1, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "weight", "places", "message"),
    [
        (X[0], WEIGHT, PLACES, r"x must be dense \[N, T, D\]"),
        (X.half(), WEIGHT.half(), PLACES, "x must be float32 or float64"),
        (X, WEIGHT[:, :3], PLACES, r"weight must be dense \[J, D\]"),
        (X, WEIGHT.double(), PLACES, r"weight must be dense \[J, D\]"),
        (X, torch.zeros(()), PLACES, r"weight must be dense \[J, D\]"),
        (X, torch.zeros(17, 4), PLACES.expand(17, 3).contiguous(), "at most 16 neighbours, got 17"),
        (X, WEIGHT, PLACES[:, :2], r"places must be dense int64 \[J, T\]"),
        (X, WEIGHT, PLACES.int(), r"places must be dense int64 \[J, T\]"),
        (X, WEIGHT, PLACES + 3, r"places must lie in \[-1, 3\)"),
        (X, WEIGHT, PLACES - 2, r"places must lie in \[-1, 3\)"),
    ],
)
def test_the_operator_refuses(x, weight, places, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.imgfast.neighbour_mix(x, weight, places)


def test_the_operator_refuses_another_gradient():
    with pytest.raises(RuntimeError, match="grad_y must be dense"):
        torch.ops.imgfast.neighbour_mix_backward(X[:1], X, WEIGHT, PLACES)
