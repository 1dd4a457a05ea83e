"""Values and gradients of linear_cross_entropy against the composition in float64, with tiles so
small that every head has several; memory of a large one."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from linear_cross_entropy_cases import (
    TOLERANCE,
    check,
    composition,
    gradients,
    make,
    use_small_tiles,
)

from imgfast import _C, linear_cross_entropy
from imgfast.ops import linear_cross_entropy_route as route
from imgfast.ops import linear_cross_entropy_tiles as tiles

REDUCTIONS = ["none", "mean", "sum"]
INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    use_small_tiles(monkeypatch)


# Around the edges of a block (7 rows) and of a chunk (7 classes of float64 or float32 tiles of 9
# features are 3 and 7 wide), and primes.
@pytest.mark.devices(simt_every=7)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 6, 7, 8, 14, 15, 61])
@pytest.mark.parametrize("rows", [1, 6, 7, 8, 14, 31])
def test_sizes(rows, classes, probabilities, device):
    input, linear_weight, linear_bias, target, weight = make(
        rows, 9, classes, probabilities=probabilities, seed=rows + classes, device=device
    )
    least = 1e-2 if classes > 1 else 1.0  # the only class has no gradient
    check(input, linear_weight, None, target, least=least)
    check(
        input,
        linear_weight,
        linear_bias,
        target,
        weight=weight,
        label_smoothing=0.1,
        reduction="sum",
        least=least,
    )


@pytest.mark.devices(simt_every=7)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
def test_options(probabilities, weighted, reduction, smoothing, dtype, device):
    *tensors, weight = make(probabilities=probabilities, ignored=True, dtype=dtype, device=device)
    check(
        *tensors,
        weight=weight if weighted else None,
        reduction=reduction,
        label_smoothing=smoothing,
    )


# Of the CPU's kernels: on CUDA the order of a sum depends on where the memory of a tile begins.
@pytest.mark.parametrize("kept_bytes", [0, 500, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_and_recomputed_tiles(monkeypatch, dtype, kept_bytes):
    """None, the first few, or all: the numbers are the same, bit for bit."""
    *tensors, weight = make(ignored=True, dtype=dtype)
    expected = gradients(linear_cross_entropy, *tensors, weight=weight, label_smoothing=0.1)
    monkeypatch.setattr(tiles, "KEPT_BYTES", kept_bytes)
    got = check(*tensors, weight=weight, label_smoothing=0.1)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("shape", [(40, 16, 3), (5, 300, 50), (300, 2, 11), (1, 1, 1)])
def test_shapes_of_heads(shape):
    check(*make(*shape, ignored=True)[:-1])
    check(*make(*shape, dtype=torch.float64)[:-1], reduction="none")


def test_default_tiles_of_a_head_beyond_the_small_ones(monkeypatch):
    monkeypatch.undo()
    input, linear_weight, linear_bias, target, weight = make(1500, 8, 2001, ignored=True)
    assert target.shape[0] * len(linear_weight) > route.SMALL
    # Sums of thousands of terms in float32: the composition itself is off by 5e-6.
    check(input, linear_weight, linear_bias, target, tolerance=2e-5)
    check(input, linear_weight, None, target, weight=weight, tolerance=2e-5)


def test_ignore_index():
    input, linear_weight, linear_bias, target, _ = make(ignored=True)
    target[target == -100] = 5
    for ignore_index in (5, 400, -1):
        target[0] = ignore_index
        check(input, linear_weight, linear_bias, target, ignore_index=ignore_index)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_counts(smoothing, reduction, device):
    input, linear_weight, linear_bias, target, weight = make(device=device)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    for w in (None, weight, torch.zeros_like(weight)):
        check(input, linear_weight, linear_bias, torch.full_like(target, -100), weight=w, **options)
        check(input, linear_weight, linear_bias, target, weight=w, **options)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (0, 0, 5)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(shape, reduction):
    rows, features, classes = shape
    input, linear_weight = torch.zeros(rows, features), torch.zeros(classes, features)
    target = torch.zeros(rows, dtype=torch.long)
    check(input, linear_weight, None, target, reduction=reduction)


SPECIAL_ROWS = {  # the target is class 1
    "-inf elsewhere": [-INF, 1.0, 2.0],
    "-inf at the target": [0.0, -INF, 2.0],
    "only the target": [-INF, 1.0, -INF],
    "only another": [2.0, -INF, -INF],
    "only -inf": [-INF, -INF, -INF],
    "+inf at the target": [0.0, INF, 1.0],
    "+inf elsewhere": [INF, 0.0, 1.0],
    "nan": [0.0, 1.0, NAN],
    "nan first": [NAN, 1.0, 5.0],
    "far from 0": [10000.0, 10000.5, 9999.0],
    "far below 0": [-10000.0, -10000.5, -9999.0],
    "far apart": [10000.0, -10000.0, 0.0],
}


# Whole chunks (7 classes) of -inf before, after and around the row.
@pytest.mark.devices(simt_every=11)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("classes", "at"), [(3, 0), (30, 0), (30, 13), (30, 27)])
@pytest.mark.parametrize("name", SPECIAL_ROWS)
def test_special_logits(name, classes, at, smoothing, probabilities, device):
    """Logits come from the bias: finite gradients only where stock's are."""
    linear_bias = torch.full((classes,), -INF, device=device)
    linear_bias[at : at + 3] = torch.tensor(SPECIAL_ROWS[name])
    input, linear_weight = (torch.zeros(rows, 4, device=device) for rows in (9, classes))
    target = torch.full((9,), at + 1, device=device)
    target[3] = -100
    if probabilities:
        target = torch.nn.functional.one_hot(target.clamp_min(0), classes).float()
    for weight in (None, torch.linspace(0, 2, classes, device=device)):
        check(
            input,
            linear_weight,
            linear_bias,
            target,
            weight=weight,
            reduction="none",
            label_smoothing=smoothing,
            tolerance=1e-5,
        )


def test_rising_and_falling_logits():
    """Every chunk has another maximum, so that sums are rescaled again and again."""
    input, linear_weight, _, target, weight = make(9, 4, 500)
    for linear_bias in (torch.linspace(-300, 300, 500), torch.linspace(300, -300, 500)):
        probabilities = make(9, 4, 500, probabilities=True)[3]
        for t, options in (
            (target, {"weight": weight, "label_smoothing": 0.3}),
            (probabilities, {}),
        ):
            # a logit of 300 is rounded to 1.5e-5
            check(input, linear_weight, linear_bias, t, tolerance=2e-5, **options)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_frozen_operands(frozen):
    *tensors, _ = make()
    results = []
    for function in (linear_cross_entropy, composition):
        leaves = [t.detach().requires_grad_(i not in frozen) for i, t in enumerate(tensors[:3])]
        loss = function(leaves[0], leaves[1], tensors[3], linear_bias=leaves[2])
        loss.backward()
        results.append([leaf.grad for leaf in leaves])
    for i, (ours, stock) in enumerate(zip(*results, strict=True)):
        assert (ours is None) == (i in frozen)
        if ours is not None:
            torch.testing.assert_close(ours, stock)


def test_layouts():
    input, linear_weight, linear_bias, target, _ = make()
    for lay_out in (
        lambda t: t.t().contiguous().t(),
        lambda t: t.repeat_interleave(2, 0)[::2],
        lambda t: torch.nn.functional.pad(t, (1, 2))[:, 1:-2],
        lambda t: t[:1].expand(t.shape),
        lambda t: torch.complex(t, t).conj().imag,
    ):
        check(lay_out(input), linear_weight, linear_bias, target)
        check(input, lay_out(linear_weight), linear_bias, target)
    check(input, linear_weight, linear_bias[:1].expand(37), target)
    check(input, linear_weight, linear_bias, target.repeat_interleave(2)[::2])


def test_arguments_are_left_alone():
    tensors = make(ignored=True)
    before = [t.clone() for t in tensors]
    gradients(linear_cross_entropy, *tensors[:-1], weight=tensors[-1])
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_bfloat16_keeps_the_gradient_of_a_sure_row():
    """1 - p is taken before rounding: p itself would round to 1."""
    input = torch.eye(3, dtype=torch.bfloat16) * 8
    got = check(input, torch.eye(3, dtype=torch.bfloat16), None, torch.arange(3), reduction="sum")
    assert all((grad.diagonal() != 0).all() for grad in got[1:])


def test_float16_mean_over_more_rows_than_float16_can_count(monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", 1024)
    monkeypatch.setattr(tiles, "TILE_BYTES", 4096)
    input, linear_weight, linear_bias, target, _ = make(70000, 1, 4, dtype=torch.float16)
    loss = linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias)
    exact = composition(
        input.double(), linear_weight.double(), target, linear_bias=linear_bias.double()
    )
    torch.testing.assert_close(loss.double(), exact, rtol=1e-3, atol=0)


def test_error_is_no_larger_than_that_of_the_composition():
    """In bfloat16, over several blocks and chunks."""
    *tensors, _ = make(60, 32, 300, dtype=torch.bfloat16)
    exact = gradients(composition, *(t.double() for t in tensors[:3]), tensors[3])
    ours = gradients(linear_cross_entropy, *tensors)
    stock = gradients(composition, *tensors)
    for a, b, e in zip(ours[1:], stock[1:], exact[1:], strict=True):
        assert (a.double() - e).norm() <= 1.1 * (b.double() - e).norm()


def test_same_bits_again():
    *tensors, weight = make(ignored=True)
    first = gradients(linear_cross_entropy, *tensors, weight=weight)
    again = gradients(linear_cross_entropy, *tensors, weight=weight)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


PEAK = """
import torch
from imgfast import {name} as loss

torch.set_num_threads(1)
N, D, C = 512, {features}, 200_000
input = torch.randn(N, D, requires_grad=True)
linear_weight = torch.randn(C, D, requires_grad=True)
target = torch.randint(C, (N,))
small = torch.randn(16, 8, requires_grad=True)
loss(small, small, target[:16] % 16).backward()  # loads code
def status(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1])
before = status("VmRSS")
loss(input, linear_weight, target).backward()
peak = status("VmHWM")  # of this program alone: ru_maxrss may be that of the process it came from
gradients = (input.numel() + linear_weight.numel()) * 4
print((peak - before) * 1024 - gradients)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(
    bool(_C.build_info()["sanitize"]), reason="AddressSanitizer holds back what is freed"
)
@pytest.mark.parametrize(
    ("name", "features"), [("linear_cross_entropy", 512), ("arcface_loss", 128)]
)
def test_peak_memory_of_a_large_head(name, features):
    """Beside the gradients at most 256 MB; all logits are 410 MB."""
    result = subprocess.run(
        [sys.executable, "-c", PEAK.format(name=name, features=features)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert int(result.stdout) < 256 << 20
