"""What the passes of an upsample_conv_relu cost, directly and by Winograd's algorithm."""

from imgfast.ops.conv_relu_pool_costs import Costs, lanes

DIRECT_TAPS = 16  # of one position: 2 x 2 of each parity


def products(points, height, width) -> int:
    """Of a channel and a filter, as csrc/cpu/upsample_conv_relu.h counts them."""
    held = points - 1
    return (2 * points - 1) ** 2 * -(-height // held) * -(-width // held)


def winograd_points(height, width) -> int:
    """As upsample_points of csrc/cpu/upsample_conv_relu.h."""
    points = min((5, 6), key=lambda count: products(count, height, width))
    fewer = 10 * products(8, height, width) <= 7 * products(points, height, width)
    return 8 if fewer else points


def forward(images, channels, height, width, filters) -> tuple[float, float]:
    """Multiply-adds of a lane, everything else counted as those that take the same time: by
    Winograd's algorithm and directly. Filters are packed in every call."""
    points, tiles, of_tile, of_points = _sizes(images, height, width)
    padded = lanes(filters)
    winograd = tiles * (
        of_tile * Costs.PRODUCT * channels * padded
        + (Costs.FROM_IMAGE * points**2 * lanes(channels) + Costs.TO_OUTPUT * of_tile * padded) / 36
    )
    winograd += _filters(tiles, of_points) * channels * padded
    direct = DIRECT_TAPS * (0.9 * images * height * width + Costs.PACK) * channels * padded
    return winograd, direct


def backward(images, channels, height, width, filters) -> tuple[float, float]:
    """The same of all gradients."""
    points, tiles, of_tile, of_points = _sizes(images, height, width)
    padded = lanes(channels)
    winograd = tiles * (
        of_tile * 2 * Costs.PRODUCT * filters * padded
        + (
            Costs.FROM_GRADIENT * of_tile * lanes(filters)
            + (Costs.FROM_IMAGE + Costs.TO_OUTPUT) * points**2 * padded
        )
        / 36
    )
    winograd += (_filters(tiles, of_points) + Costs.SUMS * of_points) * filters * padded
    gradients = 0.9 + Costs.SPARSE
    direct = DIRECT_TAPS * (gradients * images * height * width + Costs.PACK) * filters * padded
    return winograd, direct


def _sizes(images, height, width) -> tuple[int, int, int, float]:
    """Points of a dimension, tiles, products of a tile, and these in units of 36 points."""
    points = winograd_points(height, width)
    of_tile = (2 * points - 1) ** 2
    return points, images * products(points, height, width) // of_tile, of_tile, of_tile / 36


def _filters(tiles, of_points) -> float:
    """To transform a filter of one channel, and to read it once in a batch of tiles."""
    return of_points * (Costs.FILTER + Costs.READ * -(-tiles // Costs.BATCH))
