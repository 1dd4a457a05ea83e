"""Peak memory of a training step of one layer, of the whole process: imgfast beside eager torch.

    python benchmarks/memory.py                        cifar1 and cifar2, on one thread
    python benchmarks/memory.py vgg odd --threads 2    any rows of conv_relu_pool_layers.py

Each contender has a process of its own, which loads torch, and imgfast only if it is imgfast's. It
is *ready* when input, weights and the gradient of the output exist, but no step has been taken,
except by a tiny layer, so that code is loaded; then it takes some steps. *peak* is the most that
was resident while it did, libraries and all, and *step* is what that is above ready: the layer's
results, what it keeps for backward, and scratch buffers. Whether the C library gives freed memory
back depends on chance: the figures are medians of three processes. In MB of a million bytes. Linux
only.
"""

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor

import report
import torch
from conv_relu_pool_layers import GRID, OFF_GRID, Row, fused, stock, training_step
from opponents import LAYOUTS
from place import CPU

ROWS = {row.name: row for row in GRID + OFF_GRID}
CONTENDERS = {side + suffix: (side, suffix) for side in ("imgfast", "eager") for suffix in LAYOUTS}
TINY = Row("tiny", 1, 16, 16, 8)
STEPS, PROCESSES = 5, 3


def measure(row, side, suffix, threads):
    """Bytes resident when ready, and at most while steps were taken; for a fresh process."""
    torch.set_num_threads(threads)
    op = fused() if side == "imgfast" else stock
    tiny, step = (
        training_step(r, CPU, op, lambda layer: layer, LAYOUTS[suffix]) for r in (TINY, ROWS[row])
    )
    tiny()
    ready = _resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM, the highest so far, starts again from here
    for _ in range(STEPS):
        step()
    return ready, _resident("VmHWM")


def _resident(field):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def measure_fresh(*arguments):
    """Medians of :func:`measure` in new processes, one after the other."""
    measured = []
    for _ in range(PROCESSES):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            measured.append(process.submit(measure, *arguments).result())
    return tuple(map(statistics.median, zip(*measured, strict=True)))


def table(name, threads):
    lines = [["", "ready", "peak", "step"]]
    peaks, steps = {}, {}
    for contender, (side, suffix) in CONTENDERS.items():
        ready, peak = measure_fresh(name, side, suffix, threads)
        peaks[contender], steps[contender] = peak, peak - ready
        lines.append([contender, *(f"{b / 1e6:.1f}" for b in (ready, peak, peak - ready))])
    whole, step = (report.best_ratio(bytes_of)[0] for bytes_of in (peaks, steps))
    summary = f"The best of eager takes {whole:.2f}x as much in the whole process, "
    summary += f"{step:.2f}x as much for the step."
    return f"### {name}: {ROWS[name]}\n\n{report.aligned(lines)}\n\n{summary}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", default=["cifar1", "cifar2"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    from imgfast import info  # here, where the processes that measure do not come by

    facts = info.collect()
    title = f"torch {facts['torch']}, imgfast {facts['imgfast']}, ISA {facts['isa']}"
    title += f", threads={arguments.threads}"
    note = f"MB resident over {STEPS} training steps, median of {PROCESSES} processes; "
    note += "CL is channels_last."
    tables = [table(name, arguments.threads) for name in arguments.rows]
    path = report.save("\n\n".join([f"{title}\n{note}", *tables]) + "\n", "memory")
    print(path.read_text())
    print(f"written to {path}")


if __name__ == "__main__":
    main()
