"""Calls of conv_relu_pool's weight and bias gradients in the emulator, and what they answer."""

from __future__ import annotations

import functools
from typing import NamedTuple

import simt
import torch
from conv_relu_pool_calls import DTYPES, layout_of
from conv_relu_pool_gradient_calls import assert_near, inputs, references

from imgfast.ops.conv_relu_pool_route import needs_y

KERNELS = ("none", "bias", "simt", "simt_few", "mma")  # ConvWeightKernel's order


class Plan(NamedTuple):
    kernel: str
    workspace: int
    parts: int
    bias_parts: int
    images: int
    rows: int
    cols: int


class Answer(NamedTuple):
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    plan: Plan
    profile: simt.Profile


@functools.cache
def kernels():
    return simt.load("conv_backward_weight")


def run(
    given,
    *,
    kernel=None,
    blocks=3,
    module=None,
    tf32=False,
    need_weight=True,
    need_bias=True,
    plan_only=False,
    profile=False,
    **options,
):
    """The gradients by the kernel of that name, or by the one that is chosen.

    Args:
        blocks: at most so many share out the positions, if a kernel is named: few, so that each has
            several boxes.
        module: of another binding with the same functions.
        plan_only: nothing is computed, and inputs may be of any size.
        options: seed and preempt, for the emulator.
    """
    module = module or kernels()
    x, weight, _, grad_y, y, codes, spec = given
    y = y if needs_y(spec) else None
    grad_weight = None
    if need_weight:
        grad_weight = torch.empty_like(weight, memory_format=layout_of(weight))
    grad_bias = torch.empty(weight.shape[0], dtype=x.dtype) if need_bias else None
    sizes = torch.tensor([*x.shape, weight.shape[0], *weight.shape[2:]])
    views = (x, grad_y, grad_y if y is None else y, weight if grad_weight is None else grad_weight)
    head = (
        sizes,
        torch.tensor([t.stride() for t in views]),
        torch.tensor(spec.geometry(weight.shape, allow_tf32=tf32)),
        DTYPES[x.dtype],
        -1 if kernel is None else KERNELS.index(kernel),
        blocks,
    )

    def written(t, partial=False):
        return None if t is None else simt.out(t, partial)

    told = torch.zeros(7, dtype=torch.int64)
    module.run(
        "plan_conv_backward_weight",
        *head,
        written(grad_weight, True),
        written(grad_bias, True),
        simt.inout(told),
    )
    plan = Plan(KERNELS[told[0]], *told[1:].tolist())
    if plan_only or plan.kernel == "none":
        return Answer(grad_weight, grad_bias, plan, simt.Profile(()))
    counted = module.run(
        "conv_backward_weight",
        *head,
        simt.memory_of(grad_y),
        None if y is None else simt.memory_of(y),
        codes,
        simt.memory_of(x),
        written(grad_weight),
        written(grad_bias),
        simt.out(torch.empty(plan.workspace, dtype=torch.uint8), True),
        profile=profile,
        **options,
    )
    return Answer(grad_weight, grad_bias, plan, counted)


def compare(answer, given):
    for got, expected in zip(answer[:2], references(given, "weight", "bias"), strict=True):
        if got is not None:
            assert_near(got, expected, given)


def check(*shape, kernel=None, run_options=(), **options):
    """Runs and compares with the reference; run_options as of run, options as of inputs."""
    given = inputs(*shape, **options)
    answer = run(given, kernel=kernel, **dict(run_options))
    assert answer.plan.kernel == kernel or kernel is None
    compare(answer, given)
    return answer
