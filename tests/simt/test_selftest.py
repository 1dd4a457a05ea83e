"""The emulator's own tests: each kind of mistake is found at its line, its clean twin is silent."""

from __future__ import annotations

import re

import numpy as np
import pytest
import simt
import simt_build

KERNELS = simt.load("selftest")
SOURCE = simt_build.BINDINGS / "selftest.cpp"


def _planted() -> dict[str, set[tuple[str, int]]]:
    """For each kernel of the source, the kinds and lines that its comments promise.

    A kernel's comments stand before its SELFTEST; one without any shares those of the kernel before
    it, whose device function it calls too.
    """
    promised: dict[str, set[tuple[str, int]]] = {}
    found: set[tuple[str, int]] = set()
    latest = found
    for number, line in enumerate(SOURCE.read_text().splitlines(), start=1):
        if mark := re.search(r"// finds: (.+)$", line):
            found |= {(kind, number) for kind in mark.group(1).split(", ")}
        elif case := re.match(r"SELFTEST\((\w+),", line):
            latest = promised[case.group(1)] = found or latest
            found = set()
    return promised


PLANTED = _planted()


def _run(name: str, planted: bool, **options: int) -> np.ndarray:
    x = np.arange(256, dtype=np.float32)
    y = np.zeros(256, dtype=np.float32)
    KERNELS.run(name, x, simt.inout(y), 5, planted, limit=100_000, **options)
    return y


@pytest.mark.parametrize("preempt", [0, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_is_found_and_its_twin_is_silent(name, seed, preempt):
    _run(name, planted=False, seed=seed, preempt=preempt)
    with pytest.raises(simt.Error) as error:
        _run(name, planted=True, seed=seed, preempt=preempt)
    found = {(report.kind, report.line) for report in error.value.reports}
    assert found & PLANTED[name], f"{error.value}\nis not what is planted: {PLANTED[name]}"
    assert {report.file for report in error.value.reports} == {SOURCE.name}
