"""Calls of conv_relu_pool's gradient at x in the emulator, and what they answer."""

from __future__ import annotations

import functools
from typing import NamedTuple

import simt
import torch
from conv_relu_pool_calls import DTYPES, KERNELS, layout_of
from conv_relu_pool_gradient_calls import assert_near, inputs, references

from imgfast.ops.conv_relu_pool_route import needs_y


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


@functools.cache
def kernels():
    return simt.load("conv_backward_input")


def run(given, *, kernel=None, module=None, tf32=False, profile=False, **options):
    """The gradient by the kernel of that name, or by the one that is chosen.

    Args:
        module: of another binding with the same functions.
        options: seed and preempt, for the emulator.
    """
    module = module or kernels()
    x, weight, _, grad_y, y, codes, spec = given
    y = y if needs_y(spec) else None
    grad_x = torch.empty_like(x, memory_format=layout_of(x, weight))
    views = (grad_y, grad_y if y is None else y, weight, grad_x)
    head = (
        torch.tensor([*x.shape, weight.shape[0], *weight.shape[2:]]),
        torch.tensor([t.stride() for t in views]),
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
        simt.memory_of(grad_y),
        None if y is None else simt.memory_of(y),
        codes,
        simt.memory_of(weight),
        simt.out(grad_x),
        simt.out(torch.empty(max(plan.workspace, 1), dtype=torch.uint8), True),
        profile=profile,
        **options,
    )
    return Answer(grad_x, plan, counted)


def compare(answer, given):
    assert_near(answer.grad_x, *references(given, "x"), given)


def check(*shape, kernel=None, run_options=(), **options):
    """Runs and compares with the reference; run_options as of run, options as of inputs."""
    given = inputs(*shape, **options)
    answer = run(given, kernel=kernel, **dict(run_options))
    assert answer.plan.kernel == kernel or kernel is None
    compare(answer, given)
    return answer
