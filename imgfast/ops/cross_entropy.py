"""cross_entropy: log-softmax and the negative log-likelihood as one operator."""

import functools
from numbers import Real

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from imgfast.ops import cross_entropy_autograd as autograd
from imgfast.ops import cross_entropy_stock as stock

_REDUCTIONS = {"none": autograd.NONE, "mean": autograd.MEAN, "sum": autograd.SUM}
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
_HALVES = {torch.bfloat16, torch.float16}
_PLAIN = {torch.Tensor, torch.nn.Parameter}
_STRIDED = torch.strided
_in_functorch = torch._C._are_functorch_transforms_active
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
    *,
    z_loss=0.0,
    return_lse=False,
    return_correct=False,
    grad_in_forward=False,
):
    """Equals ``torch.nn.functional.cross_entropy`` of the same arguments, in one pass over
    ``input`` that stores no log-probabilities.

    For class targets ``nll_loss(log_softmax(input, 1), target)``, for probability targets
    ``-(target * log_softmax(input, 1)).sum(1)``, with ``weight`` and ``label_smoothing`` as in
    :func:`torch.nn.functional.cross_entropy`. What comes after ``label_smoothing`` torch does not
    have.

    Args:
        input: logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``; float32, float64, bfloat16 or
            float16. NCHW, channels_last and any strided rows are read in place.
        target: class indices ``[]``, ``[N]`` or ``[N, d1, ...]``, int64; or probabilities of the
            shape and dtype of ``input``, which are differentiable. Or, for MixUp and CutMix,
            ``(target_a, target_b, lam)`` with two targets of class indices and a number ``lam`` in
            ``[0, 1]``: ``lam * cross_entropy(input, target_a, ...) + (1 - lam) *
            cross_entropy(input, target_b, ...)`` in the same pass, each with a mean of its own.
        weight: ``[C]`` of the dtype of ``input``, a weight for every class, or None.
        size_average, reduce: deprecated in torch, and replaced by ``reduction``.
        ignore_index: the class target of rows that do not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``, the share of the target that is spread over all classes.
        z_loss: a factor ``z >= 0``; adds ``z * logsumexp(input, 1) ** 2`` to the loss of every row
            that counts. It is not weighted by ``weight``, and its mean is over the rows that count.
        return_lse: whether ``logsumexp(input, 1)`` is wanted too. It is differentiable.
        return_correct: whether to tell too which rows are classified correctly; of class targets,
            one for each row.
        grad_in_forward: whether the gradient is to be computed with the loss, in the same pass,
            and kept instead of ``input``: faster where backward is certain to follow. It can then
            follow only once, and not with ``create_graph``. A bfloat16 or float16 gradient is
            rounded before it is multiplied by that at the loss. No effect where anything but
            ``input`` needs a gradient, with ``return_lse``, and under torch.compile.

    Returns:
        A scalar, or for ``"none"`` a loss per row in the shape of ``target``; of the dtype of
        ``input``, float32 under autocast. If more is asked for, a tuple of the loss and, in this
        order, the log-sum-exps (float32, or float64 for float64) and a bool for every row, each in
        the shape of ``target``. A bool is true if the row counts and its target's logit is the
        first of the largest, as by ``input.argmax(1) == target``; false if a logit is NaN or +inf.

    Raises:
        What torch.nn.functional.cross_entropy raises for the same arguments, word for word; so
        ``IndexError`` for a target that is no class.
        ValueError: if ``lam`` or ``z_loss`` is out of range, or ``return_correct`` is asked of a
            pair or of probabilities.

    Note:
        - Kept for backward: ``input``, ``target``, ``weight`` and two float32 numbers a row (the
          maximum and the sum of exponentials); for a reduced loss of up to 2^16 float32 or float64
          logits, where a call costs more than the arithmetic, the gradient instead of the latter.
          torch keeps log-probabilities: there ``input`` may be overwritten before backward; here
          that raises, unless the gradient is kept and ``create_graph`` is not asked for.
        - bfloat16 and float16 are accumulated in float32. torch's own float16 mean over more than
          65504 rows is 0 on the CPU; here it is right.
        - The gradient has the strides of ``input`` where those are dense: channels_last stays.
        - Deterministic: the same bits for the same arguments, whatever the number of threads.
        - NaN, infinities, and means over nothing give what torch gives.
        - Other devices, dtypes and tensor subclasses, empty inputs, ``torch.func`` transforms and
          forward-mode derivatives run torch's own functions.

    Source:
        M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018);
        C. Szegedy et al., "Rethinking the Inception Architecture" (2016), eq. 3, for smoothing;
        H. Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), for pairs;
        A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways" (2022), section 5, for
        z_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = F._Reduction.legacy_get_string(size_average, reduce)
    targets, lam = (target,), 1.0
    if isinstance(target, tuple):
        targets, lam = _pair(target)
    if z_loss != 0 or return_correct:
        _check_extras(input, targets, z_loss, return_correct)
    compiling = is_compiling()
    options = (_options if compiling else _options_again)(
        reduction,
        ignore_index,
        label_smoothing,
        lam,
        z_loss,
        torch.is_autocast_enabled("cpu"),
        return_correct,
    )
    plain = compiling or _is_plain(input, targets, weight)
    if plain and options and options.float_loss and len(targets) == 1:
        input, *targets = _autocast(input, *targets)
    if not (plain and options and _has_kernel(input, targets, weight, options)):
        results = stock.run(
            input,
            targets,
            lam,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            return_lse=return_lse,
            return_correct=return_correct,
        )
        return tuple(results) if len(results) > 1 else results[0]

    target, other = targets if len(targets) > 1 else (targets[0], None)
    if compiling:
        loss, stats = torch.ops.imgfast.cross_entropy(input, target, other, weight, *options)
    else:
        loss, stats = autograd.run(
            input, target, other, weight, options, return_lse, grad_in_forward
        )
    if not (return_lse or return_correct):
        return loss
    shape = stock.rows_of(input)
    rows = input.numel() // input.shape[stock.class_dim(input)]
    results = [loss]
    if return_lse:
        results.append((stats[:rows] + stats[rows : 2 * rows].log()).view(shape))
    if return_correct:
        results.append((stats[2 * rows + 4 :] > 0).view(shape))
    return tuple(results)


def _pair(target):
    """Two targets and lam."""
    if len(target) != 3 or not all(isinstance(t, torch.Tensor) for t in target[:2]):
        raise ValueError("target must be a tensor or (target_a, target_b, lam)")
    *targets, lam = target
    if not isinstance(lam, Real):
        raise TypeError(f"lam must be a number, got {type(lam).__name__}")
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must be between 0 and 1, got {lam}")
    return targets, float(lam)


def _check_extras(input, targets, z_loss, return_correct):
    if not z_loss >= 0:
        raise ValueError(f"z_loss must not be negative, got {z_loss}")
    if return_correct and (len(targets) > 1 or targets[0].shape == input.shape):
        raise ValueError("return_correct needs one target of class indices")


def are_options_right(reduction, ignore_index, label_smoothing):
    return (
        reduction in _REDUCTIONS
        and isinstance(ignore_index, int)
        and -_MAX_CLASSES <= ignore_index <= _MAX_CLASSES
        and isinstance(label_smoothing, (float, int))
        and label_smoothing <= 1
    )


def _options(reduction, ignore_index, label_smoothing, lam, z_loss, float_loss, correct):
    """The kernels' options, or None if these are not right, or not ours."""
    if not are_options_right(reduction, ignore_index, label_smoothing):
        return None
    return autograd.Options(
        _REDUCTIONS[reduction],
        ignore_index,
        label_smoothing if label_smoothing > 0 else 0.0,
        lam,
        z_loss,
        float_loss,
        correct,
    )


# The same arguments come again with every step. They are told apart by type: 1 from 1.0 and True.
_options_again = functools.lru_cache(maxsize=64, typed=True)(_options)


def _has_kernel(input, targets, weight, options):
    """Whether the tensors are right, and ours; torch's function answers all others."""
    shape, dtype = input.shape, input.dtype
    dim = len(shape)
    if not (
        input.is_cpu
        and dtype in _DTYPES
        and dim > 0
        and input.numel() > 0
        and shape[1 if dim > 1 else 0] <= _MAX_CLASSES
    ):
        return False
    rows = () if dim == 1 else shape[:1] if dim == 2 else shape[:1] + shape[2:]
    for target in targets:
        if not target.is_cpu:
            return False
        target_shape = target.shape
        if shape == target_shape:
            if target.dtype != dtype or options.ignore_index >= 0 or len(targets) > 1:
                return False
        elif target.dtype != torch.int64 or target_shape != rows:
            return False
    if weight is None:
        return True
    return (
        weight.is_cpu
        and weight.shape == (shape[1] if dim > 1 else shape[0],)
        and (weight.dtype == dtype or (options.float_loss and _widens_to_float(weight, input)))
        and (targets[0].is_floating_point() or not weight.requires_grad)
    )


def _is_plain(input, targets, weight):
    """Tensors and no subclass, and nobody watching who sees through torch's own operators only."""
    for target in targets:
        if type(target) not in _PLAIN:
            return False
    return (
        type(input) in _PLAIN
        and (weight is None or type(weight) in _PLAIN)
        and input.layout is _STRIDED
        and not _in_functorch()
        and forward_ad._current_level < 0
    )


def _widens_to_float(*tensors):
    return all(t.dtype in _HALVES or t.dtype == torch.float32 for t in tensors)


def _autocast(input, target):
    """cross_entropy is on autocast's float32 list. A kernel widens as it reads, so that only
    operands of different dtypes are cast."""
    if target.is_floating_point() and target.dtype != input.dtype:
        input, target = (t.float() if t.dtype in _HALVES else t for t in (input, target))
    return input, target
