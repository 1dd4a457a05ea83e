"""The devices that one and the same test runs on. CONTRIBUTING.md tells how it is written.

Kernels run wherever there is one, be it slower than stock.

cpu   the CPU's kernels
simt  the CUDA kernels, executed by the emulator in tests/simt on tensors of the CPU
cuda  the CUDA kernels on a GPU
"""

from collections import Counter

import emulated_operators
import pytest
import torch

from imgfast import info
from imgfast.ops import conv_relu_pool as conv
from imgfast.ops import conv_relu_pool_route as conv_route
from imgfast.ops import (
    cross_entropy_autograd,
    cross_entropy_route,
    cuda_route,
    linear_cross_entropy_route,
    timing,
)
from imgfast.ops import upsample_conv_relu_route as upsample_route
from imgfast.ops.conv_relu_pool_costs import Winograd

DEVICES = ("cpu", "simt", "cuda")


@pytest.fixture(autouse=True)
def threads_of_its_own():
    """A test may set the number of torch's threads; the next one has what it was before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pytest_addoption(parser):
    parser.addoption("--one-in", type=int, default=1, help="of each test's cases, so few")


def pytest_generate_tests(metafunc):
    """A test with a ``device`` runs on those of its mark, or on all."""
    if "device" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("devices")
        names = (mark and mark.args) or DEVICES
        cases = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in names]
        metafunc.parametrize("device", cases, indirect=True)


def pytest_collection_modifyitems(config, items):
    """Leaves out cases that cannot be, or are too many, instead of skipping thousands."""
    seen, one_in = Counter(), config.getoption("one_in", 1)
    taken = [item for item in items if _is_taken(item, seen, one_in)]
    if len(taken) < len(items):
        kept = set(taken)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = taken


def _is_taken(item, seen, one_in):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    name = params.get("device", "cpu")
    if name != "cpu" and any(value is torch.float64 for value in params.values()):
        return False  # of which CUDA has no kernel
    key = item.nodeid.partition("[")[0], name  # the test
    case = seen[key]
    seen[key] += 1
    if name == "cuda":
        return case == 0 or torch.cuda.is_available()  # without, one case says so
    mark = item.get_closest_marker("devices")
    every = mark.kwargs.get("simt_every", 1) if mark and name == "simt" else 1
    return case % (every * one_in) == 0


@pytest.fixture
def device(request, monkeypatch):
    """Where a test puts its tensors."""
    if request.param == "cpu":
        yield torch.device("cpu")
        return
    monkeypatch.setattr(conv, "_plans", {})
    if request.param == "simt":
        _choose_as_on_cuda(monkeypatch)
        with emulated_operators.installed():
            yield torch.device("cpu")
        return
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    facts = info.collect()
    if not facts["cuda_built"]:
        pytest.skip(f"this build has no CUDA kernels: {facts['cuda_reason']}")
    monkeypatch.setattr(cuda_route, "_wins", {})
    monkeypatch.setattr(timing, "times", _kernels_first)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # too coarse for float32
        yield torch.device("cuda")


def _choose_as_on_cuda(monkeypatch):
    """Of tensors on the CPU: no float64, no Winograd, no gradient before it is asked for."""
    for route in (conv_route, cross_entropy_route, linear_cross_entropy_route):
        monkeypatch.setattr(route, "DTYPES", [t for t in route.DTYPES if t != torch.float64])
    monkeypatch.setattr(conv_route, "_winograd", lambda *_: Winograd(0))
    for count in ("_winograd", "_winograd_again"):
        monkeypatch.setattr(upsample_route, count, lambda *_: Winograd(0))
    monkeypatch.setattr(conv_route, "EPILOGUE_DEVICES", ("cpu",))
    monkeypatch.setattr(cross_entropy_autograd, "SMALL", 0)


def _kernels_first(candidates, tensors):
    """A stopwatch that finds stock the slowest, without a look."""
    return dict.fromkeys(sorted(candidates, key=lambda name: name == "stock"), 0.0)
