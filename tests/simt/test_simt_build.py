"""Building: with the headers that torch brings, from the cache, and the reason where it cannot be."""

from __future__ import annotations

import pytest
import simt
import simt_build
import toolchain  # build_backend/toolchain.py
import torch

KERNELS = simt.load("cuda_probe")
SOURCE = simt_build.BINDINGS / "cuda_probe.cpp"


def test_headers_of_torch_suffice(monkeypatch):
    folders = [f for f in simt_build.includes_of_packages() if (f / "cuda_fp16.h").exists()]
    if not folders:
        pytest.skip("no package of torch brings CUDA headers")
    monkeypatch.setattr(simt_build, "cuda_include", lambda: folders[0])
    module = simt.load("selftest_values")
    x, y = torch.arange(32).half(), torch.empty(32, dtype=torch.float16)
    module.run("shuffle_half", x, simt.out(y), 1, 5, 32)
    assert torch.equal(y, x[torch.arange(32) ^ 5])


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
