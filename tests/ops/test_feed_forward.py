"""The feed-forward layers by the kernel beside the formula in float64."""

import pytest
import torch

from imgfast.ops.feed_forward import feed_forward, feed_forward_stock

pytestmark = pytest.mark.cpu

# Rows, their numbers, hidden numbers: fewer than a vector, than a tile; no multiple of either, of
# either; more than the registers hold at once; none at all.
SHAPES = [
    (1, 1, 1), (5, 7, 3), (48, 96, 64), (49, 96, 65), (200, 96, 384), (97, 33, 130),
    (100, 100, 400), (60, 200, 70), (50, 385, 100), (0, 8, 4), (3, 0, 4), (3, 8, 0),
]  # fmt: skip


def case(shape, dtype=torch.float32):
    n, size, hidden = shape
    torch.manual_seed(sum(shape))
    x, grad = torch.randn(2, n, size, dtype=dtype)
    up = torch.randn(hidden, size, dtype=dtype) / max(1, size) ** 0.5
    return x, up, torch.randn(size, hidden, dtype=dtype), grad


def by_formula(x, up, down, threshold, residual=0.0):
    z = x @ up.t()
    return residual + (z * (z > threshold)).square() @ down.t()


def outcome(function, x, up, down, grad, threshold=0.5, residual=None):
    leaves = [t.clone().requires_grad_() for t in (x, up, down)]
    if residual is None:
        y = function(*leaves, threshold)
    else:
        leaves.append(residual.clone().requires_grad_())
        y = function(*leaves[:3], threshold, leaves[3])
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_values_and_gradients(shape, dtype, threshold):
    x, up, down, grad = case(shape, dtype)
    wide = [t.double() for t in (x, up, down, grad)]
    expected = outcome(by_formula, *wide, threshold)
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    results = outcome(feed_forward, x, up, down, grad, threshold)
    for found, wanted in zip(results, expected, strict=True):
        assert found.dtype == dtype
        scale = float(wanted.abs().max()) if wanted.numel() else 1.0
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_values_where_everything_counts_or_nothing_does(sign):
    x, up, down, grad = case((70, 40, 90), torch.float64)
    x, up = x.abs(), sign * up.abs()
    expected = outcome(by_formula, x, up, down, grad, 0.0)
    torch.testing.assert_close(outcome(feed_forward, x, up, down, grad, 0.0), expected)
    torch.testing.assert_close(outcome(feed_forward_stock, x, up, down, grad, 0.0), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [feed_forward, feed_forward_stock])
def test_values_with_a_residual(shape, function):
    *tensors, grad = case(shape, torch.float64)
    residual = torch.randn_like(grad)
    expected = outcome(by_formula, *tensors, grad, 0.5, residual)
    torch.testing.assert_close(outcome(function, *tensors, grad, 0.5, residual), expected)


def test_values_at_the_threshold():
    """A number that equals the threshold does not count, one above does as a whole."""
    up = torch.eye(4)
    x = torch.tensor([[0.5, 0.5000001, -1.0, 2.0]])
    for function in (feed_forward, feed_forward_stock):
        assert function(x, up, up, 0.5).tolist() == [[0.0, x[0, 1] ** 2, 0.0, 4.0]]


def test_gradcheck():
    x, up, down, _ = case((7, 5, 9), torch.float64)
    leaves = [t.requires_grad_() for t in (x, up, down)]
    z = (x @ up.t()).abs()
    assert z.min() > 1e-4  # no difference across the bend
    assert torch.autograd.gradcheck(feed_forward, leaves)


def test_threads_and_company_do_not_matter():
    x, up, down, grad = case((500, 96, 384))
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(outcome(feed_forward, x, up, down, grad))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    # Rows are alone in the registers, but for those of U x.
    assert torch.equal(feed_forward(x[101:103], up, down, 0.5), results[0][0][101:103])


@pytest.mark.parametrize("shape", [(5, 7, 8), (8,), (2, 3, 11, 8)])
def test_any_number_of_dimensions(shape):
    x, up, down, _ = case((1, 8, 12))
    x, residual = torch.randn(2, *shape)
    for other in (None, residual):
        expected = feed_forward_stock(x, up, down, 0.5, other)
        torch.testing.assert_close(feed_forward(x, up, down, 0.5, other), expected)


def test_strides_of_the_caller():
    tensors = case((60, 40, 90))
    arguments = [*tensors, 0.5, tensors[0] + 1]
    spread = [t if isinstance(t, float) else t.t().contiguous().t() for t in arguments]
    assert not any(t.is_contiguous() for t in spread if isinstance(t, torch.Tensor))
    for found, wanted in zip(
        outcome(feed_forward, *spread), outcome(feed_forward, *arguments), strict=True
    ):
        assert torch.equal(found, wanted)


def test_rows_that_are_not_finite_stay_where_they_are():
    x, up, down, _ = case((100, 40, 90))
    expected = feed_forward(x, up, down)
    x[17, 3], x[60, 5] = torch.nan, torch.inf
    found = feed_forward(x, up, down)
    assert found[17].isnan().all() and not found[60].isfinite().any()
    found[[17, 60]] = expected[[17, 60]]
    assert torch.equal(found, expected)


def test_what_is_below_the_threshold_by_infinity_does_not_count():
    """Neither padded rows nor padded hidden numbers make anything of 0 times infinity."""
    x, up, down, grad = case((50, 5, 70))
    x, up = x.abs(), up.abs()
    up[3] = -torch.inf
    y, _, _, grad_down = outcome(feed_forward, x, up, down, grad)
    assert y.isfinite().all()
    assert grad_down.isfinite().all() and not grad_down[:, 3].any()
    x[7], up = torch.inf, -up.abs()
    assert not feed_forward(x, up, down).any()


def test_a_weight_that_is_not_finite_shows_where_its_number_counts():
    x, up, down, _ = case((100, 40, 90))
    expected = feed_forward(x, up, down)
    down[3, 7] = torch.inf
    counts = (x @ up[7] > 0).nonzero().flatten()
    found = feed_forward(x, up, down)
    assert 0 < len(counts) < 100 and found[counts, 3].isinf().all()
    found[counts, 3] = expected[counts, 3]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_take_stock(dtype):
    x, up, down, _ = case((20, 8, 12), dtype)
    assert torch.equal(feed_forward(x, up, down), feed_forward_stock(x, up, down))


def test_autocast_takes_stock():
    x, up, down, _ = case((20, 8, 12))
    with torch.autocast("cpu", torch.bfloat16):
        found = feed_forward(x, up, down)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, feed_forward_stock(x, up, down))


def test_registration():
    for dtype in (torch.float32, torch.float64):
        x, up, down, grad = case((50, 9, 70), dtype)
        _, h = torch.ops.imgfast.feed_forward(x, up, down, 0.5)
        for operator, arguments in (
            (torch.ops.imgfast.feed_forward.default, (x, up, down, 0.5)),
            (torch.ops.imgfast.feed_forward.default, (x, up, down, 0.5, grad)),
            (torch.ops.imgfast.feed_forward_backward.default, (grad, x, up, down, h)),
        ):
            torch.library.opcheck(
                operator, arguments, test_utils=("test_schema", "test_faketensor")
            )


X, UP, DOWN = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("x", "up", "down", "message"),
    [
        (X[0], UP, DOWN, r"x must be dense \[N, D\]"),
        (X.half(), UP.half(), DOWN.half(), "x must be float32 or float64"),
        (X, UP[:, :2], DOWN, r"up must be dense \[H, D\]"),
        (X, UP.double(), DOWN, r"up must be dense \[H, D\]"),
        (X, torch.zeros(()), DOWN, r"up must be dense \[H, D\]"),
        (X, UP, DOWN[:2], r"down must be dense \[D, H\]"),
        (X, UP, DOWN.t(), r"down must be dense \[D, H\]"),
    ],
)
def test_the_operator_refuses(x, up, down, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.imgfast.feed_forward(x, up, down, 0.0)


@pytest.mark.parametrize("residual", [X[:1], X.t(), X.double()])
def test_the_operator_refuses_a_residual(residual):
    with pytest.raises(RuntimeError, match=r"residual must be dense \[N, D\]"):
        torch.ops.imgfast.feed_forward(X, UP, DOWN, 0.0, residual)


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_the_operator_refuses_a_threshold(threshold):
    with pytest.raises(RuntimeError, match="threshold must be at least 0"):
        torch.ops.imgfast.feed_forward(X, UP, DOWN, threshold)


def test_the_operator_refuses_another_gradient():
    y, h = torch.ops.imgfast.feed_forward(X, UP, DOWN, 0.0)
    backward = torch.ops.imgfast.feed_forward_backward
    with pytest.raises(RuntimeError, match="grad_y must be dense"):
        backward(y[:1], X, UP, DOWN, h)
    with pytest.raises(RuntimeError, match="h must be what forward made"):
        backward(y, X, UP, DOWN, h[:, :0])
