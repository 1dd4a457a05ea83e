"""Which calls of linear_cross_entropy, and of the margin losses, go a tile at a time: those whose
arguments are right, and that have logits enough. On CUDA as cuda_route.py says, except where the
composition's logits would not be small change: memory is what these functions are for.
"""

import torch
from torch.autograd import forward_ad

from imgfast.ops import autocast, cuda_route
from imgfast.ops import linear_cross_entropy_tiles as tiles
from imgfast.ops.cross_entropy_route import DTYPES, HALVES, PLAIN, REDUCTIONS, are_options_right

SMALL = 1 << 20  # logits up to which the composition is faster
LARGE_BYTES = 1 << 30  # of logits that are not held even for a timing
_STRIDED = torch.strided
_in_functorch = torch._C._are_functorch_transforms_active


def is_small(target, linear_weight):
    """Whether the composition is faster: a tile's worth of logits, or under torch.compile as many
    as would be kept."""
    logits = target.shape[0] * linear_weight.shape[0]
    if torch.compiler.is_compiling():
        return logits * linear_weight.dtype.itemsize <= tiles.KEPT_BYTES
    return logits <= SMALL


def tile_options(
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    *,
    reduction,
    ignore_index,
    label_smoothing,
    margin=None,
):
    """The :class:`tiles.Options` of a call whose shapes are right; or None if it should run as a
    composition, which answers for mistakes, too."""
    device = input.device
    float_loss = autocast.is_active(input)
    dtype = torch.get_autocast_dtype(device.type) if float_loss else input.dtype

    def fits(t):
        """Of the products' dtype, or autocast gives it that."""
        return t.device == device and (
            t.dtype == dtype or (float_loss and (t.dtype in HALVES or t.dtype == torch.float32))
        )

    if not (
        (input.is_cpu or (cuda_route.HAS_KERNELS and input.is_cuda and dtype != torch.float64))
        and dtype in DTYPES
        and fits(input)
        and fits(linear_weight)
        and (linear_bias is None or fits(linear_bias))
        and target.device == device
        and (
            target.dtype == torch.int64
            or (target.dim() == 2 and fits(target) and not target.requires_grad)
        )
        and are_options_right(reduction, ignore_index, label_smoothing)
    ):
        return None
    if weight is not None and not (
        fits(weight) and weight.shape == linear_weight.shape[:1] and not weight.requires_grad
    ):
        return None
    return tiles.Options(
        REDUCTIONS[reduction],
        ignore_index,
        label_smoothing if label_smoothing > 0 else 0.0,
        float_loss,
        dtype,
        margin,
    )


def has_right_shapes(input, linear_weight, linear_bias, target, ignore_index):
    """Of a linear layer, and rows with class or probability targets."""
    shape, weight_shape, target_shape = input.shape, linear_weight.shape, target.shape
    if len(shape) != 2 or len(weight_shape) != 2:
        return False
    (rows, features), (classes, weight_features) = shape, weight_shape
    if features != weight_features:
        return False
    if linear_bias is not None and linear_bias.shape != (classes,):
        return False
    if len(target_shape) == 1:
        return target_shape[0] == rows
    return target_shape == (rows, classes) and ignore_index is None and target.is_floating_point()


def is_plain(input, linear_weight, linear_bias, target, weight):
    """Tensors and no subclass, and nobody watching who sees through torch's own operators only."""
    return (
        type(input) in PLAIN
        and type(linear_weight) in PLAIN
        and type(target) in PLAIN
        and (linear_bias is None or type(linear_bias) in PLAIN)
        and (weight is None or type(weight) in PLAIN)
        and input.layout is linear_weight.layout is _STRIDED
        and not _in_functorch()
        and forward_ad._current_level < 0
    )


def kernel_wins(input, linear_weight, linear_bias, target, weight, options, run_kernel, run_stock):
    """Which of the two is to run on CUDA, of functions of the five tensors. Calls of as many rows,
    but for a factor of 2, are of one kind."""
    rows, classes = target.shape[0], linear_weight.shape[0]
    if rows * classes * options.dtype.itemsize > LARGE_BYTES:
        return True
    tensors = (input, linear_weight, linear_bias, target, weight)
    kind = (
        "linear_cross_entropy",
        input.device,
        linear_weight.shape,
        rows.bit_length(),
        tuple(None if t is None else t.dtype for t in tensors),
        options._replace(ignore_index=0),
        cuda_route.needs_grad(tensors),
    )
    return cuda_route.kernel_wins(kind, run_kernel, run_stock, tensors)
