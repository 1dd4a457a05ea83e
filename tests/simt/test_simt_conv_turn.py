"""Pictures turned from NCHW into channels_last and back, in the emulator."""

from __future__ import annotations

import pytest
import simt
import torch

KERNELS = simt.load("conv_turn")
DTYPES = (torch.float32, torch.bfloat16)


def turned(x, *, offsets=(0, 0), **options):
    """[images, rows, cols] -> [images, cols, rows], and the profile; each begins at an offset."""
    images, rows, cols = x.shape
    memory = torch.empty(x.numel() + offsets[0], dtype=x.dtype)
    memory[offsets[0] :] = x.flatten()
    y = torch.empty(x.numel() + offsets[1], dtype=x.dtype)
    profile = KERNELS.run(
        "conv_turn",
        images,
        rows,
        cols,
        x.element_size(),
        memory[offsets[0] :],
        simt.out(y[offsets[1] :]),
        **options,
    )
    return y[offsets[1] :].view(images, cols, rows), profile


# A vector is 4 or 8 elements, or half of that, or one; a tile of a warp is up to 64 x 128.
SIZES = [1, 2, 3, 4, 8, 12, 49, 64, 100, 136]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", SIZES)
def test_every_instance(rows, dtype):
    for seed, cols in enumerate(SIZES):
        x = torch.arange(3 * rows * cols).to(dtype).view(3, rows, cols)
        y, _ = turned(x, seed=seed % 3)
        assert torch.equal(y, x.transpose(1, 2))


@pytest.mark.parametrize("offsets", [(1, 0), (0, 1), (2, 2), (4, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_that_begins_anywhere(dtype, offsets):
    x = torch.arange(2 * 16 * 32).to(dtype).view(2, 16, 32)
    y, _ = turned(x, offsets=offsets, seed=1)
    assert torch.equal(y, x.transpose(1, 2))


def test_nothing_to_turn():
    y, _ = turned(torch.empty(0, 3, 4))
    assert y.numel() == 0


@pytest.mark.parametrize("rows, cols", [(64, 1024), (1024, 64), (64, 196), (196, 64), (48, 784)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_sectors_are_moved(dtype, rows, cols):
    x = torch.zeros(2, rows, cols, dtype=dtype)
    _, profile = turned(x, profile=True)
    accesses = profile.select(space="global")
    fewest = 2 * x.numel() * x.element_size()
    assert 32 * accesses.missed_sectors <= 1.01 * fewest
    assert 32 * accesses.sectors <= 1.25 * fewest  # where a line begins in the middle of one
