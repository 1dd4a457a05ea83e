"""What is compiled and how: sources, flags, the CUDA decision, the number of jobs.

``setup.py``, ``CMakeLists.txt`` and the tests all ask here. Nothing but the standard library is
imported, so that the CUDA decision can be tested with made-up environments.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# LibTorch stable ABI that the sources are written for; the binary runs on this torch and later.
TORCH_TARGET_VERSION = "0x020c000000000000"  # 2.12

# No GPU and no TORCH_CUDA_ARCH_LIST: A100, RTX 30, H100, B200, RTX 50, and PTX for what follows.
DEFAULT_ARCHS = ((8, 0), (8, 6), (9, 0), (10, 0), (12, 0))

BYTES_PER_JOB = 2 << 30  # a compiler at work on a translation unit full of templates


class BuildError(RuntimeError):
    """What was asked of the build cannot be done here; the message names the remedy."""


# --- sources and versions -----------------------------------------------------------------------


def sources(with_cuda: bool) -> list[str]:
    """Paths relative to the repository's root, sorted."""
    patterns = ["csrc/*.cpp", "csrc/cpu/*.cpp"] + (["csrc/cuda/*.cu"] if with_cuda else [])
    found = [path for pattern in patterns for path in glob.glob(pattern, root_dir=ROOT)]
    return sorted(path.replace(os.sep, "/") for path in found)


def _pyproject(pattern: str) -> str:
    """What the pattern's group finds in pyproject.toml; Python 3.10 has no reader for it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(pattern, text, re.MULTILINE).group(1)


def project_version() -> str:
    return _pyproject(r'^version = "(.+)"$')


def torch_requirement() -> str:
    """The requirement on torch, e.g. ``torch>=2.12``."""
    return _pyproject(r'"(torch>=[\d.]+)"')


def build_requirements() -> list[str]:
    """What must be installed for a build without isolation, torch included."""
    return [*json.loads(_pyproject(r"^requires = (\[.*\])$")), torch_requirement()]


def torch_is_new_enough(version: str) -> bool:
    minimum = torch_requirement().removeprefix("torch>=")
    return _numbers(version)[:2] >= _numbers(minimum)[:2]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0]))


# --- CUDA ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toolkit:
    home: Path  # holds bin/nvcc
    include: Path  # holds cuda_runtime.h
    version: str  # "13.0"
    archs: tuple[tuple[int, int], ...]  # compute capabilities that this nvcc can compile for


@dataclass(frozen=True)
class CudaDecision:
    build: bool
    reason: str
    toolkit: Toolkit | None = None
    arch_list: str = ""  # in the form of TORCH_CUDA_ARCH_LIST

    def __str__(self) -> str:
        archs = f"; for {self.arch_list}" if self.build else ""
        return f"CUDA kernels: {'yes' if self.build else 'no'} ({self.reason}{archs})"


def find_toolkit(env: Mapping[str, str]) -> Toolkit:
    """The toolkit that CUDA_HOME, CUDA_PATH or PATH leads to; raises BuildError if none is whole.

    nvcc may be a wrapper script far from its toolkit, so its own dry run tells where that is.
    """
    home = env.get("CUDA_HOME") or env.get("CUDA_PATH")
    if home:
        nvcc = shutil.which("nvcc", path=os.path.join(home, "bin"))
        missing = f"there is no bin/nvcc in CUDA_HOME={home}"
    else:
        nvcc = shutil.which("nvcc", path=env.get("PATH", ""))
        missing = "nvcc is not on PATH and CUDA_HOME is not set"
        if os.path.exists("/usr/local/cuda/bin/nvcc"):
            missing += "; CUDA_HOME=/usr/local/cuda would use the toolkit there"
    if nvcc is None:
        raise BuildError(missing)

    dry_run = _run([nvcc, "-dryrun", "-E", "-x", "cu", os.devnull])
    top = re.search(r"^#\$ TOP=(.+)$", dry_run, re.MULTILINE)
    top = Path(os.path.normpath(top.group(1).strip())) if top else Path(nvcc).resolve().parents[1]
    if not (top / "bin" / "nvcc").exists():
        raise BuildError(f"{nvcc} belongs to the toolkit {top}, which has no bin/nvcc")

    includes = [Path(os.path.normpath(p)) for p in re.findall(r'"-I([^"]+)"', dry_run)]
    includes += [top / "include", Path("/usr/include")]
    include = next((p for p in includes if (p / "cuda_runtime.h").exists()), None)
    if include is None:
        raise BuildError(f"the toolkit of {nvcc} ({top}) has no cuda_runtime.h")

    release = re.search(r"release (\d+\.\d+)", _run([nvcc, "--version"]))
    archs = re.findall(r"compute_(\d+)(\d)\b", _run([nvcc, "--list-gpu-arch"]))
    return Toolkit(
        home=top,
        include=include,
        version=release.group(1) if release else "",
        archs=tuple(sorted((int(major), int(minor)) for major, minor in archs)),
    )


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def decide_cuda(
    torch_version: str,
    torch_cuda: str | None,
    gpus: Sequence[tuple[int, int]],
    env: Mapping[str, str],
    find: Callable[[Mapping[str, str]], Toolkit] = find_toolkit,
) -> CudaDecision:
    """CUDA is built when torch is a CUDA build and a toolkit of the same major version is found.

    Args:
        torch_version: version of the torch that is built against.
        torch_cuda: its ``torch.version.cuda``, None for a CPU-only build.
        gpus: compute capabilities of the visible GPUs; none is needed to build.
        env: ``IMGFAST_CUDA=0`` leaves CUDA out, ``1`` makes its absence an error.
        find: finds the toolkit or raises BuildError with the reason.
    """
    request = env.get("IMGFAST_CUDA", "")
    if request not in ("", "0", "1"):
        raise BuildError(f"IMGFAST_CUDA must be 0 or 1, got {request!r}")
    if request == "0":
        return CudaDecision(False, "IMGFAST_CUDA=0")
    try:
        if torch_cuda is None:
            raise BuildError(f"torch {torch_version} is a build without CUDA")
        toolkit = find(env)
        if _numbers(toolkit.version)[:1] != _numbers(torch_cuda)[:1]:
            raise BuildError(
                f"torch {torch_version} is built with CUDA {torch_cuda}, the toolkit in "
                f"{toolkit.home} is {toolkit.version}: the major versions must be equal"
            )
    except BuildError as error:
        if request == "1":
            raise BuildError(f"IMGFAST_CUDA=1, but CUDA cannot be built: {error}") from None
        return CudaDecision(False, str(error))
    return CudaDecision(
        True,
        f"torch {torch_version}, nvcc {toolkit.version} in {toolkit.home}",
        toolkit,
        cuda_arch_list(toolkit, gpus, env),
    )


def cuda_arch_list(
    toolkit: Toolkit, gpus: Sequence[tuple[int, int]], env: Mapping[str, str]
) -> str:
    """The user's list, or the visible GPUs, or DEFAULT_ARCHS; the last one with PTX."""
    asked = env.get("TORCH_CUDA_ARCH_LIST", "")
    if asked and asked != "native":
        return asked
    archs = [arch for arch in sorted(set(gpus or DEFAULT_ARCHS)) if arch in toolkit.archs]
    archs = archs or [max(toolkit.archs)]  # newer GPUs compile its PTX when they first run it
    return ";".join(f"{major}.{minor}" for major, minor in archs) + "+PTX"


# --- flags --------------------------------------------------------------------------------------


def definitions(cuda: CudaDecision) -> list[str]:
    """Macros that every source sees, whichever compiler reads it."""
    macros = [f"TORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    return macros + (["USE_CUDA", "IMGFAST_WITH_CUDA"] if cuda.build else [])


def cxx_flags() -> list[str]:
    """Never a -march: each instruction set has its translation unit, which names its own target.

    GCC 12 and 13, allocating registers by regions, leave operands of some convolution tiles in
    memory at half the speed; Clang does not know the flag, and says so unless told not to.
    """
    registers = ["-fira-region=all", "-Wno-ignored-optimization-argument"]
    return ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", *registers]


def nvcc_flags(cuda: CudaDecision) -> list[str]:
    """With the architectures: a flag that contains "arch" keeps torch from adding its own."""
    return ["-O3", "-std=c++20", "-Xcompiler=-fvisibility=hidden,-Wall", *gencode_flags(cuda)]


def gencode_flags(cuda: CudaDecision) -> list[str]:
    """Machine code of each architecture from the oldest one's PTX, beyond which the kernels ask for
    nothing: to make it once takes half as long. From 12.0 on they have a PTX of their own, as ptxas
    13.0 takes stack memory for that of an older one. Empty for what torch alone understands (names,
    9.0a): then it adds its own.
    """
    listed = re.split(r"[;, ]+", cuda.arch_list.strip())
    found = [re.fullmatch(r"(\d+)\.(\d+)(\+PTX)?", arch) for arch in listed]
    if not all(found):
        return []
    archs = sorted({(int(match[1]), int(match[2])) for match in found})
    with_ptx = any(match[3] for match in found)
    flags = []
    for group in ([a for a in archs if a < (12, 0)], [a for a in archs if a >= (12, 0)]):
        if group:
            names = [f"{major}{minor}" for major, minor in group]
            codes = [f"sm_{name}" for name in names]
            if with_ptx and group[-1] == archs[-1]:
                codes.append(f"compute_{names[0]}")
            flags.append(f"-gencode=arch=compute_{names[0]},code=[{','.join(codes)}]")
    return flags


def libraries(cuda: CudaDecision) -> list[str]:
    """The stable ABI lives in torch_cpu and torch_cuda; nothing of c10 or torch_python is used."""
    return ["torch_cpu"] + (["torch_cuda", "cudart"] if cuda.build else [])


def max_jobs(env: Mapping[str, str], cores: int, available_bytes: int | None) -> int:
    """Compilers at a time: MAX_JOBS if set, else as many as cores and memory allow."""
    asked = env.get("MAX_JOBS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    if available_bytes is None:
        return cores
    return max(1, min(cores, available_bytes // BYTES_PER_JOB))


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that may still be used, by the machine's and by the container's account."""
    limits = []
    try:
        meminfo = Path("/proc/meminfo").read_text()
        limits.append(int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo).group(1)) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, AttributeError):
        pass  # not Linux, or no limit set
    return min(limits, default=None)


# --- what build_info() tells ---------------------------------------------------------------------


def config_header(version: str, torch_version: str, cuda: CudaDecision, sanitize: str = "") -> str:
    """The generated header that module.cpp alone includes."""
    toolkit = cuda.toolkit.version if cuda.build and cuda.toolkit else ""
    values = {
        "VERSION": version,
        "TORCH_VERSION": torch_version,
        "CUDA_REASON": cuda.reason,
        "CUDA_VERSION": toolkit,
        "CUDA_ARCH_LIST": cuda.arch_list,
        "CXX_FLAGS": " ".join(cxx_flags()),
        "SANITIZE": sanitize,
    }
    lines = [f"#define IMGFAST_{name} {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(["#pragma once", *lines, ""])


def write_if_changed(path: Path, text: str) -> None:
    """Keeps the time stamp of an equal file, so that nothing is compiled again for it."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# --- command line, for CMake and make ------------------------------------------------------------


def cmake_settings(generated: Path, sanitize: str) -> str:
    """The same sources' surroundings as CMake variables; writes module.cpp's header as well."""
    import pybind11
    import torch
    from torch.utils import cpp_extension

    cuda = decide_cuda(torch.__version__, torch.version.cuda, (), os.environ)
    write_if_changed(
        generated / "imgfast_build_config.h",
        config_header(project_version(), torch.__version__, cuda, sanitize),
    )
    values: dict[str, Sequence[str]] = {
        "CXX_FLAGS": cxx_flags(),
        "DEFINITIONS": definitions(cuda),
        "INCLUDE_DIRS": [str(ROOT / "csrc"), str(generated), pybind11.get_include()],
        "SYSTEM_INCLUDE_DIRS": cpp_extension.include_paths(),
        "LIBRARY_DIRS": cpp_extension.library_paths(),
        "LIBRARIES": libraries(cuda),
        "CUDA": ["ON" if cuda.build else "OFF"],
        "CUDA_REASON": [cuda.reason],
    }
    if cuda.build and cuda.toolkit:
        values["INCLUDE_DIRS"] = [*values["INCLUDE_DIRS"], str(cuda.toolkit.include)]
        values["LIBRARY_DIRS"] = [*values["LIBRARY_DIRS"], str(cuda.toolkit.home / "lib64")]
        values["CUDA_COMPILER"] = [str(cuda.toolkit.home / "bin" / "nvcc")]
        values["CUDA_FLAGS"] = nvcc_flags(cuda)
        listed = re.findall(r"\d+", cuda.arch_list.replace(".", ""))
        values["CUDA_ARCHITECTURES"] = ["OFF"] if gencode_flags(cuda) else listed
    lines = []
    for name, value in values.items():
        quoted = json.dumps(";".join(value)).replace("$", "\\$")
        lines.append(f"set(IMGFAST_{name} {quoted})")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["build-requirements"]:
            print("\n".join(build_requirements()))
        case ["jobs"]:
            print(max_jobs(os.environ, usable_cores(), available_memory()))
        case ["sources", kind] if kind in ("cpu", "cuda"):
            print("\n".join(sources(kind == "cuda")))
        case ["cmake", generated, sanitize]:
            folder = Path(generated)
            write_if_changed(folder / "imgfast.cmake", cmake_settings(folder, sanitize))
        case _:
            print(
                "usage: toolchain.py build-requirements | jobs | sources cpu|cuda | "
                "cmake DIR SANITIZE"
            )
            return 2
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
