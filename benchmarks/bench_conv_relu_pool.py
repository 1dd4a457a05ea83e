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


def _param(row, *marks):
    quick = [pytest.mark.quick] if row.name in QUICK else []
    return pytest.param(row, id=row.name, marks=[*marks, *quick])


rows = pytest.mark.parametrize(
    "row", [*map(_param, GRID), *(_param(row, pytest.mark.off_grid) for row in OFF_GRID)]
)


@rows
def bench_inference(race, row):
    make = functools.partial(inference, row)
    compiler = inductor(race.threads, freezing=True) if race.compile else None
    contenders = lineup(make, fused(), stock, compiler=compiler)
    contenders |= engines.lineup(row, race.threads)
    race.absent += [f"{name} (not installed)" for name in engines.MISSING]
    race(f"{row.name}: {row}", contenders, tolerance=1e-4)


@rows
def bench_training_step(race, row):
    make = functools.partial(training_step, row)
    compiler = inductor(race.threads) if race.compile else None
    contenders = lineup(make, fused(), stock, compiler=compiler)
    # One window whose maximum is chosen otherwise (see check_equal) is 2 / outputs of the square.
    grad_tolerance = max(1e-2, (4 / math.prod(row.y_shape)) ** 0.5)
    race(f"{row.name}: {row}", contenders, tolerance=1e-4, grad_tolerance=grad_tolerance)
