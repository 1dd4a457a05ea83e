"""arcface_loss, cosface_loss: cross_entropy of cosines with a margin, as one operator."""

import math
from functools import partial

import torch

from imgfast.ops import linear_cross_entropy_autograd as autograd
from imgfast.ops import linear_cross_entropy_route as route
from imgfast.ops.cross_entropy import cross_entropy
from imgfast.ops.margins import Margin, margin_logits


def arcface_loss(
    input,
    linear_weight,
    target,
    *,
    margin=0.5,
    scale=64.0,
    weight=None,
    reduction="mean",
    ignore_index=-100,
    label_smoothing=0.0,
):
    """Equals ``cross_entropy(scale * cosines, target, ...)``, where ``cosines = normalize(input) @
    normalize(linear_weight).T`` but ``cos(theta + margin)`` in place of each row's cosine
    ``cos(theta)`` with its own class.

    Where ``theta + margin > pi``, ``cos(theta) - margin * sin(margin)`` takes its place. As in
    :func:`imgfast.linear_cross_entropy`, neither all logits nor a normalised copy of
    ``linear_weight`` is ever held.

    Args:
        input: features ``[N, D]``; float32, float64, bfloat16 or float16. Rows are divided by
            their norm.
        linear_weight: ``[C, D]``, a vector for each class, divided by its norm.
        target: class indices ``[N]``, int64.
        margin: in radians, ``0 <= margin < pi``.
        scale: what the cosines are multiplied by.
        weight, reduction, ignore_index, label_smoothing: as in :func:`imgfast.cross_entropy`.

    Returns:
        A scalar, or ``[N]`` for ``"none"``; of the dtype of ``input``, float32 under autocast.

    Raises:
        RuntimeError: shapes do not fit, or ``target`` is not int64.
        ValueError: ``margin`` or ``scale`` is out of its range.
        IndexError: a target that is no class.

    Note:
        - The gradient is the true one: that of cos(theta + margin) by cos(theta) is
          ``sin(theta + margin) / sin(theta)``. Where it is infinite, in theta = 0, it is taken for
          cos(margin).
        - Vectors shorter than 1e-12 are divided by 1e-12, as in torch.nn.functional.normalize.
        - Memory, derivatives of higher order and what runs as a composition of torch's operators:
          as in :func:`imgfast.linear_cross_entropy`.

    Source:
        J. Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (2019),
        eq. 3.
    """
    if not 0 <= margin < math.pi:
        raise ValueError(f"arcface_loss: margin must be at least 0 and below pi, got {margin}")
    return _margin_loss(
        "arcface_loss",
        input,
        linear_weight,
        target,
        Margin("arcface", margin, scale),
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def cosface_loss(
    input,
    linear_weight,
    target,
    *,
    margin=0.35,
    scale=64.0,
    weight=None,
    reduction="mean",
    ignore_index=-100,
    label_smoothing=0.0,
):
    """Equals ``cross_entropy(scale * cosines, target, ...)``, where ``cosines = normalize(input) @
    normalize(linear_weight).T`` but ``cos(theta) - margin`` in place of each row's cosine
    ``cos(theta)`` with its own class.

    Args:
        margin: taken off the cosine, at least 0.
        others: those of :func:`imgfast.arcface_loss`, as are result, errors and notes.

    Source:
        H. Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition" (2018), eq. 4.
    """
    if not 0 <= margin < math.inf:
        raise ValueError(f"cosface_loss: margin must be at least 0 and finite, got {margin}")
    return _margin_loss(
        "cosface_loss",
        input,
        linear_weight,
        target,
        Margin("cosface", margin, scale),
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def _margin_loss(name, input, linear_weight, target, margin, weight, **options):
    _check(name, input, linear_weight, target, margin)
    tensors = (input, linear_weight, None, target, weight)
    compiling = torch.compiler.is_compiling()
    chosen = None
    if (compiling or route.is_plain(*tensors)) and not route.is_small(target, linear_weight):
        chosen = route.tile_options(*tensors, margin=margin, **options)
    run_composition = partial(_composition, margin=margin, **options)
    if chosen is None:
        return run_composition(*tensors)
    if input.is_cpu:
        call = autograd.call_operator if compiling else autograd.run
        return call(*tensors, chosen)
    run_kernel = partial(autograd.run, options=chosen)
    if not compiling and route.kernel_wins(*tensors, chosen, run_kernel, run_composition):
        return run_kernel(*tensors)
    return run_composition(*tensors)


def _composition(input, linear_weight, linear_bias, target, weight, margin, **options):
    logits = margin_logits(input, linear_weight, target, margin)
    return cross_entropy(logits, target, weight, **options)


def _check(name, input, linear_weight, target, margin):
    if not 0 < margin.scale < math.inf:
        raise ValueError(f"{name}: scale must be positive and finite, got {margin.scale}")
    if input.dim() != 2 or linear_weight.dim() != 2 or input.shape[1] != linear_weight.shape[1]:
        raise RuntimeError(
            f"{name}: input must be [N, D] and linear_weight [C, D], got {list(input.shape)} and "
            f"{list(linear_weight.shape)}"
        )
    if target.shape != input.shape[:1] or target.dtype != torch.int64:
        raise RuntimeError(
            f"{name}: target must be int64 and [N] = {list(input.shape[:1])}, got {target.dtype} "
            f"and {list(target.shape)}"
        )
