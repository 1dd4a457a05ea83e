"""Mutation runner: without any one of its synchronisation points, a kernel must fail its tests.

From a test, with a check that runs the kernels of a module::

    assert simt_mutate.survivors(["cuda/cross_entropy.cuh"], "cross_entropy", check) == []

From the command line, with the tests themselves::

    PYTHONPATH=tests/simt:build_backend python -m simt_mutate cuda/cross_entropy.cuh \\
        tests/simt/test_simt_cross_entropy.py -k small

Each point is made to ask the emulator whether it is left out, so that all mutants of some files are
built at once.
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

UNLESS = "{{ if (!simt::is_left_out({})) {} }}"
VOTE = "(simt::is_left_out({{}}) ? simt::without_vote : simt::with_vote<simt::Vote::{}>)("

# What is a point, and what asks before it, of its number and of its text.
SYNCHRONISATION = tuple(
    (re.compile(pattern), asking)
    for pattern, asking in (
        (r"\b__syncthreads\(\);", UNLESS),
        (r"\b__syncthreads_and\(", VOTE.format("kAnd")),
        (r"\b__syncthreads_or\(", VOTE.format("kOr")),
        (r"\b__syncthreads_count\(", VOTE.format("kCount")),
        (r"\b__syncwarp\([^()]*\);", UNLESS),
        (r"\b__threadfence\(\);", UNLESS),
        (r"\bcp_async_wait<[^<>;]+>\(\);", UNLESS),
        (r"\bcp_async_commit\(\);", UNLESS),
    )
)


@dataclass(frozen=True)
class Mutant:
    file: str  # as kernel files include it, e.g. "cuda/cross_entropy.cuh"
    line: int
    deleted: str
    number: int  # of the files that are built together, from 1 on

    def __str__(self) -> str:
        return f"{self.file}:{self.line} without {self.deleted}"


def mutants(files: Sequence[str]) -> list[Mutant]:
    """One for each synchronisation point of kernel files, in the order of files and lines."""
    return [mutant for mutant, *_ in _points(files)]


def survivors(
    files: Sequence[str],
    binding: str,
    check: Callable[[simt.Module], object],
    defines: Sequence[str] = (),
) -> list[Mutant]:
    """Mutants of kernel files that a check does not notice.

    Args:
        files: the kernel files as they are included, e.g. ``["cuda/cross_entropy.cuh"]``.
        binding: the binding whose kernels include them.
        check: runs kernels of the module and compares; simt.Error and AssertionError kill a mutant.
            It must pass where nothing is left out.
        defines: macros for the build.
    """
    source = simt_build.BINDINGS / f"{binding}.cpp"
    with _overlay(files) as folder:
        module = simt.Module(simt_build.build(source, defines, folder))
    check(module)
    return [mutant for mutant in mutants(files) if _survives(mutant, module, check)]


def _survives(mutant: Mutant, module: simt.Module, check: Callable[[simt.Module], object]) -> bool:
    module.left_out = mutant.number
    try:
        check(module)
    except AssertionError:  # of which simt.Error is one
        return False
    return True


def _points(files: Sequence[str]) -> list[tuple[Mutant, int, int, str]]:
    """Each with where its text begins and ends, and what asks."""
    points: list[tuple[Mutant, int, int, str]] = []
    for file in files:
        text = _find(file).read_text(encoding="utf-8")
        code = re.sub(r"//[^\n]*", lambda comment: " " * len(comment.group()), text)
        places = [
            (*point.span(), point.group(), asking)
            for pattern, asking in SYNCHRONISATION
            for point in pattern.finditer(code)
        ]
        for start, end, deleted, asking in sorted(places):
            line = code.count("\n", 0, start) + 1
            points.append((Mutant(file, line, deleted, len(points) + 1), start, end, asking))
    return points


def _find(file: str) -> Path:
    return next(folder / file for folder in simt_build.KERNEL_INCLUDES if (folder / file).exists())


@contextmanager
def _overlay(files: Sequence[str]) -> Iterator[Path]:
    """A folder that stands before the kernels' own and holds the files, the points of which ask."""
    texts = {file: _find(file).read_text(encoding="utf-8") for file in files}
    for mutant, start, end, asking in reversed(_points(files)):
        text = texts[mutant.file]
        asked = asking.format(mutant.number, text[start:end])
        texts[mutant.file] = text[:start] + asked + text[end:]
    with tempfile.TemporaryDirectory() as folder:
        for file, text in texts.items():
            path = Path(folder) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
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
    with _overlay([file]) as folder:
        for mutant in mutants([file]):
            asked = {simt_build.OVERLAY: str(folder), simt.LEFT_OUT: str(mutant.number)}
            environment = {**os.environ, **asked}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode not in (0, 1):  # 1: tests failed; others: there was nothing to run
                print(done.stdout + done.stderr)
                return 1
            alive += done.returncode == 0
            print(f"{'ALIVE ' if done.returncode == 0 else 'killed'} {mutant}", flush=True)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
