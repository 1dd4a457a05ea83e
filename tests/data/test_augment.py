"""Augmented batches hold exactly the shifts and mirror images that were asked for."""

import pytest
import torch

from imgfast.data import Augment, normalise


def pictures(count=6, channels=3, height=5, width=7):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def test_without_augmentation_the_pictures_come_back():
    images = pictures()
    picked = torch.tensor([5, 0, 3, 3])
    batch = Augment(images, shift=0, flip=False)(picked, torch.Generator())
    assert torch.equal(batch, images[picked])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_every_picture_is_one_of_the_allowed_windows_and_all_occur(channels, flip, shift):
    images = pictures(channels=channels)
    height, width = images.shape[2:]
    augment = Augment(images, shift, flip)
    generator = torch.Generator().manual_seed(1)
    picked = torch.arange(6).repeat(200)
    batch = augment(picked, generator)
    sources = [images, images.flip(3)] if flip else [images]
    allowed = torch.stack(
        [
            torch.nn.functional.pad(source, (shift,) * 4)[
                :, :, row : row + height, column : column + width
            ]
            for source in sources
            for row in range(2 * shift + 1)
            for column in range(2 * shift + 1)
        ]
    )  # [variants, N, C, H, W]
    matches = (batch == allowed[:, picked]).flatten(2).all(2)  # [variants, B]
    assert bool(matches.any(0).all())
    assert bool(matches.any(1).all())


def test_same_seed_same_batch():
    augment = Augment(pictures(), shift=2, flip=True)
    picked = torch.arange(6)
    first, again, other = (
        augment(picked, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("cutout", [1, 3, 4, 40])
def test_cutout_erases_one_clipped_square_and_all_centres_occur(cutout):
    images = pictures()
    height, width = images.shape[2:]
    augment = Augment(images, shift=0, flip=False, cutout=cutout)
    picked = torch.arange(6).repeat(200)
    batch = augment(picked, torch.Generator().manual_seed(2))
    mean = (images.double().mean((0, 2, 3)) + 0.5).floor().view(1, 3, 1, 1)
    row, column = torch.arange(height).view(-1, 1), torch.arange(width)
    squares = torch.stack(
        [
            (row >= y - cutout // 2)
            & (row < y - cutout // 2 + cutout)
            & (column >= x - cutout // 2)
            & (column < x - cutout // 2 + cutout)
            for y in range(height)
            for x in range(width)
        ]
    )  # [centres, H, W]
    allowed = torch.where(squares[:, None, None], mean.to(torch.uint8), images)
    matches = (batch == allowed[:, picked]).flatten(2).all(2)  # [centres, B]
    assert bool(matches.any(0).all())
    assert bool(matches.any(1).all())


def test_cutout_changes_nothing_but_its_square():
    """The same shifts and flips with and without; a square of 4 covers at most 16 pixels."""
    images, picked = pictures(height=9, width=9), torch.arange(6)
    plain, cut = (
        Augment(images, 2, True, cutout)(picked, torch.Generator().manual_seed(7))
        for cutout in (0, 4)
    )
    changed = (plain != cut).any(1).flatten(1).sum(1)
    assert int(changed.max()) <= 16 and int(changed.min()) >= 1


def test_normalise_matches_float64():
    images = pictures()
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    column = torch.tensor([mean, std], dtype=torch.float64).view(2, 1, 3, 1, 1)
    expected = (images.double() / 255 - column[0]) / column[1]
    torch.testing.assert_close(
        normalise(images, mean, std).double(), expected, rtol=1e-5, atol=1e-5
    )
