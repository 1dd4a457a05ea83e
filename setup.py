"""Compiles csrc/ into the one extension module, imgfast._C; pyproject.toml holds the rest.

Environment: IMGFAST_CUDA=0|1 (leave CUDA out | fail without it), CUDA_HOME,
TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX, CFLAGS.
"""

import contextlib
import glob
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
import toolchain  # noqa: E402


def extension_with_torch():
    """The extension and its build command for the torch that is installed."""
    import pybind11
    import torch

    if not toolchain.torch_is_new_enough(torch.__version__):
        sys.exit(f"imgfast needs {toolchain.torch_requirement()}, found torch {torch.__version__}")
    gpus = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    try:
        cuda = toolchain.decide_cuda(torch.__version__, torch.version.cuda, gpus, os.environ)
    except toolchain.BuildError as error:
        sys.exit(f"imgfast: {error}")
    if cuda.build:  # before torch.utils.cpp_extension is imported, which guesses when it is
        os.environ["CUDA_HOME"] = str(cuda.toolkit.home)
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda.arch_list
    if shutil.which("ninja") is None and importlib.util.find_spec("ninja"):
        import ninja  # installed, but its environment is not the active one

        os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ.get("PATH", "")

    from torch.utils import cpp_extension

    torch_includes = cpp_extension.include_paths()
    cuda_includes = [str(cuda.toolkit.include)] if cuda.build else []
    cuda_libraries = [str(cuda.toolkit.home / "lib64")] if cuda.build else []
    macros = [f"-D{macro}" for macro in toolchain.definitions(cuda)]
    # Torch's headers come in as system headers (no warnings) and behind pybind11's: torch ships a
    # copy of pybind11, and the one that counts is the package that pyproject.toml asks for.
    system_includes = [f for path in torch_includes for f in ("-isystem", path)]
    cxx = toolchain.cxx_flags() + macros + system_includes
    if "-g" not in os.environ.get("CFLAGS", "").split():
        cxx.append("-g0")  # many Pythons were built with -g and pass it on
    extension = Extension(
        "imgfast._C",
        sources=toolchain.sources(cuda.build),
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include(), *torch_includes, *cuda_includes],
        library_dirs=[*cpp_extension.library_paths(), *cuda_libraries],
        libraries=toolchain.libraries(cuda),
        extra_compile_args={"cxx": cxx, "nvcc": toolchain.nvcc_flags(cuda) + macros},
        depends=glob.glob("csrc/**/*.*", recursive=True),
        language="c++",
    )

    class BuildExt(cpp_extension.BuildExtension):
        def finalize_options(self):
            chosen = self.build_temp
            super().finalize_options()
            # Ninja knows best what is out of date: setuptools overlooks changed flags.
            self.force = True
            # One folder per Python, torch and kind, so that `pip install -e .` and
            # `setup.py build_ext --inplace` share their objects and two environments do not.
            kind = "cuda" if cuda.build else "cpu"
            name = f"{sys.implementation.cache_tag}-torch-{torch.__version__}-{kind}"
            self.build_temp = chosen or str(ROOT / "build" / name)

        def build_extensions(self):
            jobs = toolchain.max_jobs(
                os.environ, toolchain.usable_cores(), toolchain.available_memory()
            )
            os.environ["MAX_JOBS"] = str(jobs)
            print(f"imgfast: {cuda}\nimgfast: {jobs} compiler(s) at a time", flush=True)
            generated = Path(self.build_temp) / "generated"
            header = toolchain.config_header(toolchain.project_version(), torch.__version__, cuda)
            with one_build_at_a_time(Path(self.build_temp)):
                toolchain.write_if_changed(generated / "imgfast_build_config.h", header)
                self.extensions[0].include_dirs.append(str(generated))
                super().build_extensions()

    return extension, BuildExt


@contextlib.contextmanager
def one_build_at_a_time(folder: Path):
    """Two builds in one folder would overwrite each other's objects."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class NoTorch(build_ext):
    """Stands in where torch is missing, so that metadata and sdist can still be made."""

    def run(self):
        sys.exit(
            f"imgfast is compiled against torch, which is not installed: "
            f"pip install '{toolchain.torch_requirement()}' first, or build with isolation."
        )


if __name__ == "__main__":
    if importlib.util.find_spec("torch"):
        extension, command = extension_with_torch()
    else:
        extension, command = Extension("imgfast._C", sources=[]), NoTorch
    setup(ext_modules=[extension], cmdclass={"build_ext": command})
