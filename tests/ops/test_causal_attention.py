"""Attention by the kernel beside the formula in float64."""

import pytest
import torch
import torch.nn.functional as F

from imgfast.ops.causal_attention import causal_attention, causal_attention_stock

pytestmark = pytest.mark.cpu

# Sequences shorter than a vector, than a tile, no multiple of either, of either; heads likewise.
SHAPES = [
    (1, 1, 1, 1), (2, 3, 1, 4), (1, 49, 3, 32), (3, 16, 2, 16), (2, 13, 5, 7), (1, 64, 1, 64),
    (2, 12, 2, 33), (1, 97, 2, 20), (5, 6, 1, 8), (0, 4, 2, 8), (2, 0, 2, 8),
]  # fmt: skip


def sequences(shape, dtype, factor=1.0):
    n, length, heads, size = shape
    torch.manual_seed(length)
    return factor * (torch.randn(n, length, 3, heads, size, dtype=dtype) + 0.5)


def by_formula(qkv, scale):
    """torch's own causal attention gives NaN for a scale that is not positive."""
    queries, keys, values = qkv.transpose(1, 3).unbind(2)
    queries, keys = (F.layer_norm(heads, heads.shape[-1:]) for heads in (queries, keys))
    later = torch.ones(qkv.shape[1], qkv.shape[1], dtype=torch.bool).triu(1)
    scores = scale * queries @ keys.mT
    return (scores.masked_fill(later, -torch.inf).softmax(3) @ values).transpose(1, 2)


def outcome(attend, qkv, scale=None):
    scale = 1.5 / max(1, qkv.shape[-1]) ** 0.5 if scale is None else scale
    leaf = qkv.clone().requires_grad_()
    out = attend(leaf, scale)
    (grad,) = torch.autograd.grad(
        out, leaf, torch.linspace(-1, 2, out.numel()).view(out.shape).to(out)
    )
    return out.detach(), grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(shape, dtype):
    qkv = sequences(shape, dtype)
    expected = outcome(by_formula, qkv.double())
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-10}[dtype]
    for found, wanted in zip(outcome(causal_attention, qkv), expected, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [0.0, -1.5, 40.0])
@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_scales(scale, factor):
    """Flat, inverted and one-hot attention; deviations below epsilon, and huge ones."""
    qkv = sequences((2, 21, 2, 16), torch.float32, factor)
    expected = outcome(by_formula, qkv.double(), scale)
    for found, wanted in zip(outcome(causal_attention, qkv, scale), expected, strict=True):
        close = 1e-3 * wanted.abs().max().item()
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=close)


def test_stock_is_the_same():
    qkv = sequences((2, 21, 2, 16), torch.float64)
    for found, wanted in zip(
        outcome(causal_attention_stock, qkv), outcome(causal_attention, qkv), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_gradcheck():
    qkv = sequences((2, 7, 2, 5), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: causal_attention(x, 1.3), qkv)


def test_later_positions_have_no_say():
    qkv = sequences((1, 30, 2, 8), torch.float32)
    before = causal_attention(qkv, 1.0)
    qkv[:, 17:] *= -50
    after = causal_attention(qkv, 1.0)
    assert torch.equal(before[:, :17], after[:, :17])
    assert not torch.equal(before[:, 17:], after[:, 17:])


def test_threads_do_not_matter():
    qkv = sequences((9, 49, 3, 32), torch.float32)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(outcome(causal_attention, qkv))
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(grad, results[0][1])


def test_strides_of_the_caller():
    qkv = sequences((3, 11, 2, 8), torch.float64)
    other = qkv.permute(4, 0, 3, 1, 2).contiguous().permute(1, 3, 4, 2, 0)
    assert not other.is_contiguous()
    torch.testing.assert_close(causal_attention(other, 0.7), causal_attention(qkv, 0.7))


def test_autocast_takes_stock():
    qkv = sequences((1, 5, 1, 8), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(causal_attention(qkv, 1.0), causal_attention_stock(qkv, 1.0))


def test_registration():
    qkv = sequences((2, 5, 2, 4), torch.float64)
    out, logsumexp = torch.ops.imgfast.causal_attention(qkv, 0.5)
    for operator, arguments in (
        (torch.ops.imgfast.causal_attention, (qkv, 0.5)),
        (torch.ops.imgfast.causal_attention_backward, (out, qkv, logsumexp, 0.5)),
    ):
        torch.library.opcheck(
            operator.default, arguments, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize(
    ("qkv", "message"),
    [
        (torch.zeros(2, 3, 4), "qkv must be dense"),
        (torch.zeros(2, 3, 2, 4, 5), "qkv must be dense"),
        (torch.zeros(2, 3, 3, 4, 5, dtype=torch.float16), "must be float32 or float64"),
    ],
)
def test_the_operator_refuses(qkv, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.imgfast.causal_attention(qkv, 1.0)
