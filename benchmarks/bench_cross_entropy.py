"""cross_entropy beside torch's: forward, and forward and backward, with class targets.

Rows are shapes of the logits; a map of logits (segmentation) is raced in channels_last too. Rows
off the grid (``-k off_grid``, or ``-k "not off_grid"``) have tables of their own.
"""

import pytest
import torch
import torch.nn.functional as F
from opponents import LAYOUTS, inductor, lineup

import imgfast

SHAPES = [(128, 10), (64, 1000), (4096, 1000), (1024, 21841), (65536, 10), (8, 19, 256, 512)]
QUICK = SHAPES[:3]
OFF_GRID = [
    (4096, 7),  # few classes, many rows
    (100000, 3),
    (20000, 33),  # between transposing and rows
    (32768, 100),  # data sets of 100, 101, 365, 1000 classes
    (4096, 101),
    (8192, 365),
    (256, 1000),
    (2048, 129),  # one more than a power of two
    (777, 513),
    (300, 4099),  # many classes, an odd number
    (64, 50257),
    (16, 250000),
    (1, 1000000),  # a single row
    (16, 2, 256, 256),  # segmentation
    (4, 21, 130, 130),
    (2, 150, 128, 128),
    (8, 5, 1000),  # a sequence of positions
]


def _param(shape):
    marks = [pytest.mark.quick] if shape in QUICK else []
    if shape in OFF_GRID:
        marks.append(pytest.mark.off_grid)
    return pytest.param(shape, id="x".join(map(str, shape)), marks=marks)


rows = pytest.mark.parametrize("shape", [_param(shape) for shape in SHAPES + OFF_GRID])


def _logits_and_target(shape, place, memory_format):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, generator=generator)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return place.put(x.to(memory_format=memory_format)), place.put(target)


def _race(race, shape, make):
    contenders = lineup(
        make,
        imgfast.cross_entropy,
        F.cross_entropy,
        layouts=LAYOUTS if len(shape) == 4 else [""],
        compiler=inductor(race.place.threads) if race.compile else None,
    )
    tolerance = max(1e-4, 4 * torch.finfo(race.place.dtype).eps)
    race(str(shape).replace(" ", ""), contenders, tolerance=tolerance, grad_tolerance=tolerance)


@rows
def bench_forward(race, shape):
    def make(op, wrap, memory_format):
        x, target = _logits_and_target(shape, race.place, memory_format)
        loss = wrap(op)

        @torch.no_grad()
        def forward():
            return (loss(x, target),)

        return forward

    _race(race, shape, make)


@rows
def bench_forward_backward(race, shape):
    def make(op, wrap, memory_format):
        x, target = _logits_and_target(shape, race.place, memory_format)
        x.requires_grad_()
        loss = wrap(op)

        def step():
            y = loss(x, target)
            return y, *torch.autograd.grad(y, x)

        return step

    _race(race, shape, make)
