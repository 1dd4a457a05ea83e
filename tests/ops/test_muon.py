"""Steps of Muon, by the kernel and by stock operators, beside the formula in float64."""

import pytest
import torch

from imgfast.ops import muon
from imgfast.ops.muon import muon_, muon_stock_

pytestmark = pytest.mark.cpu

# Fewer than a vector, than a tile; wide and tall; no multiple of either; the largest of the kernel,
# and one more; filters.
SHAPES = [
    (1, 1), (1, 9), (9, 1), (3, 5), (96, 96), (96, 384), (384, 96), (33, 66), (66, 33), (17, 130),
    (128, 2048), (128, 2049), (24, 3, 3, 3), (40, 20, 3, 3), (8, 1, 3, 3), (2, 3, 4),
]  # fmt: skip


def case(shapes, dtype=torch.float64, layout=torch.contiguous_format):
    """Weights, gradients and averages."""
    generator = torch.Generator().manual_seed(len(shapes))

    def draw():
        tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
        return [t.contiguous(memory_format=layout) if t.ndim == 4 else t for t in tensors]

    return draw(), draw(), draw()


def by_formula(weight, grad, average, lr, decay, momentum=0.95):
    """By a singular value decomposition: the new weight and average."""
    average = average.lerp(grad, 1 - momentum)
    u = grad.lerp(average, momentum).flatten(1)
    left, values, right = torch.linalg.svd(u, full_matrices=False)
    values = values / values.square().sum().sqrt()
    for a, b, c in muon._COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    move = (0.2 * max(u.shape) ** 0.5 * left * values @ right).view(weight.shape)
    return weight * (1 - lr * decay) - lr * move, average


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [muon_, muon_stock_])
def test_values(step, dtype, layout):
    tensors = case(SHAPES, dtype, layout)
    wide = [[t.double() for t in some] for some in tensors]
    expected = [by_formula(*triple, 0.1, 0.3) for triple in zip(*wide, strict=True)]
    strides = [t.stride() for t in tensors[0]]
    step(*tensors, 0.1, 0.3)
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-9}[dtype]
    for weight, average, wanted in zip(tensors[0], tensors[2], expected, strict=True):
        assert weight.dtype == dtype
        for found, exact in zip((weight, average), wanted, strict=True):
            torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    assert [t.stride() for t in tensors[0]] == strides


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_values_with_another_momentum(momentum):
    tensors = case([(5, 9), (9, 5)])
    expected = [by_formula(*t, 0.1, 0.0, momentum) for t in zip(*tensors, strict=True)]
    muon_(*tensors, 0.1, momentum=momentum)
    for found, (weight, average) in zip(zip(*tensors, strict=True), expected, strict=True):
        torch.testing.assert_close((found[0], found[2]), (weight, average))


def test_gradients_in_other_strides():
    tensors = case([(6, 10), (4, 5, 3, 3)])
    expected = [by_formula(*t, 0.1, 0.0) for t in zip(*tensors, strict=True)]
    weights, grads, averages = tensors
    grads = [grad.transpose(0, 1).contiguous().transpose(0, 1) for grad in grads]
    muon_(weights, grads, averages, 0.1)
    for weight, average, wanted in zip(weights, averages, expected, strict=True):
        torch.testing.assert_close((weight, average), wanted)


def test_weights_that_are_no_matrix_in_memory():
    """They take stock's operators."""
    tensors = case([(6, 10)])
    expected = by_formula(*(some[0] for some in tensors), 0.1, 0.0)
    spread = [[some[0].t().contiguous().t()] for some in tensors]
    muon_(*spread, 0.1)
    torch.testing.assert_close((spread[0][0], spread[2][0]), expected)


def test_threads_and_company_do_not_matter():
    shapes = [(96, 384), (384, 96), (20, 30), (96, 96), (5, 200)] * 2
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        tensors = case(shapes, torch.float32)
        muon_(*tensors, 0.1)
        results.append(tensors)
    for result in results[1:]:
        for some, others in zip(result, results[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
    alone = [some[2:3] for some in case(shapes, torch.float32)]
    muon_(*alone, 0.1)
    assert torch.equal(alone[0][0], results[0][0][2])


@pytest.mark.parametrize("step", [muon_, muon_stock_])
def test_a_gradient_of_nothing_moves_nothing(step):
    """As of a weight that nothing depends on yet."""
    for value in (0.0, 1e-20):
        weights = [torch.ones(4, 9), torch.ones(9, 4)]
        grads = [torch.full_like(weight, value) for weight in weights]
        step(weights, grads, [torch.zeros_like(weight) for weight in weights], 0.1)
        assert all((weight - 1).abs().max() < 1e-4 for weight in weights)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_shows_in_its_own_weight(value):
    shapes = [(20, 30), (30, 20), (20, 30)]
    tensors, others = case(shapes), case(shapes)
    tensors[1][1][3, 4] = value
    muon_(*tensors, 0.1)
    muon_(*others, 0.1)
    assert tensors[0][1].isnan().any()
    for number in (0, 2):
        assert torch.equal(tensors[0][number], others[0][number])


@pytest.mark.parametrize("step", [muon_, muon_stock_])
def test_a_backward_through_weights_as_they_were_is_an_error(step):
    weights, grads, averages = case([(5, 7)])
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    loss = (x @ weights[0].requires_grad_().t()).sum()
    with torch.no_grad():
        step(weights, grads, averages, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_weights():
    muon_([], [], [], 0.1)


def test_orthogonalised():
    """Singular values are all about one, and the matrices do not turn, whatever their company."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(96, 384), (300, 40), (1, 9), (384, 96), (33, 66), (64, 576), (9, 1)]
    stacks = [torch.randn(2, *shape, generator=generator) for shape in shapes]
    for stack, found in zip(stacks, muon.orthogonalised(stacks), strict=True):
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.72 and values.max() < 1.28
        left, _, right = torch.linalg.svd(stack, full_matrices=False)
        nearest = (found * (left @ right)).sum((1, 2)) / values.norm(dim=1)
        assert (nearest / min(stack.shape[1:]) ** 0.5 - 1).abs().max() < 0.05
        (alone,) = muon.orthogonalised([stack[:1]])
        torch.testing.assert_close(found[:1], alone, rtol=1e-3, atol=1e-4)


def test_orthogonalised_zeros_stay():
    """As the gradient of a weight that nothing depends on yet."""
    for found in muon.orthogonalised([torch.zeros(1, 4, 9), torch.full((1, 9, 4), 1e-20)]):
        assert found.abs().max() < 1e-4


def test_the_polynomials_are_those_of_least_deviation():
    """Each deviates from 1 as far at four points of its range, up and down in turn: Chebyshev's
    condition, for three coefficients."""
    low, high = 0.01, 1.0
    for a, b, c in muon._COEFFICIENTS:
        x = torch.linspace(low, high, 100_001, dtype=torch.float64)
        away = a * x + b * x**3 + c * x**5 - 1
        deviation = away.abs().max()
        turns = away[1:-1][(away[1:-1] - away[:-2]) * (away[2:] - away[1:-1]) < 0]
        extremes = torch.cat([away[:1], turns, away[-1:]])
        signs = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(extremes, signs * deviation, rtol=2e-3, atol=0)
        low, high = float(1 - deviation), float(1 + deviation)
    assert low > 0.73 and high < 1.27


def test_registration():
    coefficients = [number for polynomial in muon._COEFFICIENTS for number in polynomial]
    arguments = (*case([(5, 7), (9, 3)]), 0.9, 1.0, 0.1, coefficients)
    torch.library.opcheck(
        torch.ops.imgfast.muon_.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


A, COEFFICIENTS = torch.zeros(2, 3), (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("weights", "grads", "averages", "coefficients", "message"),
    [
        ([A], [], [A], COEFFICIENTS, "must be equally many"),
        ([A], [A], [A, A], COEFFICIENTS, "must be equally many"),
        ([A], [A], [A], (), "three for each polynomial"),
        ([A], [A], [A], COEFFICIENTS[:2], "three for each polynomial"),
        ([A.half()], [A.half()], [A.half()], COEFFICIENTS, "must be float32 or float64"),
        ([A, A.double()], [A, A.double()], [A, A.double()], COEFFICIENTS, "must be of one dtype"),
        ([A[0]], [A[0]], [A[0]], COEFFICIENTS, r"must be dense \[K, ...\]"),
        ([A.t()], [A.t()], [A.t()], COEFFICIENTS, r"must be dense \[K, ...\]"),
        ([A[:, :2]], [A[:, :2]], [A[:, :2]], COEFFICIENTS, r"must be dense \[K, ...\]"),
        ([A[:0]], [A[:0]], [A[:0]], COEFFICIENTS, r"must be dense \[K, ...\]"),
        ([A], [A[:1]], [A], COEFFICIENTS, "must be as their weights"),
        ([A], [A], [A.double()], COEFFICIENTS, "must be as their weights"),
        ([A], [torch.zeros(3, 2).t()], [A], COEFFICIENTS, "must be as their weights"),
    ],
)
def test_the_operator_refuses(weights, grads, averages, coefficients, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.imgfast.muon_(weights, grads, averages, 0.9, 1.0, 0.1, coefficients)
