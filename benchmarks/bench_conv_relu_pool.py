"""conv_relu_pool beside conv2d, relu and max_pool2d: inference and training step of one layer.

The training step is forward and backward. As in a network, a first layer (of at most 4 channels)
needs no gradient of its input, for neither side. Inductor freezes the weights for inference.
"""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from opponents import inductor, lineup

import imgfast


class Row(NamedTuple):
    name: str
    n: int
    c: int
    k: int
    size: int  # H = W
    conv: tuple  # filter, stride, padding
    pool: tuple  # size, stride, padding


ROWS = [
    Row("mnist1", 128, 1, 32, 28, (3, 1, 1), (2, 2, 0)),
    Row("mnist2", 128, 32, 64, 14, (3, 1, 1), (2, 2, 0)),
    Row("cifar1", 128, 3, 64, 32, (3, 1, 1), (2, 2, 0)),
    Row("cifar2", 128, 64, 128, 32, (3, 1, 1), (2, 2, 0)),
    Row("cifar3", 128, 128, 256, 16, (3, 1, 1), (2, 2, 0)),
    Row("vgg", 32, 64, 64, 56, (3, 1, 1), (2, 2, 0)),
    Row("vgg-1", 1, 64, 64, 56, (3, 1, 1), (2, 2, 0)),
    Row("stem", 32, 3, 64, 224, (7, 2, 3), (3, 2, 1)),
    Row("stem-1", 1, 3, 64, 224, (7, 2, 3), (3, 2, 1)),
]
QUICK = ("mnist1", "mnist2", "vgg-1", "stem-1")
rows = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.quick] if row.name in QUICK else [])
        for row in ROWS
    ],
)


def _fused(x, weight, bias, stride, padding, pool):
    size, pool_stride, pool_padding = pool
    return imgfast.conv_relu_pool(
        x,
        weight,
        bias,
        stride,
        padding,
        pool_size=size,
        pool_stride=pool_stride,
        pool_padding=pool_padding,
    )


def _stock(x, weight, bias, stride, padding, pool):
    return F.max_pool2d(F.relu(F.conv2d(x, weight, bias, stride, padding)), *pool)


class Layer(torch.nn.Module):
    """The row's layer over ``op``: a module, since only a module's weights can be frozen."""

    def __init__(self, op, row, memory_format, generator):
        super().__init__()
        r, self.stride, self.padding = row.conv
        self.op, self.pool = op, row.pool
        weight = torch.randn(row.k, row.c, r, r, generator=generator) / (row.c * r * r) ** 0.5
        bias = torch.randn(row.k, generator=generator) / 4
        self.weight = torch.nn.Parameter(weight.to(memory_format=memory_format))
        self.bias = torch.nn.Parameter(bias)

    def forward(self, x):
        return self.op(x, self.weight, self.bias, self.stride, self.padding, self.pool)


def _layer_and_input(op, row, memory_format):
    generator = torch.Generator().manual_seed(0)
    layer = Layer(op, row, memory_format, generator)
    x = torch.randn(row.n, row.c, row.size, row.size, generator=generator)
    return layer, x.to(memory_format=memory_format)


@rows
def bench_inference(race, row):
    def make(op, wrap, memory_format):
        layer, x = _layer_and_input(op, row, memory_format)
        layer = wrap(layer.eval())

        @torch.no_grad()
        def infer():
            return (layer(x),)

        return infer

    compiler = inductor(race.threads, freezing=True) if race.compile else None
    race(row.name, lineup(make, _fused, _stock, compiler=compiler), tolerance=1e-4)


@rows
def bench_training_step(race, row):
    def make(op, wrap, memory_format):
        layer, x = _layer_and_input(op, row, memory_format)
        x.requires_grad_(row.c > 4)
        with torch.no_grad():
            shape = layer(x).shape
        grad_y = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        grad_y = grad_y.to(memory_format=memory_format)
        wanted = [t for t in (x, layer.weight, layer.bias) if t.requires_grad]
        layer = wrap(layer)

        def step():
            y = layer(x)
            return y, *torch.autograd.grad(y, wanted, grad_y)

        return step

    compiler = inductor(race.threads) if race.compile else None
    contenders = lineup(make, _fused, _stock, compiler=compiler)
    race(row.name, contenders, tolerance=1e-4, grad_tolerance=1e-2)
