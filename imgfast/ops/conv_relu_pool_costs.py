"""What the passes of a conv_relu_pool cost, directly, by Winograd's algorithm and in stock."""

import enum


class Winograd(enum.IntFlag):
    """Which passes run by Winograd's algorithm, as in csrc/conv_relu_pool.h."""

    FORWARD = 1
    INPUT = 2
    WEIGHT = 4


class Costs:
    """Multiply-adds of a lane of direct and Winograd's kernels for one group, everything else
    counted as the multiply-adds that take the same time."""

    PRODUCT = 1.1  # a multiply-add in the product of a point
    FROM_IMAGE, FROM_GRADIENT = 350, 400  # to transform a tile of one channel
    TO_OUTPUT, TO_ROWS = 200, 260  # of one filter, pooled in registers or in rows; for 36 points
    FILTER, SUMS = 400, 900  # to transform a filter of one channel; sums of a weight gradient to it
    READ, BATCH = 100, 48  # to read a transformed filter of one channel, once in so many tiles
    PACK = 25  # a tap of a direct filter
    SPARSE = 1.1  # a multiply-add in a sparse gradient
    POOL = 100  # stock's pool in each pass, of one output of the convolution
    LIST = 6.7  # per tap of a channel, to add up the filters of one position; 64 filters at a time

    def __init__(self, spec, x_shape, weight_shape, needs_grad):
        self.images = x_shape[0] if len(x_shape) == 4 else 1
        self.taps = max(2, winograd_taps(spec, weight_shape))
        self.stride, self.dilation = spec.stride[0], spec.dilation
        self.filters, self.channels = weight_shape[0] // spec.groups, weight_shape[1]
        self.area = weight_shape[2] * weight_shape[3]
        self.map = x_shape[-2:]
        self.needs_grad = needs_grad  # else filters are packed once, and kept
        self.conv = spec.conv_size(x_shape, weight_shape)
        self.pooled = spec.pool != "none"
        pads = spec.explicit_padding(weight_shape)
        rows, cols = [
            taps_inside(*axis)
            for axis in zip(
                self.map, self.conv, weight_shape[2:], pads, spec.dilation, spec.stride, strict=True
            )
        ]
        self.inside = rows * cols  # products of one channel and filter that lie inside an image
        self.in_registers = spec.pool == "none"
        self.density = 1.0  # of the gradient at the convolution's output
        self.windows, self.positions = self.conv[0] * self.conv[1], 1  # of an image, of a window
        if spec.pool != "none":
            windows = (spec.pool_size, spec.pool_stride, spec.pool_padding, spec.pool_dilation)
            whole = windows == ((2, 2), (2, 2), (0, 0), (1, 1))
            even = self._grid(self.conv)[0] % 2 == 0
            self.in_registers = whole and even and spec.dilation == (1, 1)
            self.windows = self.windows // (spec.pool_stride[0] * spec.pool_stride[1])
            self.positions = spec.pool_size[0] * spec.pool_size[1]
        if spec.pool == "max":
            self.density = 1 / (spec.pool_stride[0] * spec.pool_stride[1])

    def passes(self) -> dict:
        """Of each pass, by Winograd's algorithm and directly."""
        costs = {Winograd.FORWARD: self.forward()}
        if self.needs_grad:
            costs |= {Winograd.INPUT: self.input(), Winograd.WEIGHT: self.weight()}
        return costs

    def ours(self, winograd) -> float:
        """Of all passes, each by the faster algorithm, or directly."""
        return sum(min(costs) if winograd else costs[1] for costs in self.passes().values())

    def stock(self) -> float:
        """Of all passes over the dense gradient and the taps that lie inside the image."""
        passes = 3 if self.needs_grad else 1
        pool = self.POOL * self.conv[0] * self.conv[1] if self.pooled else 0
        return passes * (self.inside * self.channels + pool) * self.images * lanes(self.filters)

    def forward(self) -> tuple[float, float]:
        depth, filters = self.channels * self.stride**2, lanes(self.filters)
        to_output = self.TO_OUTPUT if self.in_registers else self.TO_ROWS
        winograd = self._winograd(self.conv, depth, filters, self.FROM_IMAGE, to_output)
        winograd += self.READ * -(-self._tiles(self.conv) // self.BATCH) * depth * filters
        direct = self.images * self.conv[0] * self.conv[1] * self.area * self.channels * filters
        if self.needs_grad:
            winograd += self.FILTER * depth * filters
            direct += self.PACK * self.area * self.channels * filters
        return winograd, 0.9 * direct

    def input(self) -> tuple[float, float]:
        channels = lanes(self.channels)
        winograd = self._winograd(
            self.map, self.filters, channels, self.FROM_GRADIENT, self.TO_OUTPUT
        )
        reads = -(-self._tiles(self.map) // self.BATCH)
        winograd += (self.FILTER + self.READ * reads) * self.filters * channels
        lists = self.images * self.windows * self.positions * -(-self.filters // 64)
        sparse = self.LIST * lists + self.PACK * self.filters
        return winograd, self.SPARSE * self._sparse() + sparse * self.area * channels

    def weight(self) -> tuple[float, float]:
        filters = lanes(self.filters)
        winograd = self._winograd(
            self.conv, lanes(self.channels), filters, self.FROM_IMAGE, self.FROM_GRADIENT
        )
        winograd += self.SUMS * self.channels * filters
        return winograd, self.SPARSE * self._sparse()

    def products(self, points, sizes) -> int:
        """Of a channel and a filter, as csrc/conv_relu_pool.h counts them."""
        products = points**2
        for size, step in zip(sizes, self.dilation, strict=True):
            block = (points + 1 - self.taps) * step
            products *= size // block * step + min(size % block, step)
        return products

    def _points(self, sizes) -> int:
        """As winograd_points and winograd_forward_points: strided filters have no other pass."""
        if self.taps > 2:
            return 6
        five, six, eight = (self.products(points, sizes) for points in (5, 6, 8))
        fewer = 21 * five <= 20 * six
        if self.stride > 1 and not self.pooled and 10 * eight <= 7 * (five if fewer else six):
            return 8
        return 5 if fewer else 6

    def _grid(self, sizes) -> tuple[int, int, int]:
        """Outputs a side of a tile, its points, and how many tiles there are."""
        points = self._points(sizes)
        tiles = self.images * self.products(points, sizes) // points**2
        return points + 1 - self.taps, points**2, tiles

    def _tiles(self, sizes) -> int:
        return self._grid(sizes)[2]

    def _winograd(self, sizes, channels, filters, of_channel, of_filter) -> float:
        _, points, tiles = self._grid(sizes)
        transforms = of_channel * lanes(channels) + of_filter * filters
        return tiles * points * (self.PRODUCT * channels * filters + transforms / 36)

    def _sparse(self) -> float:
        gradients = self.images * self.density * self.conv[0] * self.conv[1] * self.filters
        return gradients * self.area * lanes(self.channels)


def taps_inside(size, outputs, taps, pad, step, stride) -> int:
    """Pairs of an output and a tap of its filter that reads the image, not the padding, along one
    axis."""
    inside = 0
    for offset in [step * tap - pad for tap in range(taps)]:
        end = min(outputs, (size - 1 - offset) // stride + 1)
        inside += max(0, end - max(0, -(offset // stride)))
    return inside


def lanes(count: int) -> int:
    """Whole vectors of 16."""
    return -(-count // 16) * 16


def winograd_taps(spec, weight_shape) -> int:
    """Taps of one dimension of the unit-stride filters that a strided one falls into."""
    return -(-max(weight_shape[2:]) // spec.stride[0])
