"""What the emulator runs is what nvcc compiles: without a warning, to the instructions meant."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import simt_build
import toolchain  # build_backend/toolchain.py
from torch.utils import cpp_extension

BINDINGS = sorted(path.stem for path in simt_build.BINDINGS.glob("*.cpp"))


def _compiled(binding: str, folder: Path, *options: str) -> Path:
    try:
        nvcc = toolchain.find_toolkit(os.environ).home / "bin" / "nvcc"
    except toolchain.BuildError as error:
        pytest.skip(str(error))
    compiled = folder / f"{binding}.out"
    includes = [f"-I{path}" for path in (simt_build.INCLUDE, *simt_build.KERNEL_INCLUDES)]
    source = simt_build.BINDINGS / f"{binding}.cpp"
    command = [
        nvcc,
        "-x",
        "cu",
        "-std=c++20",
        "-arch=sm_80",
        "-Xcompiler=-Wall",
        *cpp_extension.COMMON_NVCC_FLAGS,
        *options,
    ]
    done = subprocess.run(
        [*map(str, command), *includes, "-o", str(compiled), str(source)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return compiled


@pytest.mark.parametrize("binding", BINDINGS)
def test_nvcc_compiles_the_same_kernels(binding, tmp_path):
    """To PTX, not optimised: what follows takes most of the time, and .ci/cuda_static.py looks."""
    assert _compiled(binding, tmp_path, "-ptx", "-Xcicc=-O0").stat().st_size > 0


def test_wrappers_are_the_instructions_they_name(tmp_path):
    cuobjdump = shutil.which("cuobjdump")
    if cuobjdump is None and (triton := importlib.util.find_spec("triton")):
        beside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        cuobjdump = str(beside) if beside.exists() else None
    if cuobjdump is None:
        pytest.skip("cuobjdump is neither on PATH nor in an installed triton")
    command = [cuobjdump, "-sass", str(_compiled("selftest_values", tmp_path, "-cubin"))]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    instructions = set(re.findall(r"\b[A-Z][A-Z0-9]+(?:\.[A-Z0-9_]+)+", sass))
    assert instructions >= {
        "HMMA.16816.F32.BF16",
        "HMMA.16816.F32",
        "HMMA.1688.F32.TF32",
        "LDSM.16.M88.4",
        "LDSM.16.MT88.2",
        "LDGSTS.E",
        "LDGSTS.E.64",
        "LDGSTS.E.BYPASS.128",
        "LDG.E.EF.128",
        "STG.E.EF.128",
        "MUFU.EX2",
    }
