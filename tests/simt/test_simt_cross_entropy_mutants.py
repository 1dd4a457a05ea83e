"""The CUDA kernels of cross_entropy need every one of their barriers."""

import pytest
import simt
import simt_mutate
import torch
from cross_entropy_calls import BLOCK, HALF_WARP, QUARTER_WARP, STAGED, WARP
from test_simt_cross_entropy import check, make

DEFINES = ("FEW_INSTANCES",)

# Several pieces for every block, which meets each barrier again and again.
CALLS = [
    ((600, 5, 1), STAGED, 1),
    ((70, 70, 1), QUARTER_WARP, 1),
    ((37, 70, 1), HALF_WARP, 1),
    ((19, 70, 1), WARP, 1),
    ((5, 70, 1), BLOCK, 1),
]


def exercise(module):
    for seed in (1, 2):
        for shape, kernel, parts in [*CALLS, ((3, 4100, 1), BLOCK, 3)]:
            for kind in ("smoothed", "probability"):
                call = make(shape, torch.float32, kind, seed)
                check(module, call, seed=seed, kernel=kernel, parts=parts, max_blocks=2)


def test_kernels_as_they_are():
    exercise(simt.load("cross_entropy", DEFINES))


@pytest.mark.parametrize("file, points", [("group", 6), ("sums", 5), ("staged", 3)])
def test_every_mutant_dies(file, points):
    file = f"cuda/cross_entropy_{file}.cuh"
    assert len(simt_mutate.mutants(file)) == points
    assert simt_mutate.survivors(file, "cross_entropy", exercise, DEFINES) == []
