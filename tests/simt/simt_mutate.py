"""Mutation runner: without any one of its synchronisation points, a kernel must fail its tests.

From a test, with a check that runs the kernels of a module::

    assert simt_mutate.survivors("cuda/cross_entropy.cuh", "cross_entropy", check) == []

From the command line, with the tests themselves; every mutant is built again, so name few of them::

    PYTHONPATH=tests/simt:build_backend python -m simt_mutate cuda/cross_entropy.cuh \\
        tests/simt/test_simt_cross_entropy.py -k small
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import simt
import simt_build

# What is deleted, and what is left in its place: a barrier that votes leaves its operand.
SYNCHRONISATION = (
    (re.compile(r"\b__syncthreads\(\);"), ";"),
    (re.compile(r"\b__syncthreads_(?:and|or|count)\("), "static_cast<int>("),
    (re.compile(r"\b__syncwarp\([^()]*\);"), ";"),
    (re.compile(r"\b__threadfence\(\);"), ";"),
    (re.compile(r"\bcp_async_wait<[^<>;]+>\(\);"), ";"),
    (re.compile(r"\bcp_async_commit\(\);"), ";"),
)


@dataclass(frozen=True)
class Mutant:
    file: str  # as kernel files include it, e.g. "cuda/cross_entropy.cuh"
    line: int
    deleted: str
    text: str  # the whole file without it

    def __str__(self) -> str:
        return f"{self.file}:{self.line} without {self.deleted}"


def mutants(file: str) -> list[Mutant]:
    """One for each synchronisation point of a kernel file, in the order of its lines."""
    text = _find(file).read_text(encoding="utf-8")
    code = re.sub(r"//[^\n]*", lambda comment: " " * len(comment.group()), text)
    found = []
    for pattern, left in SYNCHRONISATION:
        for point in pattern.finditer(code):
            mutated = text[: point.start()] + left + text[point.end() :]
            line = code.count("\n", 0, point.start()) + 1
            found.append(Mutant(file, line, point.group(), mutated))
    return sorted(found, key=lambda mutant: mutant.line)


def survivors(
    file: str,
    binding: str,
    check: Callable[[simt.Module], object],
    defines: Sequence[str] = (),
) -> list[Mutant]:
    """Mutants of a kernel file that a check does not notice.

    Args:
        file: the kernel file as it is included, e.g. ``"cuda/cross_entropy.cuh"``.
        binding: the binding whose kernels include it.
        check: runs kernels of the module and compares; simt.Error and AssertionError kill a mutant.
        defines: macros for the build.
    """
    source = simt_build.BINDINGS / f"{binding}.cpp"
    alive = []
    for mutant in mutants(file):
        with _overlay(mutant) as folder:
            module = simt.Module(simt_build.build(source, defines, folder))
            try:
                check(module)
            except AssertionError:  # of which simt.Error is one
                continue
        alive.append(mutant)
    return alive


def _find(file: str) -> Path:
    return next(folder / file for folder in simt_build.KERNEL_INCLUDES if (folder / file).exists())


@contextmanager
def _overlay(mutant: Mutant) -> Iterator[Path]:
    """A folder that stands before the kernels' own and holds the mutant alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / mutant.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mutant.text, encoding="utf-8")
        yield Path(folder)


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    file, *pytest_arguments = arguments
    command = [sys.executable, "-m", "pytest", "-q", "-x", *pytest_arguments]
    if subprocess.run(command).returncode != 0:
        print("the tests must pass before anything is deleted")
        return 1
    alive = 0
    for mutant in mutants(file):
        with _overlay(mutant) as folder:
            environment = {**os.environ, simt_build.OVERLAY: str(folder)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: tests failed; others: there was nothing to run
            print(done.stdout + done.stderr)
            return 1
        alive += done.returncode == 0
        print(f"{'ALIVE ' if done.returncode == 0 else 'killed'} {mutant}", flush=True)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
