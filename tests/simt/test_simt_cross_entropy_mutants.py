"""The CUDA kernels of cross_entropy need every one of their barriers."""

from collections import Counter

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


def test_every_mutant_dies():
    counts = {"group": 6, "sums": 5, "staged": 3}
    files = [f"cuda/cross_entropy_{name}.cuh" for name in counts]
    assert Counter(mutant.file for mutant in simt_mutate.mutants(files)) == dict(
        zip(files, counts.values(), strict=True)
    )
    assert simt_mutate.survivors(files, "cross_entropy", exercise, DEFINES) == []
