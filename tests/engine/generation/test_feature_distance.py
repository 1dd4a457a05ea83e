"""Distances of feature sets against closed forms, loops over pairs, and torchmetrics."""

import math

import pytest
import torch

from imgfast.engine.generation.feature_distance import frechet_distance, kernel_distance
from imgfast.engine.generation.feature_neighbours import compare_manifolds, neighbour_radii
from imgfast.engine.generation.nearest_pictures import nearest_pictures


def normal(rows, columns, seed=0):
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, dtype=torch.float64, generator=dice)


def white(rows, columns, seed=0):
    """Rows of mean exactly 0 and covariance exactly the identity."""
    x = normal(rows, columns, seed)
    return torch.linalg.qr(x - x.mean(0)).Q * (rows - 1) ** 0.5


def rotation(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed)).Q


@pytest.mark.parametrize("rows", [200, 31])
def test_frechet_of_commuting_covariances(rows):
    """``|m_a - m_b|^2 + sum (s_a - s_b)^2`` where both have the same axes, here not the given."""
    size = 13
    s_a, s_b = normal(2, size, 1).abs()
    m_a, m_b = normal(2, size, 2)
    turn = rotation(size, 3)
    a = white(rows, size, 4) * s_a @ turn + m_a
    b = white(rows, size, 5) * s_b @ turn + m_b
    exact = (m_a - m_b).square().sum() + (s_a - s_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(exact.item(), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(exact.item(), rel=1e-10)


def test_frechet_of_covariances_that_do_not_commute():
    """Of 2 x 2: ``tr M^(1/2) = sqrt(tr M + 2 sqrt(det M))``."""
    a, b = white(50, 2, 1) @ normal(2, 2, 2), white(50, 2, 3) @ normal(2, 2, 4) + 1.5
    product = torch.cov(a.t()) @ torch.cov(b.t())
    root = math.sqrt(product.trace() + 2 * product.det().sqrt())
    exact = 2 * 1.5**2 + torch.cov(a.t()).trace() + torch.cov(b.t()).trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(exact.item(), rel=1e-10)


def test_frechet_of_singular_covariances():
    """Fewer rows than features, constant features, and one side that does not vary at all."""
    wide = normal(6, 40)
    assert frechet_distance(wide, wide) == pytest.approx(0, abs=1e-9)
    turned = wide @ rotation(40, 1)  # the mean moves, the spread keeps its size
    product = torch.cov(wide.t()) @ torch.cov(turned.t())
    root = torch.linalg.eigvals(product).real.clamp(min=0).sqrt().sum()  # noise of about 1e-7
    exact = (wide.mean(0) - turned.mean(0)).square().sum() + 2 * wide.var(0).sum() - 2 * root
    assert frechet_distance(wide, turned) == pytest.approx(exact.item(), rel=1e-5)
    point = torch.full((6, 40), 2.0)
    exact = (wide.mean(0) - 2).square().sum() + wide.var(0).sum()
    assert frechet_distance(wide, point) == pytest.approx(exact.item(), rel=1e-12)
    assert frechet_distance(point, point + 3) == pytest.approx(40 * 9, rel=1e-12)


def test_frechet_agrees_with_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    a, b = normal(300, 20, 1) @ normal(20, 20, 2), normal(250, 20, 3) @ normal(20, 20, 4) + 0.1
    theirs = _compute_fid(a.mean(0), torch.cov(a.t()), b.mean(0), torch.cov(b.t()))
    assert frechet_distance(a, b) == pytest.approx(theirs.item(), rel=1e-9)


def test_frechet_takes_float32_and_more_of_one_than_of_the_other():
    a, b = normal(30, 8, 1), normal(90, 8, 2)
    exact = frechet_distance(a, b)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(exact, rel=1e-5)


def kernel(x, y):
    return (float(x @ y) / len(x) + 1) ** 3


def test_kernel_distance_by_pairs():
    a, b = normal(9, 5, 1), normal(7, 5, 2) + 0.3
    own = [
        sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j)
        / (len(x) * (len(x) - 1))
        for x in (a, b)
    ]
    cross = sum(kernel(x, y) for x in a for y in b) / (9 * 7)
    assert kernel_distance(a, b).value == pytest.approx(sum(own) - 2 * cross, rel=1e-10)


def test_kernel_distance_agrees_with_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    a, b = normal(1500, 12, 1), normal(1500, 12, 2) * 1.1  # more rows than are taken at a time
    assert kernel_distance(a, b).value == pytest.approx(poly_mmd(a, b).item(), rel=1e-8)


def test_kernel_distance_has_no_bias_and_an_error_that_is_right():
    """Over 100 draws from one distribution: a mean of 0, and the spread that is reported."""
    found = [kernel_distance(normal(60, 4, 2 * s), normal(60, 4, 2 * s + 1)) for s in range(100)]
    values = torch.tensor([one.value for one in found])
    errors = torch.tensor([one.error for one in found])
    assert abs(values.mean()) < 3 * values.std() / 100**0.5
    assert (values < 0).any()
    # The subsets' mean varies no less than the value, whose spread it bounds.
    assert values.std() < errors.square().mean().sqrt() < 5 * values.std()


def test_kernel_distance_by_seed():
    a, b = normal(80, 6, 1), normal(80, 6, 2) + 1.5
    first, again, other = (kernel_distance(a, b, seed) for seed in (0, 0, 1))
    assert first == again and first.value == other.value and first.error != other.error
    assert first.value > 3 * first.error


def manifolds_by_loops(real, generated):
    """Straight from the definitions."""

    def radius(x, i, k):
        return sorted(float((x[i] - x[j]).norm()) for j in range(len(x)) if j != i)[k - 1]

    n, m = len(real), len(generated)
    apart = [[float((x - y).norm()) for y in generated] for x in real]
    r3, r5 = ([radius(real, i, k) for i in range(n)] for k in (3, 5))
    g3 = [radius(generated, j, 3) for j in range(m)]
    return (
        sum(any(apart[i][j] <= r3[i] for i in range(n)) for j in range(m)) / m,
        sum(any(apart[i][j] <= g3[j] for j in range(m)) for i in range(n)) / n,
        sum(apart[i][j] <= r5[i] for i in range(n) for j in range(m)) / (5 * m),
        sum(any(apart[i][j] <= r5[i] for j in range(m)) for i in range(n)) / n,
    )


@pytest.mark.parametrize("shift, scale", [(0, 1), (0.8, 1), (0, 0.3), (0, 2)])
def test_manifolds_by_loops(shift, scale):
    real, generated = normal(31, 3, 1), normal(23, 3, 2) * scale + shift
    found = compare_manifolds(real, generated)
    assert tuple(found) == pytest.approx(manifolds_by_loops(real, generated), abs=1e-12)
    assert 0 < found.precision <= 1 and 0 < found.coverage <= 1


def test_manifolds_do_not_depend_on_the_chunks(monkeypatch):
    real, generated = normal(40, 3, 1), normal(35, 3, 2) + 0.5
    whole = compare_manifolds(real, generated)
    monkeypatch.setattr("imgfast.engine.generation.feature_neighbours._CHUNK", 7)
    assert compare_manifolds(real, generated) == whole


def test_manifolds_tell_quality_from_variety():
    """Two sets of one distribution; one narrow copy; one far away."""
    real = normal(1000, 4, 1)
    alike = compare_manifolds(real, normal(1000, 4, 2))
    assert alike.density == pytest.approx(1, abs=0.1)
    expected = 1 - math.prod((1000 - i) / (2000 - i) for i in range(1, 6))  # Naeem, section 3.2
    assert alike.coverage == pytest.approx(expected, abs=0.03)
    narrow = compare_manifolds(real, normal(1000, 4, 2) * 0.1)
    assert narrow.precision == 1 and narrow.density > 1
    assert narrow.recall < 0.05 and narrow.coverage < 0.3
    assert tuple(compare_manifolds(real, normal(1000, 4, 2) + 100)) == (0, 0, 0, 0)


def test_radii_leave_out_the_row_itself():
    line = torch.tensor([[0.0], [1.0], [3.0], [3.0], [10.0]], dtype=torch.float64)
    first, third = neighbour_radii(line, (1, 3))
    torch.testing.assert_close(first, torch.tensor([1.0, 1, 0, 0, 7], dtype=torch.float64))
    torch.testing.assert_close(third, torch.tensor([3.0, 2, 3, 3, 9], dtype=torch.float64))


def pixels(count, seed, shape=(3, 5, 5)):
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=dice, dtype=torch.uint8)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("rows", [None, 10])
def test_nearest_pictures_by_all_pairs(k, rows, monkeypatch):
    if rows is not None:  # chunks of fewer pictures than are sought, at the end
        monkeypatch.setattr("imgfast.engine.generation.nearest_pictures._MAX_ROWS", rows)
    images, among = pixels(23, 1), pixels(41, 2)
    apart = (images.flatten(1).double()[:, None] - among.flatten(1).double()).square().mean(2)
    exact = apart.sqrt().div(255).sort(1)
    found = nearest_pictures(images, among, k)
    torch.testing.assert_close(found.distance, exact.values[:, :k], rtol=1e-12, atol=0)
    assert torch.equal(found.index, exact.indices[:, :k])


def test_an_equal_picture_is_at_distance_0():
    among = pixels(50, 1, (1, 28, 28))
    found = nearest_pictures(among[[7, 33]], among)
    assert found.distance.tolist() == [[0], [0]] and found.index.tolist() == [[7], [33]]
    near = among[[7]].clone()
    near[0, 0, 3, 4] ^= 1  # one step of one pixel
    assert nearest_pictures(near, among).distance.item() == pytest.approx(1 / 255 / 28)


def test_what_cannot_be_compared_is_refused():
    x = normal(10, 4)
    for function, least in ((frechet_distance, 2), (kernel_distance, 4), (compare_manifolds, 6)):
        name = function.__name__
        for a, b in ((x, x[:, :3]), (x, x[: least - 1]), (x[: least - 1], x), (x, x[0])):
            with pytest.raises(ValueError, match=rf"{name}: .* at least {least} rows each, got"):
                function(a, b)
        function(x[:least], x[-least:])
    bad = x.clone()
    bad[3, 2] = math.nan
    for function in (frechet_distance, kernel_distance, compare_manifolds):
        with pytest.raises(ValueError, match=r"must be finite, got NaN or infinity"):
            function(x, bad)
    with pytest.raises(ValueError, match=r"5 or more pictures of size \[3, 5, 5\]"):
        nearest_pictures(pixels(2, 1), pixels(4, 2), 5)
    with pytest.raises(ValueError, match=r"1 or more pictures of size \[3, 5, 5\]"):
        nearest_pictures(pixels(2, 1), pixels(4, 2, (1, 5, 5)))
