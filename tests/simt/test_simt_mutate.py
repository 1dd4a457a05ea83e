"""The mutation runner kills every mutant of a kernel but the one that changes nothing."""

from __future__ import annotations

import numpy as np
import simt
import simt_mutate

KERNEL = "selftest_mutants.cuh"
KERNELS = simt.load("selftest_mutants")


def _check(module: simt.Module, blocks: int = 3, stages: int = 3) -> None:
    x = np.random.default_rng(0).integers(0, 100, (blocks, stages, 256)).astype(np.float32)
    partial, arrived, total = np.empty(blocks, "f4"), np.zeros(1, "i4"), np.zeros(1, "f4")
    out = (simt.out(partial), simt.inout(arrived), simt.inout(total))
    module.run("sum", x, *out, blocks, stages, seed=1)
    assert total[0] == x.sum()


def test_mutants_are_the_synchronisation_points():
    deleted = [mutant.deleted for mutant in simt_mutate.mutants([KERNEL])]
    assert deleted == [
        "cp_async_commit();",
        "cp_async_commit();",
        "cp_async_wait<1>();",
        "__syncthreads();",
        "__syncthreads();",
        "__syncwarp();",
        "__syncthreads_or(",
        "__threadfence();",
        "__threadfence();",
        "__syncwarp();",
    ]


def test_every_mutant_dies_but_the_redundant_one():
    _check(KERNELS)
    alive = simt_mutate.survivors([KERNEL], "selftest_mutants", _check)
    assert alive == simt_mutate.mutants([KERNEL])[-1:]
