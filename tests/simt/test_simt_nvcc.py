"""What the emulator takes for an instruction is one: nvcc compiles the wrappers to those meant.

The kernels themselves are compiled by the build, and looked at by .ci/cuda_static.py.
"""

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


def test_wrappers_are_the_instructions_they_name(tmp_path):
    try:
        nvcc = toolchain.find_toolkit(os.environ).home / "bin" / "nvcc"
    except toolchain.BuildError as error:
        pytest.skip(str(error))
    cuobjdump = shutil.which("cuobjdump")
    if cuobjdump is None and (triton := importlib.util.find_spec("triton")):
        beside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        cuobjdump = str(beside) if beside.exists() else None
    if cuobjdump is None:
        pytest.skip("cuobjdump is neither on PATH nor in an installed triton")
    compiled = tmp_path / "selftest_values.cubin"
    options = ["-x", "cu", "-std=c++20", "-arch=sm_80", "-Xcompiler=-Wall", "-cubin"]
    includes = [f"-I{path}" for path in (simt_build.INCLUDE, *simt_build.KERNEL_INCLUDES)]
    files = ["-o", compiled, simt_build.BINDINGS / "selftest_values.cpp"]
    done = subprocess.run(
        [nvcc, *options, *cpp_extension.COMMON_NVCC_FLAGS, *includes, *files],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    sass = subprocess.run(
        [cuobjdump, "-sass", compiled], capture_output=True, text=True, check=True
    ).stdout
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
