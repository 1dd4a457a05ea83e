"""Every instruction set of this machine, forced one by one, through the operators' tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgfast import _C

SUBSET = "map_sizes or layouts_and_dtypes or activations or windows or gradcheck"


def run(isa, *command):
    environment = os.environ | {"IMGFAST_ISA": isa}
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
def test_forced(isa):
    if isa not in _C.cpu_isas():
        pytest.skip(f"this processor or system has no {isa}")
    if os.environ.get("IMGFAST_ISA"):
        pytest.skip("an instruction set is forced from outside")
    seen = run(isa, "-c", "import imgfast; print(imgfast._C.cpu_isa())")
    assert seen.stdout.strip() == isa
    result = run(isa, "-m", "pytest", "-q", "-x", "-k", SUBSET, "ops")
    assert result.returncode == 0, result.stdout[-4000:]


def test_unknown_name_is_an_error():
    result = run("mmx", "-c", "import imgfast; imgfast._C.cpu_isa()")
    assert "IMGFAST_ISA must be avx512, avx2 or generic, got mmx" in result.stderr
