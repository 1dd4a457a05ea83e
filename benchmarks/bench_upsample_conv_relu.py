"""upsample_conv_relu beside interpolate, conv2d and activation: inference and training step of one
block of a decoder. Rows off the grid have tables of their own, as in bench_conv_relu_pool.py."""

import functools
from typing import NamedTuple

import pytest
import torch.nn.functional as F
from conv_relu_pool_layers import inference, training_step
from opponents import inductor, lineup


class Row(NamedTuple):
    """``activation(conv2d(upsample(x), 3 x 3, padding=1))`` of a batch of square maps."""

    name: str
    n: int
    c: int
    k: int
    size: int
    activation: str = "relu"
    bias: bool = True

    @property
    def x_shape(self):
        return self.n, self.c, self.size, self.size

    @property
    def weight_shape(self):
        return self.k, self.c, 3, 3

    @property
    def y_shape(self):
        return self.n, self.k, 2 * self.size, 2 * self.size

    def __str__(self):
        text = f"{self.n} x {self.c}->{self.k} @{self.size}->{2 * self.size}"
        text += "" if self.bias else ", no bias"
        return text if self.activation == "relu" else f"{text}, {self.activation}"


GRID = [
    Row("up-7", 128, 64, 32, 7),
    Row("up-14", 128, 64, 32, 14),
    Row("up-16", 128, 128, 64, 16),
]
OFF_GRID = [
    Row("up-odd", 32, 17, 33, 13),
    Row("up-wide", 4, 32, 32, 64),
    Row("up-rgb", 32, 32, 3, 32, "sigmoid"),
    Row("up-deep", 32, 256, 128, 8),
    Row("up-leaky", 32, 48, 48, 20, "leaky_relu"),
    Row("up-linear", 32, 64, 64, 14, "none", bias=False),
    Row("up-one", 1, 64, 32, 28),
]
QUICK = {"up-7", "up-one"}


def _param(row, *marks):
    quick = [pytest.mark.quick] if row.name in QUICK else []
    return pytest.param(row, id=row.name, marks=[*marks, *quick])


rows = pytest.mark.parametrize(
    "row", [*map(_param, GRID), *(_param(row, pytest.mark.off_grid) for row in OFF_GRID)]
)


def fused(x, weight, bias, row):
    from imgfast import upsample_conv_relu

    return upsample_conv_relu(x, weight, bias, activation=row.activation)


def stock(x, weight, bias, row):
    y = F.conv2d(F.interpolate(x, scale_factor=2), weight, bias, padding=1)
    if row.activation == "none":
        return y
    in_place = {"relu": F.relu_, "leaky_relu": F.leaky_relu_, "sigmoid": F.sigmoid}
    return in_place[row.activation](y)


@rows
def bench_inference(race, row):
    make = functools.partial(inference, row, race.place)
    compiler = inductor(race.place.threads, freezing=True) if race.compile else None
    contenders = lineup(make, fused, stock, compiler=compiler)
    race(f"{row.name}: {row}", contenders, tolerance=_tolerance(race))


@rows
def bench_training_step(race, row):
    make = functools.partial(training_step, row, race.place)
    compiler = inductor(race.place.threads) if race.compile else None
    contenders = lineup(make, fused, stock, compiler=compiler)
    race(f"{row.name}: {row}", contenders, tolerance=_tolerance(race), grad_tolerance=1e-2)


def _tolerance(race):
    return max(1e-4, 4 * race.place.rounding)
