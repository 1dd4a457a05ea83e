"""MixUp and CutMix, pixel by pixel, and the loss of their pairs of targets."""

import random

import pytest
import torch

import imgfast
from imgfast.data import normalise
from imgfast.engine.mixing import Mixing, mixed_pictures, mixed_targets
from imgfast.engine.training_step import _StockPairLoss

MEAN, STD = (0.2, 0.5), (0.3, 0.4)


def draw(mixing, shape, seed=0):
    return mixing.draw(torch.Size(shape), random.Random(seed), torch.Generator().manual_seed(seed))


@pytest.fixture
def images():
    return torch.randint(0, 256, (6, 2, 9, 7), generator=torch.Generator().manual_seed(1)).byte()


def test_off_leaves_pictures_and_labels(images):
    assert draw(Mixing(0.0, 0.0), images.shape) is None
    x = mixed_pictures(images, slice(2, 5), None, MEAN, STD)
    assert torch.equal(x, normalise(images[2:5], MEAN, STD))
    assert mixed_targets(torch.arange(6), slice(2, 5), None).tolist() == [2, 3, 4]


def test_mixup_blends(images):
    mix = draw(Mixing(1.0, 0.0), images.shape)
    assert sorted(mix.partner.tolist()) == list(range(6)) and mix.box is None
    x = normalise(images, MEAN, STD).double()
    expected = mix.lam * x + (1 - mix.lam) * x[mix.partner]
    for part in (slice(0, 6), slice(1, 4)):
        found = mixed_pictures(images, part, mix, MEAN, STD)
        torch.testing.assert_close(found.double(), expected[part], rtol=0, atol=1e-5)
        first, second, lam = mixed_targets(torch.arange(6), part, mix)
        assert first.tolist() == list(range(6))[part] and lam == mix.lam
        assert torch.equal(second, mix.partner[part])


def test_cutmix_replaces_a_box_and_lam_is_what_remains(images):
    before, boxes = images.clone(), set()
    for seed in range(40):
        mix = draw(Mixing(0.0, 1.0), images.shape, seed)
        rows, columns = mix.box
        inside = torch.zeros(9, 7, dtype=torch.bool)
        inside[rows, columns] = True
        assert 0 <= rows.start <= rows.stop <= 9 and 0 <= columns.start <= columns.stop <= 7
        assert mix.lam == pytest.approx(1 - inside.sum().item() / 63)
        expected = torch.where(inside, images[mix.partner], images)
        found = mixed_pictures(images, slice(1, 6), mix, MEAN, STD)
        assert torch.equal(found, normalise(expected[1:], MEAN, STD))
        boxes.add((rows.start, rows.stop, columns.start, columns.stop))
    assert torch.equal(images, before) and len(boxes) > 30


def test_lam_follows_the_beta_distribution():
    for alpha in (0.4, 2.0):
        dice, generator = random.Random(0), torch.Generator()
        draws = [
            Mixing(alpha, 0.0).draw(torch.Size((1, 1, 2, 2)), dice, generator).lam
            for _ in range(4000)
        ]
        lam = torch.tensor(draws)
        assert lam.mean().item() == pytest.approx(0.5, abs=0.03)
        # Var of Beta(a, a) is 1 / (4 (2a + 1))
        assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_with_both_a_batch_takes_one():
    dice, generator = random.Random(0), torch.Generator()
    mixing = Mixing(0.5, 0.5)
    kinds = [mixing.draw(torch.Size((2, 1, 8, 8)), dice, generator).box for _ in range(400)]
    assert 150 < sum(box is None for box in kinds) < 250


def test_the_loss_of_a_pair_is_that_of_one_hot_targets():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 3, 1, 0, 0])
    lam = 0.3
    soft = lam * torch.eye(4)[first] + (1 - lam) * torch.eye(4)[second]
    soft = (0.9 * soft + 0.1 / 4).double()
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    for loss in (imgfast.nn.CrossEntropyLoss, _StockPairLoss):
        found = loss(label_smoothing=0.1)(logits.float(), (first, second, lam))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    plain = _StockPairLoss()(logits, first)
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(logits, first))
