"""cuda_probe's kernel, executed by the emulator."""

from __future__ import annotations

import pytest
import simt
import torch

KERNELS = simt.load("cuda_probe")


@pytest.mark.parametrize("seed", [0, 1, 2])
# One thread, a full block, a block and a bit, and a grid that has to stride.
@pytest.mark.parametrize(
    ("size", "blocks", "threads"), [(1, 1, 1), (256, 1, 256), (257, 2, 256), (1009, 3, 64)]
)
def test_probe_copies_every_byte(size, blocks, threads, seed):
    x = torch.randint(0, 256, (size,), dtype=torch.uint8)
    y = torch.empty_like(x)
    KERNELS.run("cuda_probe", x, simt.out(y), size, blocks, threads, seed=seed)
    assert torch.equal(x, y)


def test_probe_reads_and_writes_each_byte_once():
    x = torch.randint(0, 256, (1000,), dtype=torch.uint8)
    y = torch.empty_like(x)
    KERNELS.run("cuda_probe", x, simt.out(y), 1000, 2, 256)
    assert KERNELS.accesses == 2 * 1000


def test_probe_past_the_end_is_found():
    x = torch.zeros(100, dtype=torch.uint8)
    y = torch.empty_like(x)
    with pytest.raises(simt.Error) as error:
        KERNELS.run("cuda_probe", x, simt.out(y), 101, 1, 128)
    assert error.value.reports[0].kind == "out of bounds"
