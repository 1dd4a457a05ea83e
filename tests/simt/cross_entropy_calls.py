"""Calls of cross_entropy's kernels under the emulator, and what they must give, in float64."""

import functools
from typing import NamedTuple

import simt
import torch
import torch.nn.functional as F

STAGED, QUARTER_WARP, HALF_WARP, WARP, BLOCK, PLANES, WIDE_PLANES = range(7)  # CrossEntropyKernel
NAMES = ("staged", "quarter", "half", "warp", "block", "planes", "wide")  # of these
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}  # DType
NO_VIEW = (None, 0, 0, 0)
MOST_PARTS = 512  # of all rows together, by the plans that are chosen: twice kBusyBlocks


class Call(NamedTuple):
    """A call; ``x`` is [outer, C, inner] in any strides, and other tensors are in its order."""

    x: torch.Tensor
    target: torch.Tensor  # class indices [outer, inner], or probabilities like x
    other: torch.Tensor | None = None  # the second target of a pair
    weight: torch.Tensor | None = None  # [C]
    reduction: str = "mean"
    ignore_index: int = -100
    smoothing: float = 0.0
    lam: float = 1.0
    z_loss: float = 0.0
    float_loss: bool = True
    correct: bool = False

    @property
    def rows(self):
        return self.x.shape[0] * self.x.shape[2]

    @property
    def loss_dtype(self):
        return torch.float32 if self.float_loss else self.x.dtype


@functools.cache
def kernels():
    return simt.load("cross_entropy")


class Result(NamedTuple):
    loss: torch.Tensor | None
    stats: torch.Tensor
    gradient: torch.Tensor | None
    kernel: int
    parts: int
    profile: object


def view_of(x, wrap=lambda memory: memory):
    """A view as the binding takes it: memory, and the strides in it."""
    outer, classes, inner = x.stride()
    return wrap(simt.memory_of(x)), outer, inner, classes


def run(
    module,
    call,
    *,
    gradient=None,
    stats=None,
    grad_loss=None,
    grad_lse=None,
    state=None,
    first_class=0,
    num_classes=None,
    kernel=-1,
    max_blocks=0,
    parts=0,
    **options,
):
    """Forward, or backward if there is ``grad_loss``; with ``gradient`` that is written too.
    ``state`` [4, rows] makes it a tile, the gradient of which takes the place of x."""
    x, rows = call.x, call.rows
    outer, C, inner = x.shape
    probabilities = call.target.dim() == 3
    is_backward = grad_loss is not None
    reduced = call.reduction != "none"
    in_place = state is not None and is_backward
    if state is not None:
        loss, memory = None, simt.inout(state) if not is_backward else state
    elif is_backward:
        loss, memory = None, stats
    else:
        loss = torch.empty(1 if reduced else rows, dtype=call.loss_dtype)
        stats = torch.empty((3 if call.correct else 2) * rows + 4)
        memory = simt.out(stats)
    loss_dtype = torch.float32 if state is not None else call.loss_dtype
    most = max_blocks or 2048
    workspace = torch.empty(most * 8 + 1 + 5 * (rows * parts or MOST_PARTS))
    used = torch.zeros(2, dtype=torch.int32)
    num_classes = num_classes or C
    x_view = view_of(x, simt.inout) if in_place else view_of(x)
    g_view = NO_VIEW
    if gradient is not None:
        g_view = view_of(gradient, simt.out)
    profile = module.run(
        "cross_entropy",
        int(is_backward),
        int(state is not None),
        kernel,
        max_blocks,
        parts,
        DTYPES[x.dtype],
        DTYPES[loss_dtype],
        outer,
        inner,
        C,
        first_class,
        1 if call.other is None else 2,
        call.ignore_index,
        REDUCTIONS[call.reduction],
        1 - call.smoothing,
        call.smoothing / num_classes,
        1.0 if call.other is None else call.lam,
        call.z_loss,
        *x_view,
        *(view_of(call.target) if probabilities else NO_VIEW),
        *g_view,
        None if probabilities else call.target,
        call.other,
        None if call.weight is None else call.weight[first_class : first_class + C],
        memory,
        int(call.correct and not is_backward),
        None if loss is None else simt.out(loss),
        grad_loss,
        grad_lse,
        simt.out(workspace, partial=True),
        workspace.numel(),
        simt.inout(used),
        **options,
    )
    return Result(loss, stats, gradient, *used.tolist(), profile)


def reference(call, grad_loss=None, grad_lse=None):
    """Loss, lse [rows] and the gradient, in float64, with x's dimensions."""
    x = call.x.double().requires_grad_()
    weight = None if call.weight is None else call.weight.double()
    lse = torch.logsumexp(x, 1)
    loss = 0
    targets = [(call.target, call.lam), (call.other, 1 - call.lam)]
    for target, lam in targets if call.other is not None else [(call.target, 1.0)]:
        probabilities = target.dim() == 3
        of_target = F.cross_entropy(
            x,
            target.double() if probabilities else target,
            weight,
            ignore_index=-100 if probabilities else call.ignore_index,
            reduction=call.reduction,
            label_smoothing=call.smoothing,
        )
        if call.z_loss:
            counts = torch.ones_like(lse, dtype=torch.bool)
            if not probabilities:
                counts = target != call.ignore_index
            square = torch.where(counts, lse.square(), 0)
            if call.reduction != "none":
                square = square.sum() / (counts.sum() if call.reduction == "mean" else 1)
            of_target = of_target + call.z_loss * square
        loss = loss + lam * of_target
    outputs = [loss] if grad_lse is None else [loss, lse]
    grads = [torch.ones_like(loss) if grad_loss is None else grad_loss.double().view(loss.shape)]
    if grad_lse is not None:
        grads.append(grad_lse.double().view(lse.shape))
    (gradient,) = torch.autograd.grad(outputs, x, grads)
    return loss.detach().flatten(), lse.detach().flatten(), gradient


def first_correct(call):
    """[rows], 1 or 0."""
    x = call.x.double()
    right = (x.argmax(1) == call.target) & (call.target != call.ignore_index)
    nothing = x.isnan().any(1) | (x == torch.inf).any(1)  # is the largest, as on the CPU
    return (right & ~nothing).double().flatten()


# --- the operators of csrc/ops.cpp, on CPU tensors, as csrc/cuda/cross_entropy.cu has them --------


def rows_of(x):
    """[C], [N, C] or [N, C, d1, ...] as [outer, C, inner]: a view, or a dense copy where d1, ...
    cannot be walked with one stride. Samples of one position are positions of one sample."""
    x = x[None, :, None] if x.dim() == 1 else x.unsqueeze(2) if x.dim() == 2 else x.flatten(2)
    return x.transpose(0, 2) if x.shape[2] == 1 else x


def call_of(input, target, other, weight, reduction, *options):
    """The call of an operator's arguments."""
    x = rows_of(input)

    def classes(t):
        return t.reshape(x.shape[0], x.shape[2]).contiguous()

    return Call(
        x,
        rows_of(target) if target.shape == input.shape else classes(target),
        None if other is None else classes(other),
        None if weight is None else weight.float().contiguous(),
        list(REDUCTIONS)[reduction],
        *options,
    )


def gradient_of(input, run_into):
    """What run_into(rows) makes of the gradient, in the strides of input where those are dense."""
    gradient = torch.empty_like(input)
    rows = rows_of(gradient)
    result = run_into(rows)
    if rows.data_ptr() != gradient.data_ptr():
        gradient.copy_(rows.view(input.shape))
    return result, gradient


def cross_entropy(input, target, *arguments, gradient=None):
    call = call_of(input, target, *arguments)
    result = run(kernels(), call, gradient=gradient, seed=1)
    shape = input.shape[:1] + input.shape[2:] if call.reduction == "none" else ()
    return result.loss.view(shape if input.dim() > 1 else ()), result.stats


def cross_entropy_with_gradient(input, *arguments):
    results, gradient = gradient_of(
        input, lambda rows: cross_entropy(input, *arguments, gradient=rows)
    )
    return *results, gradient


def cross_entropy_backward(grad_loss, grad_lse, input, target, other, weight, stats, *options):
    call = call_of(input, target, other, weight, *options, grad_loss.dtype == torch.float32)
    given = {
        "stats": stats,
        "grad_loss": grad_loss.contiguous(),
        "grad_lse": None if grad_lse is None else grad_lse.float().contiguous(),
    }
    module = kernels()
    return gradient_of(input, lambda rows: run(module, call, gradient=rows, seed=1, **given))[1]


def run_tile(logits, target, weight, first_class, num_classes, smoothing, **given):
    """logits [n, c]"""
    call = Call(
        logits.t()[None],
        target[None] if target.dim() == 1 else target.t()[None],
        weight=weight,
        reduction="none",
        smoothing=smoothing,
    )
    given |= {"first_class": first_class, "num_classes": num_classes}
    run(kernels(), call, seed=1, **given)


def cross_entropy_tile(logits, target, weight, state, *options):
    dense = state.contiguous()
    run_tile(logits, target, weight, *options, state=dense)
    state.copy_(dense)


def cross_entropy_tile_gradient_(logits, target, weight, state, grad_rows, *options):
    given = {"state": state.contiguous(), "grad_loss": grad_rows.contiguous()}
    run_tile(logits, target, weight, *options, **given)


OPERATORS = (
    cross_entropy,
    cross_entropy_with_gradient,
    cross_entropy_backward,
    cross_entropy_tile,
    cross_entropy_tile_gradient_,
)
