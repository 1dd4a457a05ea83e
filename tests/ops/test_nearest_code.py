"""Nearest codes by the kernel beside all distances in float64."""

import pytest
import torch

from imgfast.ops.nearest_code import nearest_code, nearest_code_stock

pytestmark = pytest.mark.cpu

# Rows, codes, numbers: fewer than a vector, a tile, a block of rows; no multiple of any, of all.
SHAPES = [
    (1, 1, 1), (5, 2, 1), (16, 6, 8), (33, 7, 3), (64, 512, 16), (1000, 100, 16), (257, 13, 70),
    (40, 1025, 5), (3136, 512, 16), (0, 4, 3), (7, 3, 0),
]  # fmt: skip


def pair(shape, dtype, seed=0):
    n, k, d = shape
    torch.manual_seed(seed + n + k + d)
    return torch.randn(n, d, dtype=dtype), torch.randn(k, d, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_nearest(shape, dtype, offset):
    """No other code is nearer by more than rounding."""
    rows, book = (t + offset for t in pair(shape, dtype))
    codes = nearest_code(rows, book)
    assert codes.dtype == torch.int64 and codes.shape == rows.shape[:1]
    distances = (rows.double().unsqueeze(1) - book.double()).square().sum(2)
    found = distances.gather(1, codes.unsqueeze(1)).squeeze(1)
    size = max(1, shape[2]) * (1 + offset) ** 2 * 10
    assert (found <= distances.amin(1) + size * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("code", [0, 4, 5, 31, 99])
def test_the_first_of_equally_near_ones(code):
    rows, book = pair((50, 100, 4), torch.float32)
    book[code:] = book[code]
    rows[:] = book[code]
    assert (nearest_code(rows, book) == code).all()


def test_codes_themselves_are_nearest_to_themselves():
    book = torch.randn(513, 16)
    assert torch.equal(nearest_code(book, book), torch.arange(513))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_rows_that_are_near_to_nothing(value):
    """Their code is some code, and that of the others is what it was."""
    rows, book = pair((40, 30, 6), torch.float32)
    expected = nearest_code(rows, book)
    rows[17] = value
    codes = nearest_code(rows, book)
    assert 0 <= codes[17] < 30
    expected[17] = codes[17]
    assert torch.equal(codes, expected)


def test_threads_and_company_do_not_matter():
    rows, book = pair((2000, 300, 16), torch.float32)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(nearest_code(rows, book))
    assert all(torch.equal(codes, results[0]) for codes in results)
    assert torch.equal(nearest_code(rows[777:779], book), results[0][777:779])


def test_strides_of_the_caller():
    rows, book = pair((90, 40, 8), torch.float64)
    spread = rows.t().contiguous().t(), torch.stack([book, book], 2)[..., 0]
    assert not any(t.is_contiguous() for t in spread)
    assert torch.equal(nearest_code(*spread), nearest_code(rows, book))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_stock_is_the_same(dtype):
    rows, book = (t.to(dtype) for t in pair((50, 20, 4), torch.float64))
    rows[:20] = book
    assert torch.equal(nearest_code_stock(rows, book)[:20], nearest_code(rows, book)[:20])


def test_autocast_takes_stock():
    rows, book = pair((50, 20, 4), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(rows, book), nearest_code_stock(rows, book))


def test_registration():
    for dtype in (torch.float32, torch.float64):
        torch.library.opcheck(
            torch.ops.imgfast.nearest_code.default,
            pair((9, 5, 4), dtype),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize(
    ("rows", "book", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 3), "rows must be"),
        (torch.zeros(3, 4), torch.zeros(2, 3), "book must be"),
        (torch.zeros(3, 4), torch.zeros(2, 4).double(), "book must be"),
        (torch.zeros(3, 4), torch.zeros(0, 4), "1 to 16777216 codes, got 0"),
        (torch.zeros(3, 4).half(), torch.zeros(2, 4).half(), "must be float32 or float64"),
    ],
)
def test_the_operator_refuses(rows, book, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.imgfast.nearest_code(rows, book)
