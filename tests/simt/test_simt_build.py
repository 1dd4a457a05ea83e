"""The build: with the headers that torch brings, from the cache, and why where it cannot be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import simt
import simt_build
import toolchain  # build_backend/toolchain.py
import torch

KERNELS = simt.load("cuda_probe")
SOURCE = simt_build.BINDINGS / "cuda_probe.cpp"


@pytest.mark.parametrize("binding", ["cuda_probe", "selftest_values"])
def test_headers_of_torch_suffice(binding):
    folders = [f for f in simt_build.includes_of_packages() if (f / "cuda_fp16.h").exists()]
    if not folders:
        pytest.skip("no package of torch brings CUDA headers")
    flags = [*simt_build.KERNEL, *simt_build.include_flags(folders[0])]
    flags += [f"-I{folder}" for folder in simt_build.KERNEL_INCLUDES]
    source = simt_build.BINDINGS / f"{binding}.cpp"
    command = [simt_build.compiler(), *flags, "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_built_twice():
    library = simt_build.build(SOURCE)
    assert library == KERNELS.path
    assert simt_build.build(SOURCE, ["SOMETHING=1"]) != library


def test_compiler_errors_are_shown(tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("not a program")
    with pytest.raises(simt_build.CompileError, match=r"broken\.cpp:1:1: error"):
        simt_build.build(source)


def test_reason_where_there_are_no_headers(monkeypatch):
    def no_toolkit(environment):
        raise toolchain.BuildError("nvcc is not on PATH")

    monkeypatch.setattr(toolchain, "find_toolkit", no_toolkit)
    monkeypatch.setattr(simt_build, "includes_of_packages", list)
    with pytest.raises(simt_build.Unavailable, match="no CUDA headers: nvcc is not on PATH"):
        simt_build.cuda_include.__wrapped__()


def test_other_processors_are_skipped(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(simt_build, "compiler", simt_build.compiler.__wrapped__)
    with pytest.raises(pytest.skip.Exception, match="x86-64 Linux, this is Linux aarch64"):
        simt.load("cuda_probe")


def test_modules_share_their_stacks(tmp_path):
    """A process may have 65530 regions of memory, and each stack has a guard."""

    def regions():
        return len(Path("/proc/self/maps").read_text().splitlines())

    simt.load("cuda_probe")
    before = regions()
    for i in range(5):
        copy = tmp_path / f"{i}.so"
        copy.write_bytes(simt.load("cuda_probe").path.read_bytes())
        x = torch.arange(7, dtype=torch.uint8)
        y = torch.empty_like(x)
        simt.Module(copy).run("cuda_probe", x, simt.out(y), 7, 1, 32)
        assert torch.equal(x, y)
    assert regions() - before < 200
