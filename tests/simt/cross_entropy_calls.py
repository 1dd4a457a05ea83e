"""Calls of cross_entropy's kernels under the emulator, and what they must give, in float64."""

from typing import NamedTuple

import simt
import torch
import torch.nn.functional as F

STAGED, WARP, BLOCK, PLANES, WIDE_PLANES = range(5)  # CrossEntropyKernel
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}  # DType
NO_VIEW = (None, 0, 0, 0, 0)


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


class Result(NamedTuple):
    loss: torch.Tensor | None
    stats: torch.Tensor
    gradient: torch.Tensor | None
    kernel: int
    parts: int
    profile: object


def memory_of(x, wrap=lambda memory: memory):
    """The memory that x lies in, and its offset and strides there."""
    size = x.untyped_storage().nbytes() // x.element_size()
    memory = wrap(torch.as_strided(x, (size,), (1,), 0))
    outer, classes, inner = x.stride()
    return memory, x.storage_offset(), outer, inner, classes


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
    workspace = torch.empty(most * 8 + 1 + 5 * rows * max(parts, 64))
    used = torch.zeros(2, dtype=torch.int32)
    num_classes = num_classes or C
    x_view = memory_of(x, simt.inout if in_place else lambda memory: memory)
    g_view = NO_VIEW
    if gradient is not None:
        g_view = memory_of(gradient, lambda memory: simt.out(memory, partial=True))
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
        *(memory_of(call.target) if probabilities else NO_VIEW),
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
