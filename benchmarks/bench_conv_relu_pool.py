"""conv_relu_pool beside conv2d, activation and pool: inference and training step of one layer.

The training step is forward and backward. Inference meets ONNX Runtime and OpenVINO too, where they
are installed; Inductor freezes the weights for it. Rows off the grid (``-k off_grid``, or
``-k "not off_grid"``) have tables of their own, without torch.compile unless --compile-off-grid.
"""

import functools
import math

import engines
import pytest
from conv_relu_pool_layers import GRID, OFF_GRID, QUICK, fused, inference, stock, training_step
from opponents import inductor, lineup
from place import Place


def _param(row, *marks):
    quick = [pytest.mark.quick] if row.name in QUICK else []
    return pytest.param(row, id=row.name, marks=[*marks, *quick])


rows = pytest.mark.parametrize(
    "row", [*map(_param, GRID), *(_param(row, pytest.mark.off_grid) for row in OFF_GRID)]
)


@rows
def bench_inference(race, row):
    make = functools.partial(inference, row, race.place)
    compiler = inductor(race.place.threads, freezing=True) if race.compile else None
    contenders = lineup(make, fused(), stock, compiler=compiler)
    if race.place == Place(threads=race.place.threads):  # as the engines run, too
        contenders |= engines.lineup(row, race.place.threads)
        race.absent += [f"{name} (not installed)" for name in engines.MISSING]
    race(f"{row.name}: {row}", contenders, tolerance=_tolerance(race))


@rows
def bench_training_step(race, row):
    make = functools.partial(training_step, row, race.place)
    compiler = inductor(race.place.threads) if race.compile else None
    contenders = lineup(make, fused(), stock, compiler=compiler)
    # One window whose maximum is chosen otherwise (see check_equal) is 2 / outputs of the square.
    # The coarser the products, the more such windows there are.
    windows = max(4 / math.prod(row.y_shape), 8 * race.place.rounding)
    grad_tolerance = max(1e-2, windows**0.5)
    race(
        f"{row.name}: {row}",
        contenders,
        tolerance=_tolerance(race),
        grad_tolerance=grad_tolerance,
    )


def _tolerance(race):
    return max(1e-4, 4 * race.place.rounding)
