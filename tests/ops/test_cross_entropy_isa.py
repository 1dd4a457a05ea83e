"""Every instruction set of this machine, forced one by one, through the values of cross_entropy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgfast import _C

SUBSET = "counts or layouts or special or blocks or first_block or rising or bfloat16 or float16"


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
def test_forced(isa):
    if isa not in _C.cpu_isas():
        pytest.skip(f"this processor or system has no {isa}")
    if isa == _C.cpu_isa():
        pytest.skip(f"{isa} is what the other tests run on")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-k", SUBSET, "test_cross_entropy.py"],
        env=os.environ | {"IMGFAST_ISA": isa, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:]
