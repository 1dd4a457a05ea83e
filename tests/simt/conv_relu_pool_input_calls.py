"""Calls of conv_relu_pool's gradient at x in the emulator, and what they answer."""

from __future__ import annotations

from typing import NamedTuple

import simt
import torch
from conv_relu_pool_calls import DTYPES, KERNELS, TOLERANCE, _memory
from conv_relu_pool_weight_calls import inputs

from imgfast.ops.conv_relu_pool_route import needs_y
from imgfast.ops.conv_relu_pool_stock import conv_relu_pool_stock


class Plan(NamedTuple):
    kernel: str
    workspace: int
    phases: int
    images: int
    rows: int
    cols: int


class Answer(NamedTuple):
    grad_x: torch.Tensor
    plan: Plan
    profile: simt.Profile


def reference(given):
    """The gradient by stock's operators in float64."""
    x, weight, bias, grad_y = (t.double() for t in given[:4])
    x.requires_grad_()
    y = conv_relu_pool_stock(x, weight, bias, given.spec)
    return torch.autograd.grad(y, x, grad_y)[0]


def run(given, *, kernel=None, module=None, tf32=False, profile=False, **options):
    """The gradient by the kernel of that name, or by the one that is chosen.

    Args:
        module: of another binding with the same functions.
        options: seed and preempt, for the emulator.
    """
    module = module or simt.load("conv_backward_input")
    x, weight, _, grad_y, y, codes, spec = given
    grad_x = torch.empty_like(x)
    strides = [grad_y.stride(), y.stride(), weight.stride(), grad_x.stride()]
    head = (
        torch.tensor([*x.shape, weight.shape[0], *weight.shape[2:]]),
        torch.tensor(strides),
        torch.tensor(spec.geometry(weight.shape, allow_tf32=tf32)),
        DTYPES[x.dtype],
        -1 if kernel is None else KERNELS.index(kernel),
    )
    told = torch.zeros(6, dtype=torch.int64)
    module.run("plan_conv_backward_input", *head, simt.inout(told))
    plan = Plan(KERNELS[told[0]], *told[1:].tolist())
    if plan.kernel == "none":
        return Answer(grad_x, plan, simt.Profile(()))
    counted = module.run(
        "conv_backward_input",
        *head,
        _memory(grad_y),
        _memory(y) if needs_y(spec) else None,
        codes,
        _memory(weight),
        simt.out(_memory(grad_x)),
        simt.out(torch.empty(max(plan.workspace, 1), dtype=torch.uint8), True),
        profile=profile,
        **options,
    )
    return Answer(grad_x, plan, counted)


def compare(answer, given):
    tolerance = TOLERANCE[given.x.dtype]
    if given.spec.activation in ("sigmoid", "tanh"):
        tolerance *= 4  # y has been rounded, too
    expected = reference(given)
    finite = expected[expected.isfinite()]
    most = finite.abs().max().item() if finite.numel() else 1.0
    torch.testing.assert_close(
        answer.grad_x.double(), expected, rtol=tolerance, atol=tolerance * most, equal_nan=True
    )


def check(*shape, kernel=None, run_options=(), **options):
    """Runs and compares with the reference; run_options as of run, options as of inputs."""
    given = inputs(*shape, **options)
    answer = run(given, kernel=kernel, **dict(run_options))
    assert answer.plan.kernel == kernel or kernel is None
    compare(answer, given)
    return answer
