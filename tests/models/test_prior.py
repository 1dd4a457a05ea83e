"""The prior: what it may see, cached sampling, guidance, and the distribution it draws from."""

import pytest
import torch

from imgfast.models.prior import Prior, _neighbours, guided

CLASSES, CODES, SIDE = 3, 11, 4


@pytest.fixture(scope="module")
def prior():
    """A small network whose blocks are no identities any more."""
    torch.manual_seed(0)
    model = Prior(CLASSES, CODES, SIDE, width=24, depth=3, heads=3, threshold=0.2).eval()
    for name, value in model.named_parameters():
        if value.ndim == 2 and name.startswith(("blocks", "head")):
            torch.nn.init.normal_(value, std=0.3)
    return model


def make(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, CODES, (count, SIDE**2), generator=generator)
    return codes, torch.randint(0, CLASSES + 1, (count,), generator=generator)


def test_neighbours_of_a_square_of_three():
    expected = [
        (-1, -1, -1, -1), (0, -1, -1, -1), (1, -1, -1, -1),
        (2, 0, 1, -1), (3, 1, 2, 0), (4, 2, -1, 1),
        (5, 3, 4, -1), (6, 4, 5, 3), (7, 5, -1, 4),
    ]  # fmt: skip
    assert _neighbours(3).t().tolist() == [list(row) for row in expected]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_second_block_attends_or_the_only_one(depth):
    blocks = Prior(CLASSES, CODES, SIDE, 24, depth, 3, 0.2).blocks
    attending = [number for number, block in enumerate(blocks) if block.attention is not None]
    assert attending == {1: [0], 2: [1], 5: [1, 3]}[depth]


@torch.no_grad()
def test_logits_depend_on_earlier_codes_alone(prior):
    codes, labels = make(6)
    before = prior.logits(codes, labels)
    for place in range(SIDE**2):
        changed = codes.clone()
        changed[:, place] = (changed[:, place] + 1) % CODES
        after = prior.logits(changed, labels)
        assert torch.equal(before[:, : place + 1], after[:, : place + 1])
        if place + 1 < SIDE**2:
            assert not torch.allclose(before[:, place + 1], after[:, place + 1], atol=1e-3)


@torch.no_grad()
def test_cached_logits_are_the_uncached_ones(prior):
    codes, labels = make(5)
    expected = prior.logits(codes, labels)
    caches = [block.cache(5, SIDE**2) for block in prior.blocks]
    for place in range(SIDE**2):
        # Later codes are not known yet.
        seen = codes.clone()
        seen[:, place:] = CODES
        found = prior.next_logits(seen, labels, place, caches)
        torch.testing.assert_close(found, expected[:, place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
@torch.no_grad()
def test_guidance_is_the_formula_and_sampling_the_inverse_cdf(prior, guidance):
    """Codes drawn one by one, by what the paper says, in float64, without a cache."""
    count, temperature = 4, 0.8
    labels = torch.arange(count) % CLASSES
    uniforms = torch.rand(count, SIDE**2, dtype=torch.float64)
    found = prior.sample(labels, uniforms, guidance, temperature)
    codes = torch.full_like(found, CODES)
    for place in range(SIDE**2):
        with_class = prior.logits(codes, labels)[:, place].double()
        without = prior.logits(codes, torch.full_like(labels, CLASSES))[:, place].double()
        # Equation 6 of arXiv:2207.12598, rising with the place.
        w = (guidance - 1) * 2 * place / (SIDE**2 - 1)
        chances = (((1 + w) * with_class - w * without) / temperature).softmax(1)
        for row in range(count):
            reached, k = chances[row, 0], 0
            while reached <= uniforms[row, place] and k < CODES - 1:
                k += 1
                reached += chances[row, k]
            codes[row, place] = k
    assert torch.equal(found, codes)
    a, b = torch.randn(2, 3, 5)
    torch.testing.assert_close(guided(a, b, 2.5), b + 2.5 * (a - b))


@torch.no_grad()
def test_evenly_spread_uniforms_give_the_learned_frequencies(prior):
    count = 2000
    uniforms = torch.full((count, SIDE**2), 0.5, dtype=torch.float64)
    uniforms[:, 0] = (torch.arange(count) + 0.5) / count
    labels = torch.full((count,), 2)
    first = prior.sample(labels, uniforms)[:, 0]
    blank = torch.full((1, SIDE**2), CODES)
    expected = prior.logits(blank, labels[:1])[0, 0].softmax(0)
    frequencies = torch.bincount(first, minlength=CODES) / count
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=2 / count)


def test_uniforms_at_the_ends_are_codes(prior):
    uniforms = torch.zeros(2, SIDE**2, dtype=torch.float64)
    uniforms[1] = 1 - 2**-53
    found = prior.sample(torch.tensor([0, 1]), uniforms, 2.0, 1e-2)
    assert int(found.min()) >= 0 and int(found.max()) < CODES


def test_it_starts_with_alike_codes_alike():
    """Distances of embeddings and of weights of the head are those of the book, nearly."""
    torch.manual_seed(0)
    prior, book = Prior(CLASSES, CODES, SIDE, 512, 1, 2, 0.5), torch.randn(CODES, 3) * 7 + 2
    outside = prior.embeddings[0].weight[-1].clone()
    prior.start(book, seed=5)
    away = torch.pdist(book)
    for weight in (*(embedding.weight[:-1] for embedding in prior.embeddings), prior.head.weight):
        ratio = torch.pdist(weight) / away
        assert ratio.max() < 1.3 * ratio.min()
    torch.testing.assert_close(
        prior.embeddings[0].weight[:-1].std(), torch.tensor(0.25), rtol=0.1, atol=0
    )
    assert torch.equal(prior.embeddings[0].weight[-1], outside)
    again = Prior(CLASSES, CODES, SIDE, 512, 1, 2, 0.5)
    again.start(book, seed=5)
    assert torch.equal(again.head.weight, prior.head.weight)
    again.start(torch.ones(CODES, 3), seed=5)  # a book of one vector
    assert not again.head.weight.any()
