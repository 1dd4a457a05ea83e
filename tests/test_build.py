"""The build: what the library links to, equal source lists, and the CUDA decision."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toolchain  # build_backend/toolchain.py
import torch

import imgfast
from imgfast import _C, info

ROOT = toolchain.ROOT
LIBRARY = Path(_C.__file__)


def _tool(name: str) -> str | None:
    """A program on PATH or in the environment that runs the tests."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside or shutil.which(name)


def _output(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True
    )
    return done.stdout + done.stderr


# --- the library --------------------------------------------------------------------------------


@pytest.mark.skipif(_tool("nm") is None, reason="nm (binutils) is not installed")
def test_library_needs_the_stable_abi_only():
    undefined = _output("nm", "-D", "--undefined-only", LIBRARY).split()
    # _ZN2at and _ZNK2at are at::, _ZN3c10 and _ZNK3c10 are c10::
    unstable = [name for name in undefined if re.match(r"_ZN?K?(2at|3c10)", name)]
    unstable += [name for name in undefined if re.match(r"_Z\w*(N2at|N3c10|N5torch)", name)]
    assert "aoti_torch_library_init_def" in undefined, "the operators are defined by this library"
    assert unstable == []


@pytest.mark.skipif(_tool("readelf") is None, reason="readelf (binutils) is not installed")
def test_library_links_to_what_it_uses_only():
    needed = set(re.findall(r"NEEDED.*\[(lib[\w+]+)\.so", _output("readelf", "-d", LIBRARY)))
    torch_libraries = {name for name in needed if name.startswith(("libtorch", "libc10"))}
    cuda = {"libtorch_cuda"} if _C.build_info()["cuda"] else set()
    assert torch_libraries == {"libtorch_cpu"} | cuda
    assert "libpython" not in " ".join(needed)


def test_build_info_tells_what_was_built():
    build = _C.build_info()
    assert build["version"] == toolchain.project_version() == imgfast.__version__
    assert toolchain.torch_is_new_enough(build["torch"])
    assert build["compiler"].split()[0] in ("gcc", "clang")
    assert "-std=c++20" in build["cxx_flags"]
    assert "march" not in build["cxx_flags"], "one binary for every processor"
    assert build["cuda_reason"]
    assert bool(build["cuda_version"]) == bool(build["cuda_arch_list"]) == build["cuda"]


@pytest.mark.skipif(
    "libasan" not in os.environ.get("LD_PRELOAD", ""), reason="only `make sanitize` runs so"
)
def test_sanitized_run_tests_the_sanitized_library():
    assert _C.build_info()["sanitize"] == "address,undefined"


def test_info_collects_the_same_facts():
    facts = info.collect()
    build = _C.build_info()
    assert facts["torch"] == torch.__version__
    assert facts["isa"] in facts["isas"]
    assert facts["isas"][-1] == "generic"
    assert (facts["cuda_built"], facts["cuda_reason"]) == (build["cuda"], build["cuda_reason"])
    assert facts["cuda_available"] == torch.cuda.is_available()


def test_cuda_kernels_are_registered_where_cuda_was_built():
    registered = torch._C._dispatch_has_kernel_for_dispatch_key("imgfast::cuda_probe", "CUDA")
    assert registered == _C.build_info()["cuda"]


@pytest.mark.skipif(not _C.build_info()["cuda"], reason="built without CUDA kernels")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1 << 21])  # a block's edges; many rounds
def test_cuda_probe_copies_exactly(size):
    x = torch.randn(size, dtype=torch.float64, device="cuda")
    copy = torch.ops.imgfast.cuda_probe(x)
    assert copy.data_ptr() != x.data_ptr() or size == 0
    assert torch.equal(copy, x)


# --- sources ------------------------------------------------------------------------------------


@pytest.mark.skipif(_tool("cmake") is None, reason="cmake is not installed")
def test_setup_and_cmake_compile_the_same_sources():
    listed = _output(_tool("cmake"), "-P", ROOT / "CMakeLists.txt").split()
    assert sorted(listed) == toolchain.sources(with_cuda=True)


def test_sources_are_the_files_of_csrc():
    found = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix == ".cpp"}
    assert set(toolchain.sources(with_cuda=False)) == found
    cuda = set(toolchain.sources(with_cuda=True)) - found
    assert cuda == {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cu")}


def test_requirements_are_those_of_pyproject():
    requirements = toolchain.build_requirements()
    assert [re.split(r"[<>=]", r)[0] for r in requirements] == [
        "setuptools",
        "pybind11",
        "ninja",
        "torch",
    ]
    assert toolchain.torch_is_new_enough("2.12.0")
    assert toolchain.torch_is_new_enough("2.14.1+cu130")
    assert toolchain.torch_is_new_enough("3.0")
    assert not toolchain.torch_is_new_enough("2.9.1")


# --- the CUDA decision --------------------------------------------------------------------------

ARCHS = ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0))
TOOLKIT = toolchain.Toolkit(Path("/opt/cuda"), Path("/opt/cuda/include"), "13.0", ARCHS)


def _decide(torch_cuda="13.0", gpus=(), toolkit=TOOLKIT, **env):
    def find(_env):
        if toolkit is None:
            raise toolchain.BuildError("nvcc is not on PATH")
        return toolkit

    return toolchain.decide_cuda("2.14.1", torch_cuda, gpus, env, find)


@pytest.mark.parametrize(
    ("case", "built", "reason"),
    [
        ({}, True, "nvcc 13.0 in /opt/cuda"),
        ({"torch_cuda": "13.2"}, True, "nvcc 13.0"),  # one major version: compatible
        ({"torch_cuda": None}, False, "torch 2.14.1 is a build without CUDA"),
        ({"torch_cuda": "12.8"}, False, "the major versions must be equal"),
        ({"toolkit": None}, False, "nvcc is not on PATH"),
        ({"IMGFAST_CUDA": "0"}, False, "IMGFAST_CUDA=0"),
        ({"IMGFAST_CUDA": "1"}, True, "nvcc 13.0"),
    ],
)
def test_cuda_decision(case, built, reason):
    decision = _decide(**case)
    assert decision.build == built
    assert reason in decision.reason
    assert reason in str(decision)


@pytest.mark.parametrize("case", [{"torch_cuda": None}, {"toolkit": None}, {"torch_cuda": "12.8"}])
def test_cuda_asked_for_and_absent_is_an_error(case):
    reason = _decide(**case).reason
    with pytest.raises(
        toolchain.BuildError, match=r"IMGFAST_CUDA=1, but CUDA cannot be built"
    ) as e:
        _decide(**case, IMGFAST_CUDA="1")
    assert reason in str(e.value)


def test_cuda_request_must_be_0_or_1():
    with pytest.raises(toolchain.BuildError, match="IMGFAST_CUDA must be 0 or 1, got 'yes'"):
        _decide(IMGFAST_CUDA="yes")


@pytest.mark.parametrize(
    ("gpus", "asked", "expected"),
    [
        ((), "", "8.0;8.6;9.0;10.0;12.0+PTX"),
        ((), "native", "8.0;8.6;9.0;10.0;12.0+PTX"),
        (((9, 0), (8, 0), (9, 0)), "", "8.0;9.0+PTX"),  # what is visible, once each
        (((13, 0),), "", "12.0+PTX"),  # newer than nvcc: its newest PTX
        (((9, 0),), "7.5 8.6+PTX", "7.5 8.6+PTX"),  # the user's list is left as it is
    ],
)
def test_cuda_arch_list(gpus, asked, expected):
    assert _decide(gpus=gpus, TORCH_CUDA_ARCH_LIST=asked).arch_list == expected


def test_default_archs_are_kept_to_what_nvcc_knows():
    old = toolchain.Toolkit(TOOLKIT.home, TOOLKIT.include, "13.0", ((8, 0), (8, 6), (9, 0)))
    assert _decide(toolkit=old).arch_list == "8.0;8.6;9.0+PTX"


# --- finding the toolkit --------------------------------------------------------------------------


def _fake_nvcc(path: Path, top: Path) -> None:
    """An nvcc that answers what find_toolkit asks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f'-dryrun) echo "#\\$ TOP={top}/bin/.." >&2;;\n'
        '--version) echo "Cuda compilation tools, release 13.1, V13.1.2";;\n'
        '--list-gpu-arch) printf "compute_80\\ncompute_120\\n";;\n'
        "esac\n"
    )
    path.chmod(0o755)


@pytest.fixture
def toolkit(tmp_path):
    """A toolkit as it should be, in a folder with a space."""
    top = tmp_path / "my cuda"
    _fake_nvcc(top / "bin" / "nvcc", top)
    (top / "include").mkdir()
    (top / "include" / "cuda_runtime.h").touch()
    return top


def test_toolkit_is_found_behind_a_wrapper_script(toolkit, tmp_path):
    _fake_nvcc(tmp_path / "usr" / "bin" / "nvcc", toolkit)
    found = toolchain.find_toolkit({"PATH": f"{tmp_path}/usr/bin:/usr/bin:/bin"})
    assert found.home == toolkit
    assert found.include == toolkit / "include"
    assert (found.version, found.archs) == ("13.1", ((8, 0), (12, 0)))


def test_cuda_home_comes_before_path(toolkit, tmp_path):
    _fake_nvcc(tmp_path / "usr" / "bin" / "nvcc", tmp_path / "elsewhere")
    env = {"CUDA_HOME": str(toolkit), "PATH": f"{tmp_path}/usr/bin"}
    assert toolchain.find_toolkit(env).home == toolkit


def test_toolkit_without_headers_is_no_toolkit(toolkit):
    (toolkit / "include" / "cuda_runtime.h").unlink()
    if Path("/usr/include/cuda_runtime.h").exists():
        pytest.skip("this machine has CUDA's headers in /usr/include")
    with pytest.raises(toolchain.BuildError, match=r"has no cuda_runtime\.h"):
        toolchain.find_toolkit({"CUDA_HOME": str(toolkit)})


def test_no_toolkit_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(toolchain.BuildError, match="nvcc is not on PATH and CUDA_HOME is not set"):
        toolchain.find_toolkit({"PATH": str(tmp_path)})
    with pytest.raises(toolchain.BuildError, match="there is no bin/nvcc in CUDA_HOME="):
        toolchain.find_toolkit({"CUDA_HOME": str(tmp_path)})


# --- jobs and flags -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "cores", "gigabytes", "expected"),
    [
        ({}, 8, 64, 8),
        ({}, 8, 6, 3),  # two gigabytes a compiler
        ({}, 8, 1, 1),
        ({}, 8, None, 8),  # memory unknown
        ({"MAX_JOBS": "5"}, 2, 1, 5),
        ({"MAX_JOBS": ""}, 2, 64, 2),
    ],
)
def test_jobs_fit_cores_and_memory(env, cores, gigabytes, expected):
    available = None if gigabytes is None else gigabytes << 30
    assert toolchain.max_jobs(env, cores, available) == expected


@pytest.mark.parametrize(
    ("archs", "expected"),
    [
        (
            "8.0;8.6;9.0;10.0;12.0+PTX",
            ["80,code=[sm_80,sm_86,sm_90,sm_100]", "120,code=[sm_120,compute_120]"],
        ),
        ("9.0 8.6", ["86,code=[sm_86,sm_90]"]),  # as torch reads it, in any order
        ("10.0+PTX", ["100,code=[sm_100,compute_100]"]),
        ("9.0a;10.0", []),  # torch's, which takes its own list if no flag contains "arch"
        ("Hopper", []),
    ],
)
def test_ptx_is_made_once_for_several_architectures(archs, expected):
    flags = toolchain.nvcc_flags(_decide(TORCH_CUDA_ARCH_LIST=archs))
    found = [flag for flag in flags if "arch" in flag]
    assert found == [f"-gencode=arch=compute_{arch}" for arch in expected]
    assert not any("arch" in flag for flag in toolchain.definitions(_decide()))


def test_config_header_is_rewritten_only_when_it_changes(tmp_path):
    header = tmp_path / "generated" / "config.h"
    text = toolchain.config_header("0.1.0", "2.14.1", _decide())
    assert '#define IMGFAST_CUDA_ARCH_LIST "8.0;8.6;9.0;10.0;12.0+PTX"' in text
    toolchain.write_if_changed(header, text)
    before = header.stat().st_mtime_ns
    toolchain.write_if_changed(header, text)
    assert header.stat().st_mtime_ns == before
    toolchain.write_if_changed(header, text + "\n")
    assert header.read_text() == text + "\n"
