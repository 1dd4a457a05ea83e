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


def test_normalise_matches_float64():
    images = pictures()
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    column = torch.tensor([mean, std], dtype=torch.float64).view(2, 1, 3, 1, 1)
    expected = (images.double() / 255 - column[0]) / column[1]
    torch.testing.assert_close(
        normalise(images, mean, std).double(), expected, rtol=1e-5, atol=1e-5
    )
