"""cross_entropy: log-softmax and the negative log-likelihood as one operator."""

import torch
import torch.nn.functional as F

from imgfast.ops import cross_entropy_autograd as autograd

_REDUCTIONS = {"none": autograd.NONE, "mean": autograd.MEAN, "sum": autograd.SUM}
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
_HALVES = {torch.bfloat16, torch.float16}
_PLAIN = {torch.Tensor, torch.nn.Parameter}
_MAX_CLASSES = 2**24  # and the largest ignore_index, as in csrc/cross_entropy.h


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """Equals ``torch.nn.functional.cross_entropy`` of the same arguments, in one pass over
    ``input`` that stores no log-probabilities.

    For class targets ``nll_loss(log_softmax(input, 1), target)``, for probability targets
    ``-(target * log_softmax(input, 1)).sum(1)``, with ``weight`` and ``label_smoothing`` as in
    :func:`torch.nn.functional.cross_entropy`.

    Args:
        input: logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``; float32, float64, bfloat16 or
            float16. NCHW, channels_last and any strided rows are read in place.
        target: class indices ``[]``, ``[N]`` or ``[N, d1, ...]``, int64; or probabilities of the
            shape and dtype of ``input``, which are differentiable.
        weight: ``[C]`` of the dtype of ``input``, a weight for every class, or None.
        size_average, reduce: deprecated in torch, and replaced by ``reduction``.
        ignore_index: the class target of rows that do not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``, the share of the target that is spread over all classes.

    Returns:
        A scalar, or for ``"none"`` a loss per row in the shape of ``target``; of the dtype of
        ``input``, float32 under autocast.

    Raises:
        What torch.nn.functional.cross_entropy raises for the same arguments, word for word; so
        ``IndexError`` for a target that is no class.

    Note:
        - Kept for backward: ``input``, ``target``, ``weight`` and two float32 numbers a row (the
          maximum and the sum of exponentials). torch keeps log-probabilities instead: there
          ``input`` may be overwritten before backward, here autograd raises if it is.
        - bfloat16 and float16 are accumulated in float32. torch's own float16 mean over more than
          65504 rows is 0 on the CPU; here it is right.
        - The gradient has the strides of ``input`` where those are dense: channels_last stays.
        - Deterministic: the same bits for the same arguments, whatever the number of threads.
        - NaN, infinities, and means over nothing give what torch gives.
        - Other devices, dtypes and tensor subclasses, empty inputs, ``torch.func`` transforms and
          forward-mode derivatives run torch's own function.

    Source:
        M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018);
        C. Szegedy et al., "Rethinking the Inception Architecture" (2016), eq. 3, for smoothing.
    """
    if size_average is not None or reduce is not None:
        reduction = F._Reduction.legacy_get_string(size_average, reduce)
    compiling = torch.compiler.is_compiling()
    float_loss = torch.is_autocast_enabled("cpu")
    plain = compiling or _is_plain(input, target, weight)
    if plain and float_loss:
        input, target = _autocast(input, target)
    if not plain or not _has_kernel(
        input, target, weight, ignore_index, reduction, label_smoothing, float_loss
    ):
        return F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    call = torch.ops.imgfast.cross_entropy if compiling else autograd.run
    loss = call(
        input,
        target,
        weight,
        _REDUCTIONS[reduction],
        ignore_index,
        label_smoothing if label_smoothing > 0 else 0.0,
        float_loss,
    )
    return loss[0] if compiling else loss


def _has_kernel(input, target, weight, ignore_index, reduction, label_smoothing, float_loss):
    """Whether the arguments are right, and ours; torch's function answers all others."""
    shape, dtype = input.shape, input.dtype
    if not (
        input.is_cpu
        and target.is_cpu
        and dtype in _DTYPES
        and reduction in _REDUCTIONS
        and isinstance(ignore_index, int)
        and -_MAX_CLASSES <= ignore_index <= _MAX_CLASSES
        and isinstance(label_smoothing, (float, int))
        and label_smoothing <= 1
        and input.numel() > 0
    ):
        return False
    dim = len(shape)
    if shape == target.shape:
        if target.dtype != dtype or ignore_index >= 0 or dim == 0:
            return False
    elif target.dtype != torch.int64 or target.shape != (shape[:1] + shape[2:] if dim > 1 else ()):
        return False
    if shape[1 if dim > 1 else 0] > _MAX_CLASSES:
        return False
    if weight is None:
        return True
    return (
        weight.is_cpu
        and weight.shape == (shape[1] if dim > 1 else shape[0],)
        and (weight.dtype == dtype or (float_loss and _widens_to_float(weight, input)))
        and (target.is_floating_point() or not weight.requires_grad)
    )


def _is_plain(input, target, weight):
    """Tensors and no subclass, and nobody watching who sees through torch's own operators only."""
    return (
        type(input) in _PLAIN
        and type(target) in _PLAIN
        and (weight is None or type(weight) in _PLAIN)
        and input.layout is torch.strided
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def _widens_to_float(*tensors):
    return all(t.dtype in _HALVES or t.dtype == torch.float32 for t in tensors)


def _autocast(input, target):
    """cross_entropy is on autocast's float32 list. A kernel widens as it reads, so that only
    operands of different dtypes are cast."""
    if target.is_floating_point() and target.dtype != input.dtype:
        input, target = (t.float() if t.dtype in _HALVES else t for t in (input, target))
    return input, target
