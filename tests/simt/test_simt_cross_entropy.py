"""The CUDA kernels of cross_entropy, executed by the emulator, against float64.

Every kernel and template instance: seven ways to share out rows, three dtypes, three kinds of
targets, forward, both in one pass, and backward.
"""

import pytest
import simt
import torch
import torch.nn.functional as F
from cross_entropy_calls import (
    BLOCK,
    HALF_WARP,
    NAMES,
    PLANES,
    QUARTER_WARP,
    STAGED,
    WARP,
    WIDE_PLANES,
    Call,
    first_correct,
    kernels,
    reference,
    run,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = ["index", "smoothed", "probability"]
EPS = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # of a rounding
IGNORED = -100

# Rows and classes of each kernel: around what a thread, a warp or a block takes at once (a vector
# is 4 or 8 classes; batches are 256 classes of a quarter of a warp, 512, 1024, and 8192 of a
# block), odd and prime, so that rows begin anywhere. Positions are the last dimension.
SHAPES = {
    STAGED: [
        *[(1, 1, 1), (31, 2, 1), (33, 7, 1), (130, 10, 1), (32, 64, 1), (29, 37, 1)],
        (33, 65, 1),  # of many rows
    ],
    QUARTER_WARP: [(3, 3, 1), (5, 65, 1), (9, 37, 1), (2, 256, 1), (17, 101, 1), (3, 267, 1)],
    HALF_WARP: [(3, 3, 1), (5, 65, 1), (9, 257, 1), (2, 512, 1), (3, 523, 1)],
    WARP: [(3, 3, 1), (5, 65, 1), (2, 255, 1), (1, 1024, 1), (2, 1025, 1), (3, 1031, 1)],
    BLOCK: [(2, 5, 1), (2, 1023, 1), (1, 2049, 1), (1, 8192, 1), (1, 8209, 1)],
    PLANES: [(1, 1, 3), (2, 7, 65), (1, 8, 127), (3, 9, 5), (1, 19, 129)],
    WIDE_PLANES: [(1, 3, 4), (2, 4, 12), (1, 9, 512), (2, 17, 260)],
}


@pytest.fixture(scope="module")
def module():
    return simt.load("cross_entropy")


def make(shape, dtype, kind, seed, **options):
    """A call of ``kind``; shape is (outer, C, inner), classes side by side if inner is 1."""
    outer, C, inner = shape
    generator = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(shape, generator=generator)).to(dtype)
    target = torch.randint(C, (outer, inner), generator=generator)
    if seed % 2 and outer * inner > 1:
        target[0, 0] = IGNORED
    weight = torch.rand(C, generator=generator) + 0.5 if seed else None
    if kind == "probability":
        target = torch.softmax(torch.randn(shape, generator=generator), 1).to(dtype)
    if kind != "index":
        options.setdefault("smoothing", 0.1 if kind == "smoothed" else 0.05 * seed)
    return Call(x, target, weight=weight, **options)


def check(module, call, *, grad_lse=None, seed=0, **options):
    """Forward, backward, and both in one pass."""
    rows, loss_dtype = call.rows, call.loss_dtype
    eps = EPS[call.x.dtype]
    loss_eps = EPS[loss_dtype]
    loss, lse, gradient = reference(call)
    scale = call.x.double().abs().nan_to_num(posinf=0).max().item() + 1

    def close(ours, theirs, tolerance, floor):
        torch.testing.assert_close(
            ours.double().flatten(), theirs.flatten(), rtol=tolerance, atol=floor, equal_nan=True
        )

    def check_stats(stats):
        m, s = stats[:rows], stats[rows : 2 * rows]
        # As on the CPU, +inf - inf counts.
        finite = torch.where(lse == torch.inf, torch.nan, lse)
        close(m.double() + s.double().log(), finite, 4 * EPS[torch.float32], 2e-6)
        if call.correct:
            close(stats[2 * rows + 4 :], first_correct(call), 0, 0)

    written = run(module, call, seed=seed, **options)
    close(written.loss, loss, 2 * loss_eps + 2e-6, 1e-6 * scale)
    check_stats(written.stats)

    largest = gradient.nan_to_num(posinf=0, neginf=0).abs().max().item()
    fused = run(module, call, gradient=torch.empty_like(call.x), seed=seed, **options)
    close(fused.loss, loss, 2 * loss_eps + 2e-6, 1e-6 * scale)
    check_stats(fused.stats)
    close(fused.gradient, gradient, eps + 4e-6, eps * largest * 0.01 + 2e-6 * largest + 6e-8)

    grad_loss = 0.5 + torch.rand(len(loss), generator=torch.Generator().manual_seed(seed))
    grad_loss = grad_loss.to(loss_dtype)
    *_, gradient = reference(call, grad_loss, grad_lse)
    largest = gradient.nan_to_num(posinf=0, neginf=0).abs().max().item()
    back = run(
        module,
        call,
        gradient=torch.empty_like(call.x),
        stats=written.stats,
        grad_loss=grad_loss,
        grad_lse=grad_lse,
        seed=seed,
        **options,
    )
    close(back.gradient, gradient, eps + 4e-6, eps * largest * 0.01 + 2e-6 * largest + 6e-8)
    return written


@pytest.mark.parametrize("kernel", [PLANES, WIDE_PLANES], ids=["planes", "wide"])
def test_a_thread_adds_many_classes_exactly(kernel):
    """20,000 classes of one thread, each raising the maximum: no rounding at the total's size."""
    rise = torch.linspace(-5, 30, 20_000).view(1, -1, 1)
    x = rise + 1e-3 * torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    target = torch.arange(0, 20_000, 625).view(1, 32)
    call = Call(x, target, reduction="none", smoothing=0.1)
    loss = run(kernels(), call, kernel=kernel).loss.double()
    exact = F.cross_entropy(x.double(), target, reduction="none", label_smoothing=0.1).flatten()
    torch.testing.assert_close(loss, exact, rtol=5e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", SHAPES, ids=NAMES.__getitem__)
def test_instances(module, kernel, dtype, kind):
    reductions = ["mean", "none", "sum"]
    for i, shape in enumerate(SHAPES[kernel]):
        seed = i % 3
        correct = kind != "probability"
        call = make(shape, dtype, kind, seed, reduction=reductions[(i + seed) % 3], correct=correct)
        check(module, call, seed=seed, kernel=kernel)


def strided(x, order, pad=0, offset=0):
    """x in other memory: dimensions in ``order`` from the outermost on, rows ``pad`` longer, the
    first element at ``offset``."""
    sizes = [x.shape[d] for d in order]
    memory = torch.full((offset + sizes[0] * sizes[1] * (sizes[2] + pad),), float("nan"))
    memory = memory.to(x.dtype)[offset:].view(sizes[0], sizes[1], sizes[2] + pad)
    view = memory[:, :, : sizes[2]].permute([order.index(d) for d in range(3)])
    view.copy_(x)
    return view


# Where the classes lie, and from which element of a 16-byte vector on: all kernels, as chosen.
LAYOUTS = {
    "rows": ((6, 70, 1), (0, 2, 1), 0, 0, QUARTER_WARP),
    "rows, misaligned": ((6, 70, 1), (0, 2, 1), 0, 1, QUARTER_WARP),
    "few classes": ((40, 10, 1), (0, 2, 1), 0, 0, STAGED),
    "few classes, misaligned": ((40, 10, 1), (0, 2, 1), 0, 3, STAGED),
    "few classes of many": ((9, 10, 1), (0, 2, 1), 5, 0, QUARTER_WARP),
    "NCHW": ((2, 5, 24), (0, 1, 2), 0, 0, WIDE_PLANES),
    "NCHW, odd": ((2, 5, 9), (0, 1, 2), 0, 0, PLANES),
    "NCHW, padded": ((2, 5, 8), (0, 1, 2), 3, 0, PLANES),
    "NCHW, misaligned": ((2, 5, 8), (0, 1, 2), 0, 1, PLANES),
    "channels_last": ((2, 10, 12), (0, 2, 1), 0, 0, STAGED),
    "channels_last, padded": ((2, 10, 12), (0, 2, 1), 2, 1, QUARTER_WARP),
    "classes first": ((5, 6, 7), (1, 0, 2), 0, 0, PLANES),
    "samples last": ((4, 6, 7), (2, 1, 0), 0, 0, PLANES),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(module, layout, dtype):
    shape, order, pad, offset, kernel = LAYOUTS[layout]
    for kind in KINDS:
        call = make(shape, dtype, kind, seed=1)
        target = call.target
        if kind == "probability":  # begins elsewhere than x does
            target = strided(target, order, pad, offset + 1 if offset else 0)
        call = call._replace(x=strided(call.x, order, pad, offset), target=target)
        result = check(module, call)
        assert (result.kernel, result.parts) == (kernel, 1)


@pytest.mark.parametrize(
    ("rows", "C", "kernel", "parts"),
    [
        (2, 256, QUARTER_WARP, 1),
        (2, 257, HALF_WARP, 1),
        (2, 513, WARP, 1),
        (2, 1024, WARP, 1),
        (2, 1025, BLOCK, 1),
        (2, 8193, BLOCK, 2),
        (8192, 32, STAGED, 1),
        (8192, 33, STAGED, 1),
        (8192, 41, QUARTER_WARP, 1),
    ],
)
def test_chooser(module, rows, C, kernel, parts):
    call = make((rows, C, 1), torch.float32, "index", 0)
    result = run(module, call)
    assert (result.kernel, result.parts) == (kernel, parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_in_parts(module, dtype, kind):
    step = 512 * 16 // torch.finfo(dtype).bits * 8  # classes that a part is a multiple of
    for seed, C in enumerate((step - 1, step + 1, 3 * step + 5)):
        call = make((2, C, 1), dtype, kind, seed, correct=kind != "probability")
        result = check(module, call, seed=seed, kernel=BLOCK, parts=1 + C // step)
        assert result.parts == -(-C // step)


@pytest.mark.parametrize(
    "shape, kernel, parts",
    [
        ((600, 5, 1), STAGED, 1),
        ((70, 70, 1), QUARTER_WARP, 1),
        ((37, 70, 1), HALF_WARP, 1),
        ((19, 70, 1), WARP, 1),
        ((5, 1100, 1), BLOCK, 1),
        ((3, 4100, 1), BLOCK, 3),
        ((1, 3, 1100), WIDE_PLANES, 1),
        ((1, 3, 601), PLANES, 1),
    ],
)
def test_blocks_go_on(module, shape, kernel, parts):
    """To further rows, where there are fewer blocks than would have one piece each."""
    for kind in KINDS:
        call = make(shape, torch.float32, kind, seed=2)
        for seed in range(3):
            check(module, call, seed=seed, kernel=kernel, parts=parts, max_blocks=2)


@pytest.mark.parametrize("kernel", SHAPES, ids=NAMES.__getitem__)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_pairs_and_extras(module, kernel, smoothing):
    shape = SHAPES[kernel][-1]
    for seed, reduction in enumerate(["mean", "none", "sum"]):
        call = make(shape, torch.float32, "index", seed, reduction=reduction, smoothing=smoothing)
        generator = torch.Generator().manual_seed(seed)
        grad_lse = torch.randn(call.rows, generator=generator)
        other = torch.randint(shape[1], call.target.shape, generator=generator)
        other[-1, -1] = call.target[-1, -1]  # both of a pair at once
        if call.rows > 1:
            other[0, -1] = IGNORED
        check(module, call._replace(z_loss=0.1), grad_lse=grad_lse, seed=seed, kernel=kernel)
        pair = call._replace(other=other, lam=0.3)
        check(module, pair, seed=seed, kernel=kernel)
        pair = pair._replace(z_loss=0.01)
        check(module, pair, grad_lse=grad_lse, seed=seed, kernel=kernel)
    call = make(shape, torch.bfloat16, "probability", 1, z_loss=0.02, float_loss=False)
    check(module, call, kernel=kernel)


ROWS_OF = {
    STAGED: (8, 6, 1),
    QUARTER_WARP: (8, 69, 1),
    HALF_WARP: (8, 300, 1),
    WARP: (8, 600, 1),
    BLOCK: (8, 1100, 1),
    WIDE_PLANES: (1, 6, 8),
}


@pytest.mark.parametrize("kernel", ROWS_OF, ids=NAMES.__getitem__)
def test_ties(module, kernel):
    shape = ROWS_OF[kernel]
    x = torch.zeros(shape)
    x[:, -3:] = 1
    rows = torch.arange(8).view(shape[0], shape[2])
    target = torch.where(rows < 4, shape[1] - 3, shape[1] - 2)  # of three largest, the first counts
    result = check(module, Call(x, target, correct=True, reduction="none"), kernel=kernel)
    assert result.stats[2 * 8 + 4 :].tolist() == [1] * 4 + [0] * 4


@pytest.mark.parametrize("kernel", ROWS_OF, ids=NAMES.__getitem__)
def test_not_finite(module, kernel):
    """Row by row: infinities away from the target and at it, NaN, nothing but -inf, large logits,
    a NaN that is ignored, +inf."""
    shape = ROWS_OF[kernel]
    x = make(shape, torch.float32, "index", 0).x
    rows = x.movedim(1, 2).reshape(8, shape[1]).clone()  # [rows, C]
    rows[0, : shape[1] - 1] = -torch.inf
    rows[1, 2] = -torch.inf
    rows[2, 3] = torch.nan
    rows[3] = -torch.inf
    rows[4, 0], rows[4, 1:] = 1e4, -1e4
    rows[5] = 1e4
    rows[6, 4] = torch.nan
    rows[7, 1] = torch.inf
    x = rows.view(shape[0], shape[2], shape[1]).movedim(2, 1).contiguous()
    target = torch.tensor([shape[1] - 1, 2, 0, 0, 0, 1, IGNORED, 1]).view(shape[0], shape[2])
    for options in ({}, {"smoothing": 0.1}, {"z_loss": 0.1}, {"correct": True}):
        # (1 - e) nll + e / C * inf is inf or nan; torch adds up in the same order.
        check(module, Call(x, target, reduction="none", **options), kernel=kernel)
    check(module, Call(x, target, reduction="sum"), kernel=kernel)


@pytest.mark.parametrize("kernel", ROWS_OF, ids=NAMES.__getitem__)
def test_nothing_counts(module, kernel):
    shape = ROWS_OF[kernel]
    x = make(shape, torch.float32, "index", 0).x
    ignored = torch.full((shape[0], shape[2]), IGNORED)
    for reduction in ("mean", "sum", "none"):
        call = Call(x, ignored, reduction=reduction, z_loss=0.1)
        result = check(module, call._replace(z_loss=0.0), kernel=kernel)
        assert result.loss.isnan().all() if reduction == "mean" else (result.loss == 0).all()
    weightless = Call(x, ignored.clamp(min=0), weight=torch.zeros(shape[1]))
    assert run(module, weightless, kernel=kernel).loss.isnan()


def test_no_rows(module):
    call = Call(torch.empty(0, 5, 1), torch.empty(0, 1, dtype=torch.int64))
    assert run(module, call).loss.isnan()
    assert run(module, call._replace(reduction="sum")).loss == 0


@pytest.mark.parametrize("kernel", ROWS_OF, ids=NAMES.__getitem__)
@pytest.mark.parametrize("y", [-1, 6000])
def test_target_out_of_range(module, kernel, y):
    call = make(ROWS_OF[kernel], torch.float32, "index", 0)
    call.target[-1, -1] = y
    with pytest.raises(simt.Error, match="assert"):
        run(module, call, kernel=kernel)


@pytest.mark.parametrize("shape", [(300, 10, 1), (9, 333, 1), (3, 2000, 1), (2, 17000, 1)])
def test_bits_do_not_depend_on_the_schedule(module, shape):
    call = make(shape, torch.float32, "smoothed", 2)
    results = [
        run(module, call, gradient=torch.empty(shape), seed=seed, preempt=50 * seed)
        for seed in range(3)
    ]
    for other in results[1:]:
        for ours, theirs in zip(results[0][:3], other[:3], strict=True):
            assert ours.equal(theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunks", [(7, 1, 60), (1030, 1025), (8200, 100)], ids=str)
def test_tiles(module, chunks, dtype, kind):
    """Classes a chunk at a time: the state's loss, and the gradient in place."""
    n, C = 5, sum(chunks)
    call = make((n, C, 1), dtype, kind, seed=1)._replace(reduction="none")
    if kind != "probability":
        call.target[1] = chunks[0]  # the first of another chunk
        call = call._replace(target=torch.where(call.target == IGNORED, -1, call.target))
    grad_rows = torch.rand(n, generator=torch.Generator().manual_seed(1)) + 0.5
    if kind != "probability":
        grad_rows[0] = 0  # as the callers leave it for rows that do not count
    expected = call._replace(ignore_index=-1)
    loss, _, gradient = reference(expected, grad_rows)

    state = torch.zeros(4, n)
    state[0] = -torch.inf
    firsts = [sum(chunks[:i]) for i in range(len(chunks))]

    def tile(first, size):
        x = call.x[:, first : first + size].contiguous()
        target = call.target
        if kind == "probability":
            target = target[:, first : first + size].contiguous()
        return call._replace(x=x, target=target)

    options = {"state": state, "num_classes": C}
    for first, size in zip(firsts, chunks, strict=True):
        run(module, tile(first, size), first_class=first, **options)
    _, total, mass, dot = state.double()
    ours = mass * total.log() - dot
    if kind != "probability":
        ours = torch.where(call.target.flatten() >= 0, ours, 0)
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)

    largest = gradient.abs().max().item()
    for first, size in zip(firsts, chunks, strict=True):
        of_tile = tile(first, size)
        x = of_tile.x
        run(module, of_tile, grad_loss=grad_rows, first_class=first, **options)
        torch.testing.assert_close(
            x.double(),
            gradient[:, first : first + size],
            rtol=EPS[dtype] + 1e-5,
            atol=(EPS[dtype] * 0.01 + 1e-5) * largest + 6e-8,
        )


# Large enough that what there is of each row is small beside its logits.
TRAFFIC = {
    "staged": ((2048, 32, 1), torch.float32),
    "staged, odd": ((4096, 31, 1), torch.bfloat16),
    "quarter": ((256, 200, 1), torch.float32),
    "quarter, odd": ((256, 253, 1), torch.bfloat16),
    "half": ((128, 500, 1), torch.float32),
    "half, odd": ((128, 509, 1), torch.float32),
    "warp": ((64, 1000, 1), torch.float32),
    "warp, odd": ((64, 1021, 1), torch.float32),
    "block": ((16, 5000, 1), torch.bfloat16),
    "block, odd": ((16, 8009, 1), torch.float32),
    "parts": ((2, 50257, 1), torch.float32),
    "planes": ((2, 64, 1024), torch.float32),
    "planes, half": ((2, 150, 1024), torch.bfloat16),
}


@pytest.mark.parametrize("kind", ["index", "probability"])
@pytest.mark.parametrize("case", TRAFFIC)
def test_bytes_moved(module, case, kind):
    """Over the fewest possible, in sectors of 32 bytes."""
    shape, dtype = TRAFFIC[case]
    call = make(shape, dtype, kind, 0)
    logits = call.x.numel() * call.x.element_size()
    if kind == "index":
        reads, of_rows = logits, (8 + 2 * 4) * call.rows  # targets, maxima and sums
    else:
        reads, of_rows = 2 * logits, 2 * 4 * call.rows

    def check_ratio(result, fewest):
        accesses = result.profile
        # Beside a short row its target's logit, which the leader reads by itself, is a sector that
        # weighs; it comes from the cache.
        sectors = accesses.missed_sectors if call.x.shape[1] < 512 else accesses.sectors
        assert sectors * 32 <= 1.05 * fewest

    forward = run(module, call, profile=True)
    check_ratio(forward, reads + of_rows)

    # What a thread or its group cannot keep is read again: probabilities, which backward sums up
    # first, and the logits of both passes in one.
    again = case == "parts" or case.startswith("planes")
    out = torch.empty_like(call.x)
    grad_loss = torch.ones(1, dtype=call.loss_dtype)
    back = run(module, call, gradient=out, stats=forward.stats, grad_loss=grad_loss, profile=True)
    check_ratio(back, reads + logits + of_rows + (logits if again and kind != "index" else 0))
    if not again:
        both = run(module, call._replace(reduction="sum"), gradient=out, profile=True)
        check_ratio(both, reads + logits + of_rows)


@pytest.mark.parametrize("C", [2, 7, 8, 10, 32, 50, 64])
def test_stages_spare_the_banks(module, C):
    call = make((512, C, 1), torch.float32, "smoothed", 0)
    profile = run(module, call, gradient=torch.empty_like(call.x), profile=True).profile
    assert profile.passes <= 1.25 * profile.least_passes
