"""The quantiser: nearest codes, averages that follow the latents, no code lost."""

import math

import pytest
import torch

from imgfast.models.quantizer import Quantizer


def started(codes=5, size=3, rows=200, seed=0):
    """A quantiser with a book from random latents, in training mode."""
    torch.manual_seed(seed)
    quantizer = Quantizer(codes, size)
    quantizer.start(torch.randn(rows, size))
    return quantizer


def test_every_position_becomes_its_nearest_code():
    quantizer = started(codes=17, size=4).eval()
    z = torch.randn(2, 4, 3, 5)
    vectors, codes, commitment = quantizer(z)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 4).double()
    distances = torch.cdist(rows, quantizer.book.double())
    assert torch.equal(codes.flatten(), distances.argmin(1))
    expected = quantizer.book[codes].permute(0, 3, 1, 2)
    torch.testing.assert_close(vectors, expected)
    assert torch.equal(quantizer.lookup(codes), expected)
    mean = distances.min(1).values.square().mean() / 4
    torch.testing.assert_close(commitment.double(), mean, rtol=1e-5, atol=0)


def test_the_gradient_passes_straight_through():
    quantizer = started().eval()
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    vectors, _, commitment = quantizer(z)
    weights = torch.randn_like(vectors)
    (grad,) = torch.autograd.grad((vectors * weights).sum(), z, retain_graph=True)
    assert torch.equal(grad, weights)
    (grad,) = torch.autograd.grad(commitment, z)
    torch.testing.assert_close(grad, 2 * (z - vectors.detach()) / z.numel())


def test_the_book_follows_as_in_the_paper():
    """Equations 6 to 8 of arXiv:1711.00937 in float64, three batches in a row."""
    quantizer = started(codes=6, size=3)
    count, total = quantizer.count.double(), quantizer.total.double()
    book = quantizer.book.double()
    for _ in range(3):
        z = torch.randn(4, 3, 5, 5)
        rows = z.permute(0, 2, 3, 1).reshape(-1, 3).double()
        chosen = torch.cdist(rows, book).argmin(1)
        for k in range(6):
            count[k] = 0.97 * count[k] + 0.03 * (chosen == k).sum()
            total[k] = 0.97 * total[k] + 0.03 * rows[chosen == k].sum(0)
            book[k] = total[k] / count[k]
        quantizer(z)
        torch.testing.assert_close(quantizer.count.double(), count, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(quantizer.book.double(), book, rtol=1e-4, atol=1e-5)


def test_dead_codes_move_to_latents_of_the_batch():
    quantizer = started(codes=8, size=2, rows=400)
    with torch.no_grad():  # far from everything, and as if not chosen for long
        quantizer.book[3:] = 1e3
        quantizer.total[3:] = 1e3 * quantizer.count[3:, None]
        quantizer.count[3:] = 1e-3
    z = torch.randn(4, 2, 10, 10)
    quantizer(z)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 2)
    distances = torch.cdist(quantizer.book[3:], rows).min(1).values
    assert (distances < 1e-5).all()
    torch.testing.assert_close(quantizer.count[3:], torch.full((5,), 0.3 * 400 / 8))
    for _ in range(5):
        _, codes, _ = quantizer(torch.randn(4, 2, 10, 10))
    assert quantizer.usage(codes).used == 8


def test_k_means_finds_clusters_and_the_seed_decides():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    rows = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2)
    books = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        quantizer = Quantizer(12, 2)
        quantizer.start(rows)
        books.append(quantizer.book.clone())
        nearest = torch.cdist(rows, quantizer.book).min(1).values
        assert nearest.max() < 1  # a cluster without a code would be 10 away
    assert torch.equal(books[0], books[1]) and not torch.equal(books[0], books[2])


def test_latents_pass_until_it_has_started():
    quantizer = Quantizer(4, 2)
    z = torch.randn(1, 2, 3, 3)
    book = quantizer.book.clone()
    vectors, _, commitment = quantizer(z)
    assert torch.equal(vectors, z) and commitment == 0 and torch.equal(quantizer.book, book)
    assert not torch.equal(quantizer.eval()(z)[0], z)
    other = Quantizer(4, 2)
    other.load_state_dict(started(4, 2).state_dict())
    assert other.follows and other.train()(z)[2] > 0


@pytest.mark.parametrize(
    "codes, used, perplexity",
    [([0, 0, 0, 0], 1, 1.0), ([0, 1, 2, 3], 4, 4.0), ([0, 0, 0, 1], 2, 2 ** (0.811278))],
)
def test_usage_counts_codes_and_their_entropy(codes, used, perplexity):
    found = Quantizer(4, 2).usage(torch.tensor(codes))
    assert found.used == used and math.isclose(found.perplexity, perplexity, rel_tol=1e-5)
