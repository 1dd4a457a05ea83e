"""Races: all contenders of a row are timed in turn, round after round, in one process.

    pytest benchmarks --benchmark-only                          everything, at 1 and 2 threads
    pytest benchmarks --benchmark-only --no-compile             without torch.compile: minutes less
    pytest benchmarks --benchmark-only --no-compile --quick     small rows, few rounds: a smoke test
    taskset -c 3 pytest benchmarks --benchmark-only --threads 1 -k "training and cifar"
    taskset -c 3 pytest benchmarks --benchmark-only --threads 1 -k off_grid
    pytest benchmarks --benchmark-only --no-compile --large -k linear     a million classes, too

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

from imgfast import info

MIN_TURN = 0.01  # seconds, for which short calls repeat: others' caches and threads fade
RACES = pytest.StashKey[list]()


def pytest_addoption(parser):
    group = parser.getgroup("imgfast benchmarks")
    group.addoption("--threads", default="", help="numbers of threads; 1,2 if two cores are there")
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
    if "threads" in metafunc.fixturenames:
        chosen = metafunc.config.option.threads
        if not chosen:
            chosen = "1,2" if len(os.sched_getaffinity(0)) > 1 else "1"
        threads = [int(t) for t in chosen.split(",")]
        metafunc.parametrize("threads", threads, ids=[f"{t}t" for t in threads])


@pytest.fixture
def race(benchmark, request, threads):
    """A :class:`Race` at ``threads`` threads."""
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    yield Race(benchmark, request, threads)
    torch.set_num_threads(before)
    if collecting:
        gc.enable()
    torch.compiler.reset()  # a row's compiled code serves no other row


class Race:
    """Checks that the contenders of a row are equal, then times them. The first is imgfast."""

    def __init__(self, benchmark, request, threads):
        self.benchmark, self.config, self.threads = benchmark, request.config, threads
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
        seconds = {name: _probe(call) for name, call in contenders.items()}
        repeats = {name: math.ceil(MIN_TURN / seconds[name]) for name in contenders}
        turns = sum(seconds[name] * repeats[name] for name in contenders)
        budget = float(self.config.option.benchmark_max_time) * len(contenders)
        rounds = max(self.config.option.benchmark_min_rounds, int(budget / turns))

        subject, *rivals = contenders
        times = {name: [] for name in rivals}
        order = random.Random(0)

        def rivals_turns():
            for name in order.sample(rivals, len(rivals)):
                times[name].append(_time(contenders[name], repeats[name]))

        self.benchmark.group = f"{self.op}, {self.task}, threads={self.threads}"
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
                threads=self.threads,
                row=row,
                medians=medians,
                absent=self.absent,
            )
            self.config.stash[RACES].append(self.benchmark.extra_info)


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
