"""What calls of conv_relu_pool's gradients in the emulator are given, and how they are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from conv_relu_pool_calls import TOLERANCE, exact, make

import imgfast  # noqa: F401  registers the operators that codes come from
from imgfast.ops.conv_relu_pool import _bind
from imgfast.ops.conv_relu_pool_route import needs_codes, spec_of
from imgfast.ops.conv_relu_pool_stock import conv_relu_pool_stock


class Inputs(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    grad_y: torch.Tensor
    y: torch.Tensor | None  # there if the gradient needs it
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


def references(given, *names):
    """The gradients of these of the inputs, by stock's operators in float64."""
    wide = {name: getattr(given, name).double() for name in ("x", "weight", "bias")}
    for name in names:
        wide[name].requires_grad_()
    y = conv_relu_pool_stock(*wide.values(), given.spec)
    return torch.autograd.grad(y, [wide[name] for name in names], given.grad_y.double())


def assert_near(got, expected, given):
    tolerance = TOLERANCE[given.x.dtype]
    if given.spec.activation in ("sigmoid", "tanh"):
        tolerance *= 4  # y has been rounded, too
    finite = expected[expected.isfinite()]
    most = finite.abs().max().item() if finite.numel() else 1.0
    torch.testing.assert_close(
        got.double(), expected, rtol=tolerance, atol=tolerance * most, equal_nan=True
    )
