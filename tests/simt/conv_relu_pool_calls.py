"""Calls of conv_relu_pool's CUDA kernels in the emulator, and what they must answer.

Inputs are small multiples of 1/4, so that every sum is exact in float32 and in tf32: ties are true
ties, and a wrong position of a maximum cannot hide behind rounding.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import simt
import torch
from torch._prims_common import suggest_memory_format

import imgfast  # noqa: F401  registers the operators that the codes are compared with
from imgfast.ops.conv_relu_pool import _bind
from imgfast.ops.conv_relu_pool_route import Spec, spec_of
from imgfast.ops.conv_relu_pool_stock import conv_relu_pool_stock

KERNELS = ("none", "simt", "simt_few", "mma", "mma_wide", "mma_few")  # ConvKernel's order
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}  # DType's numbers
RUN_OPTIONS = ("kernel", "module", "profile", "seed", "preempt")  # of forward
POOLS = {  # one of each kind of Pooling
    "none": {"pool": "none"},
    "quad": {"pool": "max", "pool_size": 2},
    "window": {"pool": "max", "pool_size": 3, "pool_stride": 2, "pool_padding": 1},
}
NARROW = (torch.bfloat16, torch.float16)
SEEDS = (0, 1, 2)  # of the emulator's schedules
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}


class Plan(NamedTuple):
    kernel: str
    workspace: int
    blocks: int
    images: int
    rows: int
    cols: int


class Answer(NamedTuple):
    y: torch.Tensor
    codes: torch.Tensor | None
    plan: Plan
    profile: simt.Profile


@functools.cache
def kernels():
    return simt.load("conv_relu_pool")


def exact(shape, seed, dtype=torch.float32, top=6):
    """Multiples of 1/4 in [-top / 4, top / 4]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-top, top + 1, shape, generator=generator).to(dtype) / 4


def make(n, c, h, w, k, r, s, *, groups=1, dtype=torch.float32, channels_last=True, seed=0):
    """x, weight and bias; x and weight channels_last or contiguous."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = exact((n, c, h, w), seed, dtype).contiguous(memory_format=layout)
    weight = exact((k, c // groups, r, s), seed + 1, dtype, top=3)
    return x, weight.contiguous(memory_format=layout), exact((k,), seed + 2, dtype)


def layout_of(*tensors):
    """channels_last if torch would call one of them so."""
    last = any(suggest_memory_format(t) == torch.channels_last for t in tensors)
    return torch.channels_last if last else torch.contiguous_format


def empty_answer(x, weight, spec):
    """y, in the layout that answers_channels_last tells in csrc/conv_relu_pool_call.h."""
    shape = conv_relu_pool_stock(x.to("meta"), weight.to("meta"), None, spec).shape
    both = shape[1] == 1 or spec.conv_size(x.shape, weight.shape) == [1, 1]
    layout = layout_of(x, weight)
    if both and spec.activation != "none":
        layout = torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, memory_format=layout)


def run(x, weight, bias, *, tf32=False, save_codes=None, **args):
    """y, codes and plan of the kernel of that name, or of the one that is chosen.

    Args:
        save_codes: by default wherever there are codes.
        args: those of :func:`forward`, and those of ``imgfast.ops.conv_relu_pool``.
    """
    options = {name: args.pop(name) for name in RUN_OPTIONS if name in args}
    spec = spec_of(*_bind(**args))
    positions = spec.pool_size[0] * spec.pool_size[1]
    if save_codes is None:
        save_codes = spec.pool == "max" or (spec.pool == "avg" and positions <= 8)
    geometry = spec.geometry(weight.shape, allow_tf32=tf32)
    return forward(x, weight, bias, geometry, save_codes, **options)


def forward(
    x,
    weight,
    bias,
    geometry,
    save_codes,
    *,
    kernel=None,
    module=None,
    profile=False,
    **options,
):
    """Of the arguments of torch.ops.imgfast.conv_relu_pool.

    Args:
        kernel: a name, if not that of the kernel that is chosen.
        module: of another binding with the same functions.
        options: seed and preempt, for the emulator.
    """
    module = module or kernels()
    y = empty_answer(x, weight, Spec.of_geometry(geometry))
    n, k, ph, pw = y.shape
    codes = torch.empty((n, ph, pw, k), dtype=torch.uint8) if save_codes else None

    sizes = torch.tensor([*x.shape, k, *weight.shape[2:]])
    strides = torch.tensor([*x.stride(), *weight.stride(), *y.stride()])
    chosen = -1 if kernel is None else KERNELS.index(kernel)
    head = (sizes, strides, torch.tensor(geometry), DTYPES[x.dtype], chosen)
    data = (simt.memory_of(x), simt.memory_of(weight))
    told = torch.zeros(6, dtype=torch.int64)
    module.run("plan_conv_relu_pool", *head, *data, simt.out(y, True), simt.inout(told))
    plan = Plan(KERNELS[told[0]], *told[1:].tolist())
    if plan.kernel == "none":
        return Answer(y, codes, plan, simt.Profile(()))
    workspace = torch.empty(plan.workspace, dtype=torch.uint8) if plan.workspace else None
    counted = module.run(
        "conv_relu_pool",
        *head,
        *data,
        bias,
        simt.out(y),
        None if codes is None else simt.out(codes),
        None if workspace is None else simt.out(workspace),
        profile=profile,
        **options,
    )
    return Answer(y, codes, plan, counted)


def check(x, weight, bias, *, kernel=None, **args):
    """Runs and compares: y with stock in float64, codes with the CPU's kernels in float64."""
    answer = run(x, weight, bias, kernel=kernel, **args)
    assert answer.plan.kernel == kernel or kernel is None
    for name in ("tf32", "save_codes", *RUN_OPTIONS):
        args.pop(name, None)
    spec = spec_of(*_bind(**args))
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    reference = conv_relu_pool_stock(*wide, spec)
    tolerance = TOLERANCE[x.dtype]
    finite = reference[reference.isfinite()]
    torch.testing.assert_close(
        answer.y.double(),
        reference,
        rtol=tolerance,
        atol=tolerance * (finite.abs().max().item() if finite.numel() else 1.0),
        equal_nan=True,
    )
    if answer.codes is None:
        return answer
    if spec.pool == "max" and spec.activation in ("gelu", "silu"):
        # Rounding decides between near ties of these: what must hold is the value at the position.
        terms = conv_relu_pool_stock(*wide, spec._replace(pool="none"))
        picked = at_codes(terms, answer.codes, spec)
        torch.testing.assert_close(picked, reference, rtol=1e-6, atol=1e-6, equal_nan=True)
        return answer
    geometry = spec.geometry(weight.shape)
    _, codes = torch.ops.imgfast.conv_relu_pool(*wide, geometry, True)
    assert torch.equal(answer.codes, codes)
    return answer


def at_codes(terms, codes, spec):
    """The terms [N, K, P, Q] at the positions that the codes [N, PH, PW, K] of a max pool name."""
    codes = codes.permute(0, 3, 1, 2).long()
    n, k, ph, pw = codes.shape
    i, j = codes // spec.pool_size[1], codes % spec.pool_size[1]
    row = torch.arange(ph).view(-1, 1) * spec.pool_stride[0] - spec.pool_padding[0]
    col = torch.arange(pw) * spec.pool_stride[1] - spec.pool_padding[1]
    p, q = row + i * spec.pool_dilation[0], col + j * spec.pool_dilation[1]
    flat = (p * terms.shape[3] + q).flatten(2)
    return terms.flatten(2).gather(2, flat).view(n, k, ph, pw)
