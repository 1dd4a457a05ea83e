"""Compiles a binding, the kernels that it includes and the emulator into one shared library.

Libraries lie in build/simt/ under the hash of all that they are made of: nothing is compiled twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import toolchain  # build_backend/toolchain.py

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"
STAND_IN = INCLUDE / "stand_in"  # what the CUDA headers lack where there is no nvcc
BINDINGS = HERE / "bindings"
BUILD = toolchain.ROOT / "build" / "simt"
KERNEL_INCLUDES = (toolchain.ROOT / "csrc", BINDINGS)

# A folder to look into before csrc/: the mutation runner puts a changed kernel file there.
OVERLAY = "SIMT_OVERLAY"

COMMON = ["-std=c++20", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
RUNTIME = [*COMMON, "-O2"]
# The sanitizers' instrumentation without their libraries: the emulator defines what it calls.
# Uninitialised locals get a pattern; products and sums stay apart, as on every processor. Torch's
# extensions have no implied conversions of half types, so kernels must do without.
KERNEL = [
    *COMMON,
    "-O1",
    "-DIMGFAST_SIMT",
    "-fsanitize=thread,bounds,alignment,shift,integer-divide-by-zero,signed-integer-overflow",
    "--param=tsan-instrument-func-entry-exit=0",
    "-ftrivial-auto-var-init=pattern",
    "-fno-extern-tls-init",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
]


class Unavailable(RuntimeError):
    """The emulator cannot be built here; the message says why."""


class CompileError(RuntimeError):
    """The compiler's words."""


@functools.cache
def compiler() -> str:
    """g++: its instrumentation is what the hooks are written for."""
    machine = (platform.system(), platform.machine())
    if machine != ("Linux", "x86_64"):
        raise Unavailable(f"the emulator runs on x86-64 Linux, this is {' '.join(machine)}")
    for name in (os.environ.get("CXX", "c++"), "g++"):
        found = shutil.which(name)
        if found is None or "Free Software Foundation" not in _output([found, "--version"]):
            continue
        if int(_output([found, "-dumpversion"]).split(".")[0]) >= 12:
            return found
    raise Unavailable("the emulator needs g++ 12 or newer, and there is none on PATH")


@functools.cache
def cuda_include() -> Path:
    """The headers of a CUDA toolkit, or those that come with a CUDA build of torch."""
    try:
        folders = [toolchain.find_toolkit(os.environ).include]
        reason = f"{folders[0]} has no cuda_fp16.h"
    except toolchain.BuildError as error:
        folders, reason = [], str(error)
    for folder in [*folders, *includes_of_packages()]:
        if (folder / "cuda_fp16.h").exists() and (folder / "cuda_runtime_api.h").exists():
            return folder
    raise Unavailable(f"no CUDA headers: {reason}, and torch brings none")


def includes_of_packages() -> list[Path]:
    """Folders of headers in the packages that a CUDA build of torch requires."""
    nvidia = importlib.util.find_spec("nvidia")
    packages = (nvidia.submodule_search_locations or ()) if nvidia else ()
    return sorted(path for package in packages for path in Path(package).glob("*/include"))


def include_flags(cuda: Path) -> list[str]:
    """The emulator's headers and CUDA's, and stand-ins for what the latter may lack."""
    return [f"-I{INCLUDE}", "-isystem", str(cuda), "-idirafter", str(STAND_IN)]


def build(source: Path, defines: Sequence[str] = (), overlay: Path | None = None) -> Path:
    """The shared library of a binding.

    Args:
        source: the binding, a C++ file with functions marked SIMT_EXPORT.
        defines: macros, ``"NAME"`` or ``"NAME=VALUE"``.
        overlay: a folder that is searched for kernel files before csrc/.
    """
    overlay = overlay or (Path(os.environ[OVERLAY]) if OVERLAY in os.environ else None)
    folders = [*([overlay] if overlay else []), *KERNEL_INCLUDES]
    includes = include_flags(cuda_include())
    command = [compiler(), *KERNEL, *(f"-D{macro}" for macro in defines), *includes]
    headers = [path for folder in (INCLUDE, *folders) for path in _headers(folder)]
    key = _hash(command, [source, *headers])  # without the overlay's name: the same mutant is kept
    command += [f"-I{folder}" for folder in folders]
    runtime = _runtime(includes)
    library = BUILD / f"{source.stem}-{key}-{runtime.stem.removeprefix('runtime-')}.so"
    if not library.exists():
        kernel = _compile(command, source, f"{source.stem}-{key}")
        partial = library.with_suffix(f".{os.getpid()}.so")
        # Without the sanitizers' flag, which would link their library.
        _run([compiler(), "-shared", "-Wl,--no-undefined", "-o", partial, kernel, runtime])
        partial.replace(library)
    return library


def _runtime(includes: Sequence[str]) -> Path:
    """The emulator itself. Compiled as one file: most of the time goes into the same headers."""
    sources = sorted((HERE / "src").glob("*.cpp"))
    command = [compiler(), *RUNTIME, *includes]
    key = _hash(command, [*sources, *_headers(HERE / "src"), *_headers(INCLUDE)])
    together = BUILD / "runtime.cpp"
    toolchain.write_if_changed(together, "".join(f'#include "{path}"\n' for path in sources))
    return _compile(command, together, f"runtime-{key}")


def _compile(command: Sequence[object], source: Path, name: str) -> Path:
    """The object file of a source."""
    compiled = BUILD / f"{name}.o"
    if not compiled.exists():
        with _one_at_a_time(compiled.with_suffix(".lock")):
            if not compiled.exists():
                partial = compiled.with_suffix(f".{os.getpid()}.o")
                _run([*command, "-c", "-o", partial, source])
                partial.replace(compiled)  # at once: one that is killed leaves none by this name
    return compiled


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Processes that share the tests need the same libraries at the same time."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _headers(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cuh", ""))


def _hash(command: Iterable[object], files: Iterable[Path]) -> str:
    digest = hashlib.sha256(" ".join(map(str, command)).encode())
    digest.update(_output([compiler(), "-dumpfullversion"]).encode())
    for path in files:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:12]


@functools.cache
def _tool_output(command: tuple[str, ...]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _output(command: Sequence[str]) -> str:
    return _tool_output(tuple(command))


def _run(command: Sequence[object]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(done.stderr)
