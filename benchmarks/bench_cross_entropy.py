"""cross_entropy beside torch's: forward, and forward and backward, with class targets.

Rows are shapes of the logits; a map of logits (segmentation) is raced in channels_last too.
"""

import pytest
import torch
import torch.nn.functional as F
from opponents import LAYOUTS, inductor, lineup

import imgfast

SHAPES = [(128, 10), (64, 1000), (4096, 1000), (1024, 21841), (65536, 10), (8, 19, 256, 512)]
QUICK = SHAPES[:3]
rows = pytest.mark.parametrize(
    "shape",
    [
        pytest.param(s, id="x".join(map(str, s)), marks=[pytest.mark.quick] if s in QUICK else [])
        for s in SHAPES
    ],
)


def _logits_and_target(shape, memory_format):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, generator=generator)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return x.to(memory_format=memory_format), target


def _race(race, shape, make):
    contenders = lineup(
        make,
        imgfast.cross_entropy,
        F.cross_entropy,
        layouts=LAYOUTS if len(shape) == 4 else [""],
        compiler=inductor(race.threads) if race.compile else None,
    )
    race(str(shape).replace(" ", ""), contenders, tolerance=1e-4, grad_tolerance=1e-4)


@rows
def bench_forward(race, shape):
    def make(op, wrap, memory_format):
        x, target = _logits_and_target(shape, memory_format)
        loss = wrap(op)

        @torch.no_grad()
        def forward():
            return (loss(x, target),)

        return forward

    _race(race, shape, make)


@rows
def bench_forward_backward(race, shape):
    def make(op, wrap, memory_format):
        x, target = _logits_and_target(shape, memory_format)
        x.requires_grad_()
        loss = wrap(op)

        def step():
            y = loss(x, target)
            return y, *torch.autograd.grad(y, x)

        return step

    _race(race, shape, make)
