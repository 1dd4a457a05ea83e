"""Values and gradients of cross_entropy, against torch's own in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import TOLERANCE, check, gradients, lay_out, make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgfast import cross_entropy

REDUCTIONS = ["none", "mean", "sum"]
INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def one_thread():
    """Most tensors here are tiny, and threads that wait for one another take most of the time."""
    torch.set_num_threads(1)


# Around the lanes of every instruction set (4, 8, 16), the switch of kernels (24) and a block of
# the rows kernel (4096); primes between.
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize(
    "classes",
    [1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 24, 25, 31, 61, 127, 128, 129, 130, 144, 257, 1009, 4095,
     4096, 4097, 8211],
)  # fmt: skip
def test_class_counts(classes, probabilities, device):
    logits, target, weight = make(
        (5, classes), probabilities=probabilities, seed=classes, device=device
    )
    check(logits, target)
    least = 1.0 if classes == 1 else 1e-2  # of one class all terms of a gradient cancel
    check(logits, target, weight, label_smoothing=0.1, reduction="sum", least=least)


# Around the width of a tile (256 rows), the rows that are taken at a time (64), and the end of a
# chunk (3328 rows of 10 classes, 327 of 100).
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize(
    ("rows", "classes"),
    [(1, 10), (15, 10), (16, 10), (17, 10), (255, 10), (256, 10), (257, 10), (3329, 10), (63, 100),
     (64, 100), (65, 100), (331, 100), (33, 1009)],
)  # fmt: skip
def test_row_counts(rows, classes, probabilities, device):
    logits, target, weight = make(
        (rows, classes), probabilities=probabilities, ignored=True, device=device
    )
    check(logits, target, reduction="none")
    check(logits, target, weight, label_smoothing=0.2)


@pytest.mark.devices(simt_every=7)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize(
    "shape", [(13,), (37, 11), (3, 200), (2, 5, 7), (2, 3, 4, 5), (2, 3, 2, 3, 2)]
)
def test_options(shape, probabilities, weighted, reduction, smoothing, dtype, device):
    logits, target, weight = make(
        shape, probabilities=probabilities, ignored=True, dtype=dtype, device=device
    )
    if not probabilities:
        target.view(-1)[0] = 1  # something counts
    check(
        logits,
        target,
        weight if weighted else None,
        reduction=reduction,
        label_smoothing=smoothing,
    )


@pytest.mark.devices(simt_every=5)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "transposed", "padded", "strided", "swapped"]
)
@pytest.mark.parametrize(
    "shape", [(19, 10), (3, 150), (2, 19, 9, 31), (2, 150, 3, 5), (3, 4, 2), (5, 6, 1, 1)]
)
def test_layouts(shape, layout, dtype, probabilities, device):
    logits, target, weight = make(shape, probabilities=probabilities, dtype=dtype, device=device)
    logits = lay_out(logits, layout)
    _, grad, *_ = check(logits, target, weight, reduction="none")
    assert grad.stride() == torch.empty_like(logits).stride()  # those of dense logits stay
    if probabilities:
        check(logits, lay_out(target, "channels_last"), label_smoothing=0.1)
        check(logits, lay_out(target, "swapped"))


def test_broadcast_logits(device):
    logits, target, weight = make((6, 10), device=device)
    check(logits[:1].expand(6, 10), target, weight)
    check(logits[:, :1].expand(6, 10), target)
    logits, target, _ = make((6, 300), device=device)
    check(logits[:1].expand(6, 300), target)


@pytest.mark.parametrize("classes", [10, 200])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_counts(classes, smoothing, reduction, device):
    logits, target, weight = make((6, classes), device=device)
    ignored, first = torch.full_like(target, -100), torch.full_like(target, 1)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    for w in (None, weight):
        for target in (ignored, first):
            check(logits, target, w, **options)
            check(logits, target, torch.zeros_like(weight), **options)
        check(logits, first, w, ignore_index=1, **options)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0)])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch(shape, probabilities, reduction):
    logits, target, _ = make(shape, probabilities=probabilities)
    check(logits, target, reduction=reduction)


SPECIAL_ROWS = {  # the target is class 1
    "-inf elsewhere": [-INF, 1.0, 2.0],
    "-inf at the target": [0.0, -INF, 2.0],
    "only the target": [-INF, 1.0, -INF],
    "only another": [2.0, -INF, -INF],
    "only -inf": [-INF, -INF, -INF],
    "+inf at the target": [0.0, INF, 1.0],
    "+inf elsewhere": [INF, 0.0, 1.0],
    "two +inf": [INF, INF, 1.0],
    "both": [INF, 0.0, -INF],
    "nan": [0.0, 1.0, NAN],
    "nan and -inf": [NAN, -INF, -INF],
    "nan first": [NAN, 1.0, 5.0],
    "large": [5e37, -5e37, 5e37],
    "masked by a large number": [-1e30, -1e30, -1e30],
    "far from 0": [10000.0, 10000.5, 9999.0],
    "far below 0": [-10000.0, -10000.5, -9999.0],
    "far apart": [10000.0, -10000.0, 0.0],
    "small": [1e-40, -1e-40, 0.0],
}


# Every place of the row in a tile or a block: first, inside a vector, in the tail; the rest of a
# long row is -inf, so that whole vectors and blocks hold nothing.
@pytest.mark.devices(simt_every=5)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("classes", "at"), [(3, 0), (19, 16), (300, 0), (300, 130), (300, 297), (4200, 4196)]
)
@pytest.mark.parametrize("name", SPECIAL_ROWS)
def test_special_values(name, classes, at, smoothing, probabilities, device):
    logits = torch.full((4, classes), -INF, device=device)
    logits[:, at : at + 3] = torch.tensor(SPECIAL_ROWS[name])
    logits[2] = torch.linspace(-1, 1, classes)
    target = torch.full((4,), at + 1, device=device)
    target[3] = -100
    if probabilities:
        target = F.one_hot(target.clamp_min(0), classes).float()
    for weight in (None, torch.linspace(0, 2, classes, device=device)):
        # float32 holds 10000.5 exactly; what is lost there is lost in torch's float32, too
        check(logits, target, weight, reduction="none", label_smoothing=smoothing, tolerance=1e-5)


def test_first_block_of_only_minus_infinity(device):
    for classes in (8192, 5000):  # blocks of 4096
        logits = torch.full((2, classes), -INF, device=device)
        logits[:, -3:] = torch.tensor([1.0, 2.0, 3.0])
        target = torch.tensor([classes - 1, classes - 3], device=device)
        check(logits, target)
        check(lay_out(logits, "transposed"), target)


def test_rising_and_falling_logits(device, request):
    """Every block has another maximum, so that sums are rescaled again and again."""
    rising = torch.linspace(-300, 300, 20000).repeat(2, 1).to(device)
    _, target, weight = make((2, 20000), device=device)
    _, probabilities, _ = make((2, 20000), probabilities=True, device=device)
    # Of classes that lie apart a CUDA thread adds up all 20000 in float32, one after another.
    apart = None if request.node.get_closest_marker("cpu") else 1e-4
    for layout, tolerance in (("contiguous", None), ("transposed", apart)):
        for logits in (lay_out(rising, layout), lay_out(rising.flip(1), layout)):
            check(logits, target, weight, tolerance, label_smoothing=0.3)
            check(logits, probabilities, weight, tolerance)


def test_bfloat16_keeps_the_gradient_of_a_sure_row(device):
    """1 - p is taken before rounding: p itself would round to 1."""
    logits = torch.tensor([[8.0, 0.0, 0.0], [0.0, 7.0, 0.0]], dtype=torch.bfloat16, device=device)
    _, grad, *_ = check(logits, torch.tensor([0, 1], device=device), reduction="sum")
    assert grad[0, 0] != 0 and grad[1, 1] != 0
    wide = torch.zeros(1, 200, dtype=torch.bfloat16, device=device)
    wide[0, 5] = 13
    _, grad, *_ = check(wide, torch.tensor([5], device=device), reduction="sum")
    assert grad[0, 5] != 0


def test_float16_mean_over_more_rows_than_float16_can_count(device):
    logits, target, _ = make((70000, 3), dtype=torch.float16, device=device)
    loss, grad, *_ = check(logits, target, least=5e-5)
    assert loss > 0.1 and grad.any()


def test_logits_are_left_alone(device):
    logits, target, _ = make((64, 300), device=device)
    before = logits.clone()
    gradients(cross_entropy, logits, target, None)
    assert torch.equal(logits, before)


@pytest.mark.devices("cpu", "cuda")  # the emulator would copy it all
def test_offsets_beyond_32_bits(device):
    """Rows, and planes, that lie 2^30 elements apart; on the CPU only the pages used exist."""
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 7 << 30:
        pytest.skip("less than 7 GB of the GPU's memory is free")
    storage = torch.empty(3 << 30, dtype=torch.bfloat16, device=device)
    far = 1 << 30
    for shape, strides in (
        ((3, 300), (far, 1)),
        ((3, 10), (far, 1)),
        ((10, 3), (1, far)),
        ((3, 5, 7), (far, 7, 1)),
        ((2, 3, 7), (8, far, 1)),
    ):
        logits, target, _ = make(shape, dtype=torch.bfloat16, device=device)
        check(storage.as_strided(shape, strides).copy_(logits), target)


def test_same_bits_for_any_number_of_threads():
    for shape in ((5000, 10), (200, 1000), (2, 19, 64, 64), (3, 100000)):
        logits, target, weight = make(shape)
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [gradients(cross_entropy, logits, target, weight) for _ in range(2)]
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_random_configurations(data, device):
    # On a GPU float64 is stock's, whose sums are not the same every time.
    without = torch.float64 if device.type == "cuda" else None
    positions = data.draw(st.lists(st.integers(1, 6), max_size=3))
    rows = data.draw(st.integers(1, 70))
    classes = data.draw(st.one_of(st.integers(1, 40), st.integers(100, 300)))
    if positions:
        rows = min(rows, 9)
    shape = (rows, classes, *positions)
    probabilities = data.draw(st.booleans())
    ignore_index = -100 if probabilities else data.draw(st.sampled_from([-100, 0]))
    logits, target, weight = make(
        shape,
        probabilities=probabilities,
        ignored=ignore_index == -100 and data.draw(st.booleans()),
        dtype=data.draw(st.sampled_from([t for t in TOLERANCE if t != without])),
        scale=data.draw(st.sampled_from([0.0, 1.0, 30.0])),
        seed=data.draw(st.integers(0, 99)),
        device=device,
    )
    layouts = ["contiguous", "channels_last", "transposed", "padded", "strided", "swapped"]
    logits = lay_out(logits, data.draw(st.sampled_from(layouts)))
    if probabilities:
        target = lay_out(target, data.draw(st.sampled_from(layouts)))
    check(
        logits,
        target,
        weight if data.draw(st.booleans()) else None,
        reduction=data.draw(st.sampled_from(REDUCTIONS)),
        label_smoothing=data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0, -0.5])),
        ignore_index=ignore_index,
        least=max(1e-2, 4 / classes),  # the size of terms that cancel where all logits are equal
    )
