"""A step of Muon beside the same in stock operators: the matrices of a generator's prior, and the
filters of classifiers.

Weights are copied first, on both sides, so that every step begins alike.
"""

import pytest
import torch
from opponents import lineup

from imgfast.ops.muon import muon_, muon_stock_

ROWS = {
    "prior": [(384, 96), (96, 384)] * 5 + [(288, 96), (96, 96)] * 2,
    "tokenizer": [
        (32, 1, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3), (32, 64, 3, 3),
        (24, 32, 3, 3),
    ],
    "tiny": [(32, 1, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3)],
    "wide": [
        (64, 1, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3),
        (256, 256, 3, 3),
    ],
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", ROWS)
def bench_step(race, name):
    generator = torch.Generator().manual_seed(0)
    weights, grads, averages = (
        [race.place.put(torch.randn(shape, generator=generator)) for shape in ROWS[name]]
        for _ in range(3)
    )

    def make(step, wrap, _):
        step = wrap(step)

        def call():
            moved = [weight.clone() for weight in weights]
            step(moved, grads, [average.clone() for average in averages], 0.1)
            return tuple(moved)

        return call

    contenders = lineup(make, muon_, muon_stock_, layouts=[""], compiler=None)
    race(name, contenders, tolerance=1e-3, grad_tolerance=1e-3)
