"""cross_entropy: log-softmax and the negative log-likelihood as one operator."""

from functools import partial
from numbers import Real

import torch
import torch.nn.functional as F
from torch.compiler import is_compiling

from imgfast.ops import autocast
from imgfast.ops import cross_entropy_autograd as autograd
from imgfast.ops import cross_entropy_route as route
from imgfast.ops import cross_entropy_stock as stock


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
        - On CUDA, the first call of each kind is timed beside torch's own functions, and the faster
          of the two runs from then on; what may not be timed (graph capture, deterministic
          algorithms, torch.compile) is torch's until then. No call waits for the device but that.
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
    plain = compiling or route.is_plain(input, targets, weight)
    options = (route.options_of if compiling else route.options_again)(
        reduction,
        ignore_index,
        label_smoothing,
        lam,
        z_loss,
        plain and autocast.is_active(input),
        return_correct,
    )
    if plain and options and options.float_loss and len(targets) == 1:
        input, *targets = route.autocast(input, *targets)
    has_kernel = plain and options and route.has_kernel(input, targets, weight, options)
    if has_kernel and input.is_cpu:
        return _run_kernel(input, targets, weight, options, return_lse, grad_in_forward, compiling)
    run_stock = partial(
        stock.run,
        lam=lam,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        return_lse=return_lse,
        return_correct=return_correct,
    )
    if has_kernel and not compiling:
        run_kernel = partial(
            _run_kernel, options=options, return_lse=return_lse, grad_in_forward=grad_in_forward
        )
        if route.kernel_wins(input, targets, weight, options, return_lse, run_kernel, run_stock):
            return run_kernel(input, targets, weight)
    return run_stock(input, targets, weight)


def _run_kernel(input, targets, weight, options, return_lse, grad_in_forward, compiling=False):
    """Of arguments that have been checked."""
    target, other = targets if len(targets) > 1 else (targets[0], None)
    if compiling:
        loss, stats = torch.ops.imgfast.cross_entropy(input, target, other, weight, *options)
    else:
        loss, stats = autograd.run(
            input, target, other, weight, options, return_lse, grad_in_forward
        )
    if not (return_lse or options.correct):
        return loss
    shape = stock.rows_of(input)
    rows = input.numel() // input.shape[stock.class_dim(input)]
    results = [loss]
    if return_lse:
        results.append((stats[:rows] + stats[rows : 2 * rows].log()).view(shape))
    if options.correct:
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
