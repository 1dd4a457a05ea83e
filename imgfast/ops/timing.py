"""Which of several ways to do the same thing is fastest here: the stopwatch of imgfast.benchmark,
and of CUDA devices.

It knows nothing of routes: callables go in, seconds come out.
"""

import contextlib
import itertools
import statistics
from functools import partial
from time import perf_counter
from typing import NamedTuple

import torch

RUNS = 20  # of each candidate, after one to warm up
CPU = torch.device("cpu")
BUDGET = 0.5  # seconds, after which no further round begins
CALLS = 5  # that a GPU is given at once
HEAD_START = 1.5  # times what the host takes to prepare them
CYCLES = 2e9  # of a GPU in a second, about
HOST_SHARE = 0.1  # of the host's time that counts beside a GPU's, with which most of it overlaps
MOST_HOST = 1.2  # times stock's, of a candidate that may win on a GPU


class Seconds(NamedTuple):
    """What a run takes of the host, to the end on a CPU, to the launches on a GPU; and of that."""

    host: float
    device: float = 0.0

    def __str__(self):
        if not self.device:
            return f"{1e3 * self.host:.3f} ms"
        return f"{1e3 * self.device:.3f} ms (host: {1e3 * self.host:.3f})"

    @property
    def cost(self):
        return self.device + HOST_SHARE * self.host if self.device else self.host


def possible(*tensors) -> bool:
    """Whether a timing would leave no trace, and its outcome may decide.

    Tracers, dispatch modes and the capture of a CUDA graph record whatever runs; deterministic
    algorithms must not hang on a clock; sparse tensors have no strides to be told apart by.
    """
    return not (
        torch.are_deterministic_algorithms_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch.jit.is_tracing()
        or any(t.layout is not torch.strided for t in tensors)
        or (any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing())
    )


def times(candidates, tensors) -> dict[str, Seconds]:
    """Seconds that ``candidate(*tensors)`` takes, with the gradients that the tensors require.

    Args:
        candidates: callables by name. They return equal tensors.
        tensors: plain tensors or None. They are read in place, through aliases outside of the
            caller's graph: neither ``.grad`` nor torch's random state is touched.

    Returns:
        Seconds by name, the best first, see :func:`medians`.
    """
    grad = torch.is_grad_enabled()
    aliases = [
        None if t is None else t.detach().requires_grad_(grad and t.requires_grad) for t in tensors
    ]
    device = next(t.device for t in tensors if t is not None)
    wanted = [t for t in aliases if t is not None and t.requires_grad]
    if not wanted:
        return medians({name: partial(run, *aliases) for name, run in candidates.items()}, device)
    with torch.no_grad():
        y = next(iter(candidates.values()))(*aliases)
    grad_y = y.normal_(generator=torch.Generator(y.device))

    def step(candidate):
        torch.autograd.grad(candidate(*aliases), wanted, grad_y)

    with _no_hooks(), torch.autograd.set_detect_anomaly(False):
        return medians({name: partial(step, run) for name, run in candidates.items()}, device)


def medians(candidates, device=CPU) -> dict[str, Seconds]:
    """Median seconds of callables without arguments, by name, the best first.

    They take turns, in every order, so that whatever else the machine does hits all alike, and none
    always finds the caches as the same other one leaves them. Where the first round uses up the
    budget, that round is what counts; otherwise it only warms up.

    On a GPU the device's time decides, but for a share of the host's, among those that take no more
    of the host than ``"stock"``, if there is that, nor of the device: whether a program waits for
    the one or for the other is not known here, and neither may it lose by the choice.
    """
    run_time = partial(_host_and_device, device=device) if device.type == "cuda" else _host
    seconds = {name: [] for name in candidates}
    orders = itertools.cycle(itertools.permutations(candidates.items()))
    end = perf_counter() + BUDGET
    for order in itertools.islice(orders, 1 + RUNS):
        for name, run in order:
            seconds[name].append(run_time(run))
        if perf_counter() >= end:
            break
    found = {
        name: Seconds(*map(statistics.median, zip(*(runs[1:] or runs), strict=True)))
        for name, runs in seconds.items()
    }
    return dict(sorted(found.items(), key=lambda item: (_loses(item[1], found), item[1].cost)))


def _loses(to: Seconds, found) -> bool:
    """Whether stock is faster on one side of a GPU, be it by so much that it is no chance."""
    stock = found.get("stock", to)
    return bool(to.device) and (to.host > MOST_HOST * stock.host or to.device > stock.device)


def _host(run) -> Seconds:
    start = perf_counter()
    run()
    return Seconds(perf_counter() - start)


def _host_and_device(run, device) -> Seconds:
    """The device sleeps until it has been given several runs, so that its own time has no gaps in
    which it waits for the host."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        ahead = HEAD_START * CALLS * _host(run).host
        torch.cuda._sleep(int(CYCLES * ahead))
        start.record()
        host = _host(lambda: [run() for _ in range(CALLS)]).host
        end.record()
        end.synchronize()
    return Seconds(host / CALLS, start.elapsed_time(end) / 1e3 / CALLS)


def _no_hooks():
    """Keeps the caller's hooks on saved tensors from seeing those of a timing."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
