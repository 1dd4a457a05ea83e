"""upsample_conv_relu's CUDA kernels in the emulator: the sums of taps, and whole passes.

What folds taps takes 8 rows by 32 columns a block; what unfolds them 8 channels, whose parts 8
threads share.
"""

from __future__ import annotations

import pytest
import simt
import simt_mutate
import torch
from conv_relu_pool_calls import DTYPES, KERNELS, NARROW, SEEDS, TOLERANCE, exact
from upsample_conv_relu_calls import (
    assert_near,
    backward_input,
    backward_weight,
    check,
    forward,
    make,
    stock,
)

TAPS = simt.load("upsample_taps")

PARITY = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).double()
ADJOINT = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]]).double()
ids = {"ids": lambda value: str(value).removeprefix("torch.")}


def layout(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format


# --- the sums of taps -----------------------------------------------------------------------------


def fold(weight, kernel, adjoint, **options):
    """Filters [4, K, C, 2, 2], or [1, C, K, 4, 4] of the adjoint, and what pads them; the
    profile."""
    k, c = weight.shape[:2]
    sets, taps = (1, 16) if adjoint else (4, 4)
    head = (k, c, torch.tensor(weight.stride()), DTYPES[weight.dtype], KERNELS.index(kernel))
    told = torch.zeros(2, dtype=torch.int64)
    data = simt.memory_of(weight)
    TAPS.run("upsample_fold_taps", *head, adjoint, data, None, simt.inout(told))
    rows, cols = told.tolist()
    to = torch.empty(sets * taps * rows * cols, dtype=weight.dtype)
    profile = TAPS.run(
        "upsample_fold_taps", *head, adjoint, data, simt.out(to), simt.inout(told), **options
    )
    if kernel.startswith("simt"):  # [sets, taps, channels, filters]
        to = to.view(sets, taps, rows, cols).permute(0, 3, 2, 1)
    else:
        to = to.view(sets, rows, taps, cols).permute(0, 1, 3, 2)
    side = 4 if adjoint else 2
    return to.unflatten(3, (side, side)), profile


def folded(weight, adjoint):
    """The same in float64, without padding."""
    wide = weight.double()
    if adjoint:
        return torch.einsum("ir,js,kcrs->ckij", ADJOINT, ADJOINT, wide)[None]
    return torch.einsum("air,bjs,kcrs->abkcij", PARITY, PARITY, wide).flatten(0, 1)


@pytest.mark.parametrize("adjoint", [False, True], ids=["parities", "adjoint"])
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("simt", torch.float32),
        ("simt_few", torch.float32),
        *[("mma", dtype) for dtype in DTYPES],
        *[("mma_few", dtype) for dtype in NARROW],
    ],
    **ids,
)
def test_folded_filters(kernel, dtype, adjoint):
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        for k, c in ((1, 1), (8, 32), (33, 7), (65, 40)):
            weight = torch.randn(k, c, 3, 3, generator=generator).to(dtype)
            weight = weight.contiguous(memory_format=layout(seed == 1))
            got, _ = fold(weight, kernel, adjoint, seed=seed, preempt=7 * seed)
            want = folded(weight, adjoint)
            filters, channels = want.shape[1:3]
            inside = got[:, :filters, :channels]
            torch.testing.assert_close(inside.double(), want, rtol=TOLERANCE[dtype], atol=1e-6)
            assert got.count_nonzero() == inside.count_nonzero()  # the rest is padding


def unfold(partial, weight, piece, module=TAPS, **options):
    """The gradient like weight, of partial [4, parts, K, pieces, 4, piece]; the profile."""
    k, c = weight.shape[:2]
    grad = torch.empty_like(weight)
    profile = module.run(
        "upsample_unfold_taps", k, c, piece, partial.shape[1], DTYPES[weight.dtype],
        torch.tensor(grad.stride()), partial, simt.out(grad), **options,
    )  # fmt: skip
    return grad, profile


def check_unfold(k, c, piece, parts, dtype=torch.float32, channels_last=False, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    pieces = -(-c // piece)
    partial = torch.randn(4, parts, k, pieces, 4, piece, generator=generator)
    weight = torch.empty(k, c, 3, 3, dtype=dtype).contiguous(memory_format=layout(channels_last))
    got, _ = unfold(partial, weight, piece, seed=seed, **options)
    sums = partial.double().sum(1).transpose(3, 4).reshape(2, 2, k, -1, 2, 2)[:, :, :, :c]
    assert_near(got, torch.einsum("air,bjs,abkcij->kcrs", PARITY, PARITY, sums))


@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("piece", [1, 4, 8])
def test_unfolded_gradient(piece, dtype):
    for seed in SEEDS:
        for k, c, parts in ((1, 1, 1), (3, 5, 7), (5, 8, 8), (2, 19, 9), (9, 16, 21)):
            options = {"seed": seed, "preempt": 7 * seed, "channels_last": seed == 1}
            check_unfold(k, c, piece, parts, dtype, **options)


def test_the_barrier_is_needed():
    def runs(module):
        check_unfold(3, 16, 8, 9, module=module, seed=1)

    assert simt_mutate.survivors("cuda/upsample_taps.cuh", "upsample_taps", runs) == []


def test_a_fixed_order():
    partial = torch.randn(4, 11, 4, 1, 4, 8)
    weight = torch.empty(4, 8, 3, 3)
    plain, _ = unfold(partial, weight, 8)
    for seed in SEEDS:
        assert torch.equal(unfold(partial, weight, 8, seed=seed, preempt=9)[0], plain)


def moved(profile):
    """Bytes that go on to the device's memory."""
    return 32 * profile.select(space="global").missed_sectors


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize(("kernel", "dtype"), [("simt", torch.float32), ("mma", torch.bfloat16)])
def test_bytes(kernel, dtype, channels_last):
    """Weights and sums are moved once."""
    weight = exact((64, 96, 3, 3), 0, dtype).contiguous(memory_format=layout(channels_last))
    size = weight.element_size()
    for adjoint in (False, True):
        got, profile = fold(weight, kernel, adjoint, profile=True)
        assert moved(profile) <= 1.05 * size * (weight.numel() + got.numel())
    piece = 4 if kernel == "simt" else 8
    partial = torch.zeros(4, 9, 64, 96 // piece, 4, piece)
    _, profile = unfold(partial, weight, piece, profile=True)
    assert moved(profile) <= 1.05 * (4 * partial.numel() + size * weight.numel())


# --- whole passes ---------------------------------------------------------------------------------

ROUTES = [  # channels, filters, tf32, forward's kernel and that of the gradient of x
    (torch.float32, 3, 5, False, "simt_few", "simt"),
    (torch.float32, 20, 67, False, "simt", "simt"),
    (torch.float32, 20, 67, True, "mma_wide", "mma"),
    (torch.float32, 72, 16, True, "mma", "mma_wide"),
    *[(dtype, 3, 16, False, "mma_few", "mma") for dtype in NARROW],
    *[(dtype, 40, 24, False, "mma", "mma") for dtype in NARROW],
    *[(dtype, 72, 65, False, "mma_wide", "mma_wide") for dtype in NARROW],
]


@pytest.mark.parametrize(("dtype", "c", "k", "tf32", "of_y", "of_x"), ROUTES, **ids)
def test_every_route(dtype, c, k, tf32, of_y, of_x):
    for seed in SEEDS:
        tensors = make(2, c, 3, 5, k, dtype=dtype, channels_last=seed != 1, seed=seed)
        answers = check(*tensors, tf32=tf32, seed=seed)
        assert [answer.kernel for answer in answers[:2]] == [of_y, of_x]


# A tile of y is 128 positions, one of the weight gradient 64 to 128: maps of one position, one
# row, some at the edge of a tile, and several.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
@pytest.mark.parametrize(
    ("n", "h", "w"), [(1, 1, 1), (3, 1, 17), (1, 17, 1), (9, 4, 4), (1, 9, 15)]
)
def test_maps(n, h, w, dtype):
    for channels_last in (True, False):
        check(*make(n, 8, h, w, 6, dtype=dtype, channels_last=channels_last), seed=1)


@pytest.mark.parametrize(
    "activation", ["none", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu"]
)
def test_activations(activation):
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias, grad_y = make(1, 8, 3, 4, 6, dtype=dtype)
        for given in (bias, None):
            check(x, weight, given, grad_y, activation)


def test_memory_of_any_strides():
    x, weight, bias, grad_y = make(1, 8, 4, 5, 6, channels_last=False)
    wide = x.new_full((1, 8, 5, 8), float("nan"))
    wide[:, :, 1:, 3:] = x
    turned = weight.transpose(0, 1).contiguous().transpose(0, 1)
    check(wide[:, :, 1:, 3:], turned, bias, grad_y.transpose(2, 3).contiguous().transpose(2, 3))
    check(x, weight, bias, grad_y[:, :, :1, :1].expand(grad_y.shape))


def test_not_finite():
    """NaN and infinities reach what reads them, and no padding."""
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias, _ = make(1, 8, 5, 6, 8, dtype=dtype)
        weight.abs_().add_(0.25)
        x[0, 0, 2, 3], x[0, 5, 4, 5] = float("nan"), float("inf")
        y = forward(x, weight, bias, 1, seed=1).tensors[0]
        assert_near(y, stock(*(t.double() for t in (x, weight, bias)), "relu"))


def test_schedules_and_preemption_change_no_bit():
    generator = torch.Generator().manual_seed(0)
    x, weight, grad_y = (
        torch.randn(shape, generator=generator).bfloat16()
        for shape in ((2, 40, 3, 5), (8, 40, 3, 3), (2, 8, 6, 10))
    )
    y = forward(x, weight, None, 1).tensors[0]
    grads = backward_weight(grad_y, x, weight, y, 1).tensors
    for seed in SEEDS:
        options = {"seed": seed, "preempt": 50}
        assert torch.equal(forward(x, weight, None, 1, **options).tensors[0], y)
        again = backward_weight(grad_y, x, weight, y, 1, **options).tensors
        assert all(map(torch.equal, again, grads))


@pytest.mark.parametrize("dtype", NARROW, **ids)
def test_error_of_rounded_filters(dtype):
    """Beside that of exact results, rounded: the factors' rounding adds about as much again to y
    and to the gradient of x, and nothing to that of the weight, whose parts are float32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 8, 8, generator=generator).to(dtype)
    weight = (torch.randn(32, 64, 3, 3, generator=generator) / 24).to(dtype)
    grad_y = torch.randn(1, 32, 16, 16, generator=generator).to(dtype)
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    exact_y = stock(*wide, None, "none")
    grads = torch.autograd.grad(exact_y, wide, grad_y.double())

    y = forward(x, weight, None, 0, seed=1).tensors[0]
    grad_x = backward_input(grad_y, x, weight, y, 0, seed=1).tensors[0]
    grad_weight = backward_weight(grad_y, x, weight, y, 0, seed=1).tensors[0]

    def times(got, of):
        errors = [(t.double() - of).square().mean().sqrt() for t in (got, of.to(dtype))]
        return errors[0] / errors[1]

    assert times(y, exact_y.detach()) <= 1.6
    assert times(grad_x, grads[0]) <= 1.6
    assert times(grad_weight, grads[1]) <= 1.01
