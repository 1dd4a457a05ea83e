"""Calls of conv_relu_pool's weight and bias gradients in the emulator, and what they answer."""

from __future__ import annotations

from typing import NamedTuple

import simt
import torch
from conv_relu_pool_calls import DTYPES, TOLERANCE, _memory, exact, make

import imgfast  # noqa: F401  registers the operators that codes come from
from imgfast.ops.conv_relu_pool import _bind
from imgfast.ops.conv_relu_pool_route import needs_codes, needs_y, spec_of
from imgfast.ops.conv_relu_pool_stock import conv_relu_pool_stock

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


class Inputs(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    grad_y: torch.Tensor
    y: torch.Tensor
    codes: torch.Tensor | None
    spec: tuple


def inputs(
    n, c, h, w, k, r, s, *, dtype=torch.float32, channels_last=True, seed=0, blocked=(), **options
):
    """Of a call, after its forward pass in float64; options as of ``imgfast.ops.conv_relu_pool``.

    They are small multiples of 1/4: sums are exact, and a gradient in a wrong place cannot hide.
    The outputs of the filters ``blocked`` are all negative before their activation.
    """
    x, weight, bias = make(
        n, c, h, w, k, r, s, groups=options.get("groups", 1), dtype=dtype, seed=seed,
        channels_last=channels_last,
    )  # fmt: skip
    bias[list(blocked)] = -100
    spec = spec_of(*_bind(**options))
    wide = [t.double() for t in (x, weight, bias)]
    y, codes = torch.ops.imgfast.conv_relu_pool(
        *wide, spec.geometry(weight.shape), needs_codes(spec)
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    grad_y = exact(y.shape, seed + 3, dtype).contiguous(memory_format=layout)
    y = y.to(dtype).contiguous(memory_format=layout)
    return Inputs(x, weight, bias, grad_y, y, codes if needs_codes(spec) else None, spec)


def reference(given):
    """Gradients of weight and bias by stock's operators in float64."""
    x, weight, bias, grad_y = (t.double() for t in given[:4])
    weight.requires_grad_(), bias.requires_grad_()
    y = conv_relu_pool_stock(x, weight, bias, given.spec)
    return torch.autograd.grad(y, (weight, bias), grad_y)


def run(
    given,
    *,
    kernel=None,
    blocks=3,
    module=None,
    tf32=False,
    need_weight=True,
    need_bias=True,
    profile=False,
    **options,
):
    """The gradients by the kernel of that name, or by the one that is chosen.

    Args:
        blocks: at most so many share out the positions, if a kernel is named: few, so that each has
            several boxes.
        module: of another binding with the same functions.
        options: seed and preempt, for the emulator.
    """
    module = module or simt.load("conv_backward_weight")
    x, weight, _, grad_y, y, codes, spec = given
    y = y if needs_y(spec) else None
    grad_weight = torch.empty_like(weight) if need_weight else None
    grad_bias = torch.empty(weight.shape[0], dtype=x.dtype) if need_bias else None
    sizes = torch.tensor([*x.shape, weight.shape[0], *weight.shape[2:]])
    strides = [x.stride(), grad_y.stride(), given.y.stride(), weight.stride()]
    head = (
        sizes,
        torch.tensor(strides),
        torch.tensor(spec.geometry(weight.shape, allow_tf32=tf32)),
        DTYPES[x.dtype],
        -1 if kernel is None else KERNELS.index(kernel),
        blocks,
    )

    def written(t, partial=False):
        return None if t is None else simt.out(_memory(t), partial)

    told = torch.zeros(7, dtype=torch.int64)
    module.run(
        "plan_conv_backward_weight",
        *head,
        written(grad_weight, True),
        written(grad_bias, True),
        simt.inout(told),
    )
    plan = Plan(KERNELS[told[0]], *told[1:].tolist())
    if plan.kernel == "none":
        return Answer(grad_weight, grad_bias, plan, simt.Profile(()))
    counted = module.run(
        "conv_backward_weight",
        *head,
        _memory(grad_y),
        None if y is None else _memory(y),
        codes,
        _memory(x),
        written(grad_weight),
        written(grad_bias),
        simt.out(torch.empty(plan.workspace, dtype=torch.uint8), True),
        profile=profile,
        **options,
    )
    return Answer(grad_weight, grad_bias, plan, counted)


def compare(answer, given):
    tolerance = TOLERANCE[given.x.dtype]
    if given.spec.activation in ("sigmoid", "tanh"):
        tolerance *= 4  # y has been rounded, too
    for got, expected in zip(answer[:2], reference(given), strict=True):
        if got is None:
            continue
        finite = expected[expected.isfinite()]
        most = finite.abs().max().item() if finite.numel() else 1.0
        torch.testing.assert_close(
            got.double(), expected, rtol=tolerance, atol=tolerance * most, equal_nan=True
        )


def check(*shape, kernel=None, run_options=(), **options):
    """Runs and compares with the reference; run_options as of run, options as of inputs."""
    given = inputs(*shape, **options)
    answer = run(given, kernel=kernel, **dict(run_options))
    assert answer.plan.kernel == kernel or kernel is None
    compare(answer, given)
    return answer
