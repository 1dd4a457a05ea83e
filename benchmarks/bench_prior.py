"""The operators of a generator's prior beside their stock equals, forward alone and with backward.

Sequences are as in training: N of 7 x 7 or 8 x 8 codes, D numbers each. Of a feed-forward's hidden
numbers about a sixth exceed the threshold, as in a prior that has learned; in the last row half.
"""

import pytest
import torch
from opponents import inductor, lineup

from imgfast.ops.causal_attention import causal_attention, causal_attention_stock
from imgfast.ops.feed_forward import feed_forward, feed_forward_stock
from imgfast.ops.neighbour_mix import neighbour_mix, neighbour_mix_stock


def _mixed(mix):
    return lambda *arguments: mix(*arguments)[0]


def _normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _feed_forward(n, length, width, threshold=0.97):
    x, up, down = _normal(n, length, width), _normal(4 * width, width), _normal(width, 4 * width)
    return (x, up * width**-0.5, down), (threshold,)


def _causal_attention(n, length, width):
    return (_normal(n, length, 3, width // 32, 32),), (1.5 * 32**-0.5,)


def _neighbour_mix(n, length, width):
    side = round(length**0.5)
    steps = torch.tensor([1, side, side - 1, side + 1])  # the ends of rows have neighbours, too
    places = (torch.arange(length) - steps[:, None]).clamp(min=-1)
    return (_normal(n, length, width), _normal(width), _normal(len(steps), width)), (places,)


OPERATORS = {  # ours, stock, arguments with a gradient and others
    "feed_forward": (feed_forward, feed_forward_stock, _feed_forward),
    "causal_attention": (causal_attention, causal_attention_stock, _causal_attention),
    "neighbour_mix": (_mixed(neighbour_mix), _mixed(neighbour_mix_stock), _neighbour_mix),
}
SIZES = [(32, 49, 96), (64, 64, 256)]
ROWS = [
    *((name, size) for name in OPERATORS for size in SIZES),
    ("feed_forward", (*SIZES[0], 0.0)),
]
rows = pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(*row, id=f"{row[0]}-{'x'.join(map(str, row[1]))}", marks=marks)
        for row in ROWS
        for marks in [[pytest.mark.quick] if row[1] == SIZES[0] else []]
    ],
)


def _race(race, name, size, make_call):
    ours, stock, arguments = OPERATORS[name]
    tensors, others = arguments(*size)
    leaves = [race.place.put(t).requires_grad_() for t in tensors]
    others = [race.place.put(t) if isinstance(t, torch.Tensor) else t for t in others]

    def make(op, wrap, _):
        op = wrap(op)
        return make_call(lambda: op(*leaves, *others), leaves)

    compiler = inductor(race.place.threads) if race.compile else None
    tolerance = max(1e-4, 4 * race.place.rounding)
    contenders = lineup(make, ours, stock, layouts=[""], compiler=compiler)
    race(f"{name} {size}", contenders, tolerance=tolerance, grad_tolerance=tolerance)


@rows
def bench_forward(race, name, size):
    def make_call(value, _):
        return torch.no_grad()(lambda: (value(),))

    _race(race, name, size, make_call)


@rows
def bench_forward_backward(race, name, size):
    def make_call(value, leaves):
        def step():
            y = value()
            return y, *torch.autograd.grad(y, leaves, y)

        return step

    _race(race, name, size, make_call)
