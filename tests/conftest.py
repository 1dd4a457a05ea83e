"""Says at the top of every run which build of imgfast is tested."""

import imgfast
from imgfast import _C, info


def pytest_report_header() -> str:
    facts = info.collect()
    return (
        f"imgfast {facts['imgfast']} in {imgfast.__path__[0]}: torch {facts['torch']}, "
        f"ISA {facts['isa']}, {facts['threads']} threads, "
        f"CUDA kernels: {'yes' if facts['cuda_built'] else 'no'} ({facts['cuda_reason']}), "
        f"sanitizers: {_C.build_info()['sanitize'] or 'none'}"
    )
