"""linear_cross_entropy: a linear layer and cross_entropy as one operator."""

from functools import partial

import torch
import torch.nn.functional as F

from imgfast.ops import linear_cross_entropy_autograd as autograd
from imgfast.ops import linear_cross_entropy_route as route
from imgfast.ops.cross_entropy import cross_entropy

_NO_CLASS = -100  # what torch takes an ignore_index of None for


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
        - On CUDA, calls of each kind of up to 1 GB of logits are timed once beside torch's
          function, and the faster of the two runs from then on; larger ones never hold them. What
          may not be timed, and torch.compile, run torch's. A target that is no class ends in an
          assertion of the device, as in torch.
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
    tensors = (input, linear_weight, linear_bias, target, weight)
    compiling = torch.compiler.is_compiling()
    plain = compiling or route.is_plain(*tensors)
    if not plain or not route.has_right_shapes(*tensors[:4], ignore_index):
        return _stock(*tensors, reduction, ignore_index, label_smoothing)
    if route.is_small(target, linear_weight):
        return _composition(*tensors, reduction, ignore_index, label_smoothing)
    options = route.tile_options(
        *tensors,
        reduction=reduction,
        ignore_index=_NO_CLASS if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing,
    )
    if options is None:
        return _composition(*tensors, reduction, ignore_index, label_smoothing)
    if input.is_cpu:
        call = autograd.call_operator if compiling else autograd.run
        return call(*tensors, options)
    run_kernel = partial(autograd.run, options=options)
    run_stock = partial(
        _stock, reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    if not compiling and route.kernel_wins(*tensors, options, run_kernel, run_stock):
        return run_kernel(*tensors)
    return run_stock(*tensors)


def _composition(
    input, linear_weight, linear_bias, target, weight, reduction, ignore_index, label_smoothing
):
    """Of torch's linear layer and our loss."""
    return cross_entropy(
        F.linear(input, linear_weight, linear_bias),
        target,
        weight,
        ignore_index=_NO_CLASS if ignore_index is None else ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _stock(
    input, linear_weight, linear_bias, target, weight, reduction, ignore_index, label_smoothing
):
    """torch's own function; it is missing from older versions."""
    function = getattr(F, "linear_cross_entropy", None)
    if function is not None:
        return function(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = F.linear(input, linear_weight.flatten(0, -2), bias)
    return F.cross_entropy(
        logits.unflatten(-1, linear_weight.shape[:-1]),
        target,
        weight,
        reduction=reduction,
        ignore_index=_NO_CLASS if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing,
    )
