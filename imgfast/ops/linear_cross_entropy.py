"""linear_cross_entropy: a linear layer and cross_entropy as one operator."""

import torch
import torch.nn.functional as F

from imgfast.ops import linear_cross_entropy_autograd as autograd
from imgfast.ops import linear_cross_entropy_tiles as tiles
from imgfast.ops.cross_entropy import cross_entropy
from imgfast.ops.cross_entropy_route import DTYPES, HALVES, PLAIN, REDUCTIONS, are_options_right

SMALL = 1 << 20  # logits up to which the composition is faster


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
):
    """Equals ``cross_entropy(input @ linear_weight.T + linear_bias, target, ...)``, without ever
    holding all N x C logits if those are many.

    That is ``torch.nn.functional.linear_cross_entropy`` of the same arguments. Logits are computed
    a tile at a time, and the maximum and the sum of exponentials of a row go from tile to tile;
    backward computes logits again, except for the first 128 MB, which are kept and become gradients
    in place.

    Args:
        input: ``[N, D]`` or ``[D]``; float32, float64, bfloat16 or float16.
        linear_weight: ``[C, D]``, or ``[C, d1, ..., D]``, in the dtype of ``input``.
        target: class indices ``[N]``, ``[]`` or ``[N, d1, ...]``, int64; or probabilities
            ``[N, C]``, ``[C]`` or ``[N, C, d1, ...]``, which are differentiable.
        linear_bias: ``[C]`` or ``[C, d1, ...]``, or None.
        weight: ``[C]``, a weight for every class, or None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: the class target of rows that do not count; None is -100.
        label_smoothing: in ``[0, 1]``, the share of the target that is spread over all classes.

    Returns:
        A scalar, or for ``"none"`` a loss per row in the shape of class targets; of the dtype of
        ``input``, float32 under autocast.

    Raises:
        What torch.nn.functional.linear_cross_entropy raises for the same arguments, word for word
        (where torch has none, what linear and cross_entropy raise); so ``IndexError`` for a target
        that is no class.

    Note:
        - Memory beside arguments and gradients: five numbers a row, up to 128 MB of logits between
          forward and backward, a tile (4 MB for each thread, 64 MB at most) and what its
          elementwise work takes; for bfloat16 and float16 a float32 sum of the gradient at
          ``input``.
          The kept logits are let go by backward, or with the loss; hooks on saved tensors do not
          see them.
        - Only the gradients that are asked for are computed.
        - bfloat16 and float16: the products are torch's, their results bfloat16 and float16;
          softmax, loss, and sums over tiles are float32. Under autocast weights are cast a tile at
          a time.
        - Deterministic: the same bits for the same arguments on the same number of threads.
        - Small heads, those with ``[D]`` or ``[C, d1, ..., D]``, and probability targets or class
          weights that require grad, run as the composition, and so do second derivatives. Other
          devices and tensor subclasses, ``torch.func`` transforms and forward-mode derivatives run
          torch's own function. All of these hold all logits.
        - Under ``torch.compile`` and export, heads with up to 128 MB of logits run as the
          composition, and larger ones keep none.

    Source:
        M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018);
        E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024).
    """
    options = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
    compiling = torch.compiler.is_compiling()
    plain = compiling or is_plain(input, linear_weight, target, linear_bias, weight)
    if not plain or not _has_right_shapes(input, linear_weight, target, linear_bias, ignore_index):
        return _stock(input, linear_weight, target, linear_bias, ignore_index, options)
    if ignore_index is None:
        ignore_index = -100
    chosen = None
    if not is_small(target, linear_weight):
        chosen = tile_options(
            input, linear_weight, linear_bias, target, ignore_index=ignore_index, **options
        )
    if chosen is None:
        logits = F.linear(input, linear_weight, linear_bias)
        return cross_entropy(logits, target, ignore_index=ignore_index, **options)
    call = autograd.call_operator if compiling else autograd.run
    return call(input, linear_weight, linear_bias, target, weight, chosen)


def _stock(input, linear_weight, target, linear_bias, ignore_index, options):
    """torch's own function; it is missing from older versions."""
    function = getattr(F, "linear_cross_entropy", None)
    if function is not None:
        return function(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            ignore_index=ignore_index,
            **options,
        )
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = F.linear(input, linear_weight.flatten(0, -2), bias)
    return F.cross_entropy(
        logits.unflatten(-1, linear_weight.shape[:-1]),
        target,
        ignore_index=-100 if ignore_index is None else ignore_index,
        **options,
    )


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
    *,
    weight,
    reduction,
    ignore_index,
    label_smoothing,
    margin=None,
):
    """The :class:`tiles.Options` of a call whose shapes are right; or None if it should run as a
    composition, which answers for mistakes, too."""
    float_loss = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if float_loss else input.dtype

    def fits(t):
        """Of the products' dtype, or autocast gives it that."""
        return t.is_cpu and (
            t.dtype == dtype or (float_loss and (t.dtype in HALVES or t.dtype == torch.float32))
        )

    if not (
        dtype in DTYPES
        and fits(input)
        and fits(linear_weight)
        and (linear_bias is None or fits(linear_bias))
        and target.is_cpu
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


def _has_right_shapes(input, linear_weight, target, linear_bias, ignore_index):
    """Of a linear layer, and rows with class or probability targets."""
    shape, weight_shape, target_shape = input.shape, linear_weight.shape, target.shape
    return (
        len(shape) == 2
        and len(weight_shape) == 2
        and shape[1] == weight_shape[1]
        and (linear_bias is None or linear_bias.shape == weight_shape[:1])
        and (
            target_shape == shape[:1]
            or (
                target_shape == (shape[0], weight_shape[0])
                and ignore_index is None
                and target.is_floating_point()
            )
        )
    )


def is_plain(input, linear_weight, target, linear_bias, weight):
    """Tensors and no subclass, and nobody watching who sees through torch's own operators only."""
    return (
        type(input) in PLAIN
        and type(linear_weight) in PLAIN
        and type(target) in PLAIN
        and (linear_bias is None or type(linear_bias) in PLAIN)
        and (weight is None or type(weight) in PLAIN)
        and input.layout is linear_weight.layout is torch.strided
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )
