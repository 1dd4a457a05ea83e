"""The layers that are measured, and the two sides of them: conv_relu_pool and stock PyTorch."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from place import CPU


class Row(NamedTuple):
    """``pool(activation(conv2d(x)))`` of a batch; a number stands for a pair of it.

    A first layer, of at most 4 channels, needs no gradient of its input.
    """

    name: str
    n: int
    c: int
    k: int
    size: int | tuple  # H, W
    filter: int | tuple = 3
    stride: int | tuple = 1
    padding: int | tuple = 1
    dilation: int | tuple = 1
    groups: int = 1
    bias: bool = True
    activation: str = "relu"
    pool: str = "max"
    pool_size: int | tuple = 2
    pool_stride: int | tuple | None = None
    pool_padding: int | tuple = 0

    @property
    def x_shape(self):
        return self.n, self.c, *pair(self.size)

    @property
    def weight_shape(self):
        return self.k, self.c // self.groups, *pair(self.filter)

    @property
    def y_shape(self):
        size = _positions(self.size, self.filter, self.stride, self.padding, self.dilation)
        if self.pool != "none":
            stride = self.pool_stride or self.pool_size
            size = _positions(size, self.pool_size, stride, self.pool_padding)
        return self.n, self.k, *size

    def __str__(self):
        text = f"{self.n} x {self.c}->{self.k} @{_by(self.size)}, {_by(pair(self.filter))}"
        text += f"/{_by(self.stride)}" if self.stride != 1 else ""
        text += f", padding {_by(self.padding)}" if self.padding != 1 else ""
        text += f", dilation {_by(self.dilation)}" if self.dilation != 1 else ""
        text += f", {self.groups} groups" if self.groups != 1 else ""
        text += ", no bias" if not self.bias else ""
        text += f", {self.activation}" if self.activation != "relu" else ""
        if self.pool == "none":
            return text + ", no pool"
        pool = f"{self.pool} {_by(self.pool_size)}/{_by(self.pool_stride or self.pool_size)}"
        pool += f" padding {_by(self.pool_padding)}" if self.pool_padding else ""
        return text + (f", {pool}" if pool != "max 2/2" else "")


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _positions(size, window, stride, padding, dilation=1):
    """Along each axis, the places that a window (a filter or a pool) takes."""
    axes = zip(*map(pair, (size, window, stride, padding, dilation)), strict=True)
    return tuple((n + 2 * p - d * (w - 1) - 1) // s + 1 for n, w, s, p, d in axes)


def _by(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


GRID = [
    Row("mnist1", 128, 1, 32, 28),
    Row("mnist2", 128, 32, 64, 14),
    Row("cifar1", 128, 3, 64, 32),
    Row("cifar2", 128, 64, 128, 32),
    Row("cifar3", 128, 128, 256, 16),
    Row("vgg", 32, 64, 64, 56),
    Row("vgg-1", 1, 64, 64, 56),
    Row("stem", 32, 3, 64, 224, 7, 2, 3, pool_size=3, pool_stride=2, pool_padding=1),
    Row("stem-1", 1, 3, 64, 224, 7, 2, 3, pool_size=3, pool_stride=2, pool_padding=1),
]

# Shapes that no kernel has been laid out for: one trait or two of the grid's are changed in each.
OFF_GRID = [
    Row("odd", 32, 17, 33, 29),
    Row("odd-5x5", 16, 13, 47, 61, 5, 1, 2),
    Row("rgb-odd", 16, 3, 24, 97),
    Row("wide", 8, 32, 32, (16, 512)),
    Row("tall", 8, 16, 32, (257, 20)),
    Row("tiny", 256, 64, 64, 6),
    Row("huge", 2, 16, 16, 512),
    Row("lenet1", 128, 1, 6, 28, 5, 1, 2),
    Row("lenet2", 128, 6, 16, 14, 5, 1, 0),
    Row("alexnet1", 16, 3, 64, 224, 11, 4, 2, pool_size=3, pool_stride=2),
    Row("alexnet2", 16, 64, 192, 27, 5, 1, 2, pool_size=3, pool_stride=2),
    Row("1x1", 32, 128, 128, 28, 1, 1, 0),
    Row("1x7", 16, 32, 32, 35, (1, 7), 1, (0, 3)),
    Row("5x5", 64, 32, 64, 16, 5, 1, 2),
    Row("7x7", 8, 16, 32, 96, 7, 2, 3, pool_size=3, pool_stride=2, pool_padding=1),
    Row("stride-2", 32, 32, 64, 56, 3, 2),
    Row("dilated", 16, 32, 64, 32, 3, 1, 2, dilation=2),
    Row("no-padding", 64, 32, 32, 32, padding=0),
    Row("pool-3", 32, 32, 64, 27, pool_size=3),
    Row("pool-3-2", 32, 32, 64, 28, pool_size=3, pool_stride=2, pool_padding=1),
    Row("no-pool", 32, 64, 64, 28, pool="none"),
    Row("avg", 32, 64, 64, 28, pool="avg"),
    Row("avg-global", 64, 128, 128, 8, pool="avg", pool_size=8),
    Row("linear", 32, 32, 64, 28, bias=False, activation="none"),
    Row("leaky", 32, 32, 64, 28, activation="leaky_relu"),
    Row("sigmoid", 32, 32, 64, 28, activation="sigmoid"),
    Row("silu", 32, 32, 64, 28, activation="silu", pool="none"),
    Row("grouped", 32, 128, 128, 28, groups=4),
    Row("depthwise", 32, 128, 128, 28, groups=128),
    Row("batch-1", 1, 32, 64, 28),
    Row("batch-1-hd", 1, 64, 128, 112),
    Row("deep-14", 32, 256, 256, 14),
    Row("deep-8", 64, 256, 512, 8),
    Row("deep-8-512", 32, 512, 512, 8),
    Row("deep-7", 32, 512, 512, 7),
]
QUICK = {"mnist1", "mnist2", "vgg-1", "stem-1", "odd", "lenet2", "avg", "batch-1"}


def fused():
    """imgfast's side. Called for, since a process that measures stock's memory has no imgfast."""
    from imgfast import conv_relu_pool

    def op(x, weight, bias, row):
        return conv_relu_pool(
            x,
            weight,
            bias,
            row.stride,
            row.padding,
            row.dilation,
            row.groups,
            activation=row.activation,
            pool=row.pool,
            pool_size=row.pool_size,
            pool_stride=row.pool_stride,
            pool_padding=row.pool_padding,
        )

    return op


_IN_PLACE = {  # a map less to write: stock at its best
    "none": lambda y: y,
    "relu": F.relu_,
    "leaky_relu": F.leaky_relu_,
    "sigmoid": torch.sigmoid_,
    "silu": lambda y: F.silu(y, inplace=not y.requires_grad),  # its gradient needs its input
}


def stock(x, weight, bias, row):
    y = F.conv2d(x, weight, bias, row.stride, row.padding, row.dilation, row.groups)
    y = _IN_PLACE[row.activation](y)
    if row.pool == "none":
        return y
    pool = F.max_pool2d if row.pool == "max" else F.avg_pool2d
    return pool(y, row.pool_size, row.pool_stride, row.pool_padding)


class Layer(torch.nn.Module):
    """The row's layer over ``op``: a module, since only a module's weights can be frozen."""

    def __init__(self, row, op, memory_format=torch.contiguous_format, place=CPU):
        super().__init__()
        self.row, self.op = row, op
        generator = torch.Generator().manual_seed(0)
        fan_in = math.prod(row.weight_shape[1:])
        weight = torch.randn(row.weight_shape, generator=generator) / fan_in**0.5
        self.weight = torch.nn.Parameter(place.put(weight.to(memory_format=memory_format)))
        self.bias = None
        if row.bias:
            bias = torch.randn(row.k, generator=generator) / 4
            self.bias = torch.nn.Parameter(place.put(bias))

    def forward(self, x):
        return self.op(x, self.weight, self.bias, self.row)


def input_of(row, memory_format=torch.contiguous_format, place=CPU):
    x = torch.randn(row.x_shape, generator=torch.Generator().manual_seed(1))
    return place.put(x.to(memory_format=memory_format))


def inference(row, place, op, wrap, memory_format):
    """A call that gives ``(y,)``; ``wrap`` goes around the layer."""
    layer = wrap(Layer(row, op, memory_format, place).eval())
    x = input_of(row, memory_format, place)

    @torch.no_grad()
    def infer():
        return (layer(x),)

    return infer


def training_step(row, place, op, wrap, memory_format):
    """A call, forward and backward, that gives the output and the gradients."""
    layer = Layer(row, op, memory_format, place)
    x = input_of(row, memory_format, place).requires_grad_(row.c > 4)
    grad_y = torch.randn(row.y_shape, generator=torch.Generator().manual_seed(2))
    grad_y = place.put(grad_y.to(memory_format=memory_format))
    wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
    layer = wrap(layer)

    def step():
        y = layer(x)
        return y, *torch.autograd.grad(y, wanted, grad_y)

    return step
