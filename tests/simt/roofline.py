"""A model of times on GPUs: what the kernels must move and multiply, at the rates of data sheets.

    PYTHONPATH=build_backend:tests/simt:benchmarks python tests/simt/roofline.py

Layers are those of the benchmarks, in bfloat16 and channels_last. Bytes of the device's memory are
checked by the emulator for a few pictures, then taken for the whole batch. A kernel takes the time
of its bytes or of its products, whichever is longer; stock runs one kernel for each operator, each
of which reads and writes whole maps. Nothing here has run on a GPU.
"""

from __future__ import annotations

import math

import conv_relu_pool_input_calls as of_x
import conv_relu_pool_weight_calls as of_weight
import torch
from conv_relu_pool_calls import run
from conv_relu_pool_gradient_calls import Inputs, inputs
from conv_relu_pool_layers import GRID, pair

from imgfast.ops.conv_relu_pool import _bind
from imgfast.ops.conv_relu_pool_route import spec_of

# Dense bfloat16 products in 1e12 operations a second, and memory in 1e12 bytes a second.
GPUS = {"A100": (312, 2.0), "H100": (989, 3.35), "B200": (2250, 8.0)}
BYTES = 2  # of an element; a code is one byte, a stock pool's index is eight


class Layer:
    """Sizes of a row of the benchmarks, in elements."""

    def __init__(self, row):
        self.row, self.trains_x = row, row.c > 4
        self.x, self.y = math.prod(row.x_shape), math.prod(row.y_shape)
        self.weight = math.prod(row.weight_shape)
        self.conv = math.prod(row._replace(pool="none").y_shape)
        self.operations = 2 * self.conv * self.weight / row.k

    def check(self):
        """That the kernels move, for a few pictures, the fewest bytes possible and what their plans
        say: weights in another order, and sums of parts, written and read once."""
        row = self.row._replace(n=max(1, 2**16 // math.prod(self.row.x_shape[1:])))
        fields = ("stride", "padding", "pool", "pool_size", "pool_stride", "pool_padding")
        options = {name: getattr(row, name) for name in fields}
        given = inputs(*row.x_shape, row.k, *pair(row.filter), dtype=torch.bfloat16, **options)
        x, weight, bias, grad_y, _, codes, _ = given
        forward = run(x, weight, bias, profile=True, **options)
        kernels = [
            (forward, (x, weight, bias, grad_y, codes)),
            (of_weight.run(given, profile=True), (grad_y, codes, x, weight, bias)),
        ]
        if self.trains_x:
            kernels.append((of_x.run(given, profile=True), (grad_y, codes, weight, x)))
        for answer, tensors in kernels:
            fewest = sum(t.numel() * t.element_size() for t in tensors)
            moved = 32 * answer.profile.missed_sectors
            assert moved <= 1.02 * (fewest + 2 * answer.plan.workspace), (str(row), moved, fewest)

    def sums_of_parts(self):
        """Bytes that the weight's gradient has in a workspace, of the whole batch."""

        def empty(*shape):
            return torch.empty((), dtype=torch.bfloat16).expand(shape)

        row = self.row
        names = ("stride", "padding", "activation", "pool", "pool_size", "pool_stride")
        spec = spec_of(*_bind(**{name: getattr(row, name) for name in (*names, "pool_padding")}))
        weight, bias = empty(*row.weight_shape).contiguous(), empty(row.k)
        given = Inputs(empty(*row.x_shape), weight, bias, empty(*row.y_shape), None, None, spec)
        return of_weight.run(given, plan_only=True).plan.workspace

    def passes(self, training):
        """(bytes, operations) of each kernel: ours, and stock's."""
        x, y, conv, weight = (BYTES * n for n in (self.x, self.y, self.conv, self.weight))
        codes, indices, work = self.y, 8 * self.y, self.operations
        ours = [(x + weight + y + codes, work)]
        stock = [(x + weight + conv, work), (2 * conv, 0), (2 * conv, 0), (conv + y + indices, 0)]
        if not training:
            return ours, stock
        ours.append((x + y + codes + weight + 2 * self.sums_of_parts(), work))
        stock += [(y + indices + conv, 0), (3 * conv, 0), (conv, 0), (x + conv + weight, work)]
        if self.trains_x:
            ours.append((x + y + codes + weight, work))
            stock.append((x + conv + weight, work))
        return ours, stock


def seconds(passes, gpu):
    operations, bandwidth = (1e12 * rate for rate in GPUS[gpu])
    return sum(max(moved / bandwidth, work / operations) for moved, work in passes)


def main():
    head = ["layer", "sums of parts, MB"]
    head += [f"{gpu} {task}" for gpu in GPUS for task in ("inference", "training")]
    print("| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1))
    for row in GRID:
        layer = Layer(row)
        layer.check()
        cells = [str(row), f"{layer.sums_of_parts() / 1e6:.1f}"]
        for gpu in GPUS:
            for training in (False, True):
                ours, stock = (seconds(passes, gpu) for passes in layer.passes(training))
                cells.append(f"{1e6 * ours:.3g} us, {stock / ours:.1f}")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
