"""Races: all contenders of a row are timed in turn, round after round, in one process.

    pytest benchmarks --benchmark-only                          everything, at 1 and 2 threads
    pytest benchmarks --benchmark-only --no-compile             without torch.compile: minutes less
    pytest benchmarks --benchmark-only --no-compile --quick     small rows, few rounds: a smoke test
    taskset -c 3 pytest benchmarks --benchmark-only --threads 1 -k "training and cifar"
    taskset -c 3 pytest benchmarks --benchmark-only --threads 1 -k off_grid
    pytest benchmarks --benchmark-only --no-compile --large -k linear     a million classes, too
    pytest benchmarks --benchmark-only --device cuda --dtype bfloat16     on a GPU; see place.py

With ``pip install -e ".[bench]"`` ONNX Runtime and OpenVINO race for inference, and matplotlib
draws the ratios; the tables say who is absent.

A busy machine disturbs neighbours in time alike, so that the ratio of two medians of one race is
worth more than the medians. imgfast is pytest-benchmark's own subject (its table, JSON and options
hold: --benchmark-json, --benchmark-min-rounds, --benchmark-max-time, here seconds a contender);
between its rounds the rivals take their turns, in changing order, and their medians are kept as
extra_info. Nothing is pinned: figures of one thread want ``taskset``.

The tables come last, and go to benchmarks/results/ too, with a plot of the ratios; see report.py
and plot.py. Memory is measured apart, by memory.py.
"""

import gc
import math
import os
import random
import statistics
import time

import opponents
import plot
import pytest
import report
import torch
from place import DTYPES, Place, replayed, waiting

from imgfast import info
from imgfast.ops import timing

MIN_TURN = 0.01  # seconds, for which short calls repeat: others' caches and threads fade
RACES = pytest.StashKey[list]()


def pytest_addoption(parser):
    group = parser.getgroup("imgfast benchmarks")
    group.addoption("--threads", default="", help="numbers of threads; 1,2 if two cores are there")
    group.addoption("--device", default="cpu", choices=["cpu", "cuda"])
    group.addoption("--dtype", default="float32", choices=DTYPES)
    group.addoption(
        "--no-graph", action="store_true", help="on a GPU: calls from Python, no replayed graphs"
    )
    group.addoption(
        "--kernels", action="store_true", help="on a GPU: our kernels race even where stock wins"
    )
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out")
    group.addoption(
        "--compile-off-grid", action="store_true", help="torch.compile for rows off the grid too"
    )
    group.addoption("--quick", action="store_true", help="a few small rows, and few rounds")
    group.addoption("--large", action="store_true", help="rows of gigabytes and minutes, too")


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its options
def pytest_configure(config):
    config.stash[RACES] = []
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    config.addinivalue_line("markers", "quick: a small row, part of --quick")
    config.addinivalue_line("markers", "off_grid: a row beside those that kernels are tuned for")
    config.addinivalue_line("markers", "large: a row that takes gigabytes and minutes: --large")
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "iqr", "rounds", "iterations"]
    if config.option.quick:
        config.option.markexpr = config.option.markexpr or "quick"
        config.option.benchmark_min_rounds = 3
        config.option.benchmark_max_time = 0.1
    if not config.option.large:
        expression = config.option.markexpr
        config.option.markexpr = f"({expression}) and not large" if expression else "not large"


def pytest_generate_tests(metafunc):
    if "place" in metafunc.fixturenames:
        option = metafunc.config.option
        many = option.device == "cpu" and len(os.sched_getaffinity(0)) > 1
        threads = [int(t) for t in (option.threads or ("1,2" if many else "1")).split(",")]
        dtype, graph = getattr(torch, option.dtype), not option.no_graph
        places = [Place(option.device, dtype, t, graph) for t in threads]
        ids = [f"{t}t" if option.device == "cpu" else f"cuda-{option.dtype}" for t in threads]
        metafunc.parametrize("place", places, ids=ids)


@pytest.fixture
def race(benchmark, request, place, monkeypatch):
    """A :class:`Race` at a :class:`Place`."""
    if place.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(place.threads)
    gc.disable()
    if request.config.option.kernels:
        monkeypatch.setattr(timing, "times", _kernels_first)
    yield Race(benchmark, request, place)
    torch.set_num_threads(before)
    if collecting:
        gc.enable()
    torch.compiler.reset()  # a row's compiled code serves no other row


def _kernels_first(candidates, tensors):
    """A stopwatch that finds stock the slowest, without a look."""
    return dict.fromkeys(sorted(candidates, key=lambda name: name == "stock"), 0.0)


class Race:
    """Checks that the contenders of a row are equal, then times them. The first is imgfast."""

    def __init__(self, benchmark, request, place):
        self.benchmark, self.config, self.place = benchmark, request.config, place
        self.op = request.module.__name__.removeprefix("bench_")
        self.task = request.function.__name__.removeprefix("bench_").replace("_", " ")
        off_grid = request.node.get_closest_marker("off_grid") is not None
        if off_grid:
            self.task += " off the grid"
        option = self.config.option
        self.compile = not option.no_compile and (option.compile_off_grid or not off_grid)
        self.absent = [] if self.compile else ["torch.compile (left out)"]  # from this race

    def __call__(self, row, contenders, *, tolerance, grad_tolerance=None, bounds=None):
        """``bounds`` are timed, too, but compute only a part and are no opponents."""
        results = {name: call() for name, call in contenders.items()}
        opponents.check_equal(results, tolerance, grad_tolerance)
        del results
        contenders = contenders | (bounds or {})
        if self.place.replays:
            contenders = {name: replayed(call) for name, call in contenders.items()}
        seconds = {name: _probe(self._waiting(call)) for name, call in contenders.items()}
        repeats = {name: math.ceil(MIN_TURN / seconds[name]) for name in contenders}
        contenders = {name: self._waiting(call, repeats[name]) for name, call in contenders.items()}
        turns = sum(seconds[name] * repeats[name] for name in contenders)
        budget = float(self.config.option.benchmark_max_time) * len(contenders)
        rounds = max(self.config.option.benchmark_min_rounds, int(budget / turns))

        subject, *rivals = contenders
        times = {name: [] for name in rivals}
        order = random.Random(0)

        def rivals_turns():
            for name in order.sample(rivals, len(rivals)):
                times[name].append(_time(contenders[name], repeats[name]))

        self.benchmark.group = f"{self.op}, {self.task}, {self.place}"
        self.benchmark.pedantic(
            contenders[subject],
            teardown=rivals_turns,
            rounds=rounds,
            iterations=repeats[subject],
        )
        if self.benchmark.enabled:
            medians = {subject: self.benchmark.stats.stats.median}
            medians |= {name: statistics.median(times[name]) for name in rivals}
            self.benchmark.extra_info.update(
                op=self.op,
                task=self.task,
                place=str(self.place),
                row=row,
                medians=medians,
                absent=self.absent,
            )
            self.config.stash[RACES].append(self.benchmark.extra_info)

    def _waiting(self, call, turn=1):
        return waiting(call, turn) if self.place.device == "cuda" else call


def _time(call, repeats=1):
    """Seconds a call, on average of ``repeats``."""
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def _probe(call):
    """The least of at least three calls and of those that fit into MIN_TURN: seconds, warmed up."""
    times = []
    while len(times) < 3 or sum(times) < MIN_TURN:
        times.append(_time(call))
    return min(times)


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["imgfast"] = info.collect()


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's own table
def pytest_terminal_summary(terminalreporter, config):
    races = config.stash[RACES]
    if not races:
        return
    machine = config.hook.pytest_benchmark_generate_machine_info(config=config)
    pytest_benchmark_update_machine_info(machine)
    path = report.save(report.render(races, machine), "races")
    picture = plot.save(races, path.with_suffix(".png"))
    terminalreporter.section("imgfast beside stock")
    terminalreporter.write_line(path.read_text())
    for file in filter(None, (path, picture)):
        terminalreporter.write_line(f"written to {os.path.relpath(file)}")
