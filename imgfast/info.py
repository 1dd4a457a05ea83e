"""What is installed, what was built and what runs here: the facts behind ``imgfast info``."""

from __future__ import annotations

import os
import platform

import torch

from . import _C

__all__ = ["collect"]


def collect() -> dict[str, object]:
    """Facts about this installation, in the order in which they are worth reading.

    Returns:
        ``imgfast``, ``python``, ``torch``: versions. ``built_for_torch``: version of the torch
        that the kernels were compiled against; any later one runs them. ``compiler``, ``platform``.
        ``isa``: instruction set of the CPU kernels, chosen by the processor or by the environment
        variable ``IMGFAST_ISA``; if that names one that is not there, the error's text.
        ``isas``: those that this machine can run, best first. ``threads``: of torch's CPU pool.
        ``cuda_built``, ``cuda_reason``, ``cuda_archs``: whether the CUDA kernels were compiled, why
        (or why not), and for which GPUs. ``cuda_available``: whether torch sees a GPU now.
    """
    build = _C.build_info()
    try:
        isa = _C.cpu_isa()
    except RuntimeError as error:
        isa = str(error)
    facts = {
        "imgfast": build["version"],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "built_for_torch": build["torch"],
        "compiler": build["compiler"],
        "platform": platform.platform(),
        "isa": isa,
        "isas": _C.cpu_isas(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cuda_built": build["cuda"],
        "cuda_reason": build["cuda_reason"],
        "cuda_archs": build["cuda_arch_list"],
        "cuda_available": torch.cuda.is_available(),
    }
    if facts["cuda_available"]:
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
