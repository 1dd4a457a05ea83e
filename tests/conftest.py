"""Says at the top of every run which build of imgfast is tested."""

import os

import toolchain  # build_backend/toolchain.py

# Stock's bfloat16 convolution gradients crash on processors with AMX (torch 2.14.1: SIGILL at
# tilezero for 4 -> 16 channels, 5x5, stride 3). oneDNN reads this when it is loaded.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

# Processes that share the tests share the cores, too: before torch is loaded.
if (processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, toolchain.usable_cores() // processes)))

# Inductor's pool of compilers would be processes that import torch, for a handful of kernels.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest

import imgfast
from imgfast import _C, info


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """The tests, and the processes they start, leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMGFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_report_header() -> str:
    facts = info.collect()
    return (
        f"imgfast {facts['imgfast']} in {imgfast.__path__[0]}: torch {facts['torch']}, "
        f"ISA {facts['isa']}, {facts['threads']} threads, "
        f"CUDA kernels: {'yes' if facts['cuda_built'] else 'no'} ({facts['cuda_reason']}), "
        f"sanitizers: {_C.build_info()['sanitize'] or 'none'}"
    )
