"""Which calls of cross_entropy the kernels take: their arguments must be right, and theirs. All
others are torch's, mistakes above all, which it answers for.

On the CPU a kernel always runs where there is one; on CUDA as cuda_route.py says.
"""

import functools
from functools import partial

import torch
from torch.autograd import forward_ad

from imgfast.ops import cross_entropy_autograd as autograd
from imgfast.ops import cuda_route
from imgfast.ops.cross_entropy_stock import class_dim

REDUCTIONS = {"none": autograd.NONE, "mean": autograd.MEAN, "sum": autograd.SUM}
DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
HALVES = {torch.bfloat16, torch.float16}
PLAIN = {torch.Tensor, torch.nn.Parameter}
_STRIDED = torch.strided
_in_functorch = torch._C._are_functorch_transforms_active
_MAX_CLASSES = 2**24  # and the largest ignore_index, as in csrc/cross_entropy.h


def are_options_right(reduction, ignore_index, label_smoothing):
    return (
        reduction in REDUCTIONS
        and isinstance(ignore_index, int)
        and -_MAX_CLASSES <= ignore_index <= _MAX_CLASSES
        and isinstance(label_smoothing, (float, int))
        and label_smoothing <= 1
    )


def options_of(reduction, ignore_index, label_smoothing, lam, z_loss, float_loss, correct):
    """The kernels' options, or None if these are not right, or not ours."""
    if not are_options_right(reduction, ignore_index, label_smoothing):
        return None
    return autograd.Options(
        REDUCTIONS[reduction],
        ignore_index,
        label_smoothing if label_smoothing > 0 else 0.0,
        lam,
        z_loss,
        float_loss,
        correct,
    )


# The same arguments come again with every step. They are told apart by type: 1 from 1.0 and True.
options_again = functools.lru_cache(maxsize=64, typed=True)(options_of)


def has_kernel(input, targets, weight, options):
    """Whether the tensors are right, and ours; torch's function answers all others."""
    shape, dtype = input.shape, input.dtype
    dim = len(shape)
    on_cpu = input.is_cpu
    if not (
        (on_cpu or (cuda_route.HAS_KERNELS and input.is_cuda and dtype != torch.float64))
        and dtype in DTYPES
        and dim > 0
        and input.numel() > 0
        and shape[1 if dim > 1 else 0] <= _MAX_CLASSES
    ):
        return False
    rows = () if dim == 1 else shape[:1] if dim == 2 else shape[:1] + shape[2:]
    for target in targets:
        if not (target.is_cpu if on_cpu else target.device == input.device):
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
        weight.device == input.device
        and weight.shape == (shape[1] if dim > 1 else shape[0],)
        and (weight.dtype == dtype or (options.float_loss and _widens_to_float(weight, input)))
        and (targets[0].is_floating_point() or not weight.requires_grad)
    )


def is_plain(input, targets, weight):
    """Tensors and no subclass, and nobody watching who sees through torch's own operators only."""
    for target in targets:
        if type(target) not in PLAIN:
            return False
    return (
        type(input) in PLAIN
        and (weight is None or type(weight) in PLAIN)
        and input.layout is _STRIDED
        and not _in_functorch()
        and forward_ad._current_level < 0
    )


def _widens_to_float(*tensors):
    return all(t.dtype in HALVES or t.dtype == torch.float32 for t in tensors)


def autocast(input, target):
    """cross_entropy is on autocast's float32 list. A kernel widens as it reads, so that only
    operands of different dtypes are cast."""
    if target.is_floating_point() and target.dtype != input.dtype:
        input, target = (t.float() if t.dtype in HALVES else t for t in (input, target))
    return input, target


def kernel_wins(input, targets, weight, options, return_lse, run_kernel, run_stock):
    """Which of the two is to run on CUDA, of functions of ``input, targets, weight``. Calls of as
    many rows, but for a factor of 2, are of one kind."""
    tensors = (input, weight, *targets)
    dim = class_dim(input)
    rows = input.numel() // input.shape[dim]
    kind = (
        "cross_entropy",
        input.device,
        input.dtype,
        input.shape[dim:],
        input.stride()[dim:],
        rows.bit_length(),
        targets[0].dtype,
        len(targets),
        weight is None,
        options._replace(ignore_index=0, lam=0.0),
        return_lse,
        cuda_route.needs_grad(tensors),
    )

    def loss_of(run, input, weight, *targets):
        results = run(input, targets, weight)
        return results[0] if isinstance(results, tuple) else results

    runs = (partial(loss_of, run) for run in (run_kernel, run_stock))
    return cuda_route.kernel_wins(kind, *runs, tensors)
