"""Every instruction set of this machine, forced one by one, through the operators' tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgfast import _C

SUBSETS = {
    "test_conv_relu_pool.py": "map_sizes or layouts_and_dtypes or activations or windows or groups"
    " or (few_channels and channels_last) or few_filters or depthwise",
    "test_conv_relu_pool_winograd.py": "map_sizes or channels_and_filters or codes",
    "test_conv_relu_pool_autograd.py": "gradcheck",
    "test_upsample_conv_relu.py": "values or dtypes",
    "test_causal_attention.py": "values or scales",
    "test_feed_forward.py": "values",
    "test_muon.py": "values",
    "test_nearest_code.py": "nearest",
    "test_neighbour_mix.py": "values",
    "test_linear_cross_entropy.py": "sizes or options or special",
    "test_cross_entropy_extras.py": "parts or lam_at or infinite_logits or test_correct",
    "test_cross_entropy.py": "counts or layouts or special or blocks or rising or float16",
}


def run(isa, *command):
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"IMGFAST_ISA": isa},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
def test_the_forced_one_runs(isa):
    result = run(isa, "-c", "import imgfast; print(imgfast._C.cpu_isa())")
    if isa in _C.cpu_isas():
        assert result.stdout.strip() == isa
    else:
        assert "does not support it" in result.stderr


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
def test_forced(isa, request):
    if isa not in _C.cpu_isas():
        pytest.skip(f"this processor or system has no {isa}")
    if isa == _C.cpu_isa():
        pytest.skip(f"{isa} is what the other tests run on")
    one_in = request.config.getoption("one_in")
    if isa == "generic":  # the slowest, and of the same source
        one_in *= 10
    chosen = " or ".join(f"({file} and ({tests}))" for file, tests in SUBSETS.items())
    options = ["-x", "-m", "not simt and not cuda", "-k", chosen]
    result = run(isa, "-m", "pytest", *options, f"--one-in={one_in}", *SUBSETS)
    assert result.returncode == 0, result.stdout[-4000:]
    for file in SUBSETS:
        assert f"{file} " in result.stdout, f"none of {file}"


def test_unknown_name_is_an_error():
    result = run("mmx", "-c", "import imgfast; imgfast._C.cpu_isa()")
    assert "IMGFAST_ISA must be avx512, avx2 or generic, got mmx" in result.stderr
