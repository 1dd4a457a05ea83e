"""What cross_entropy has and torch's has not: pairs of targets, z_loss, log-sum-exps, correctness,
and the gradient in the forward pass. Against compositions of torch's functions in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import TOLERANCE, lay_out, make, rows_of

import imgfast
from imgfast import cross_entropy

INF, NAN = math.inf, math.nan
# Rows kernel, lanes kernel, in place and through tiles; the last is of several chunks.
SHAPES = [(13,), (37, 11), (5, 4200), (9, 3), (2, 5, 7), (2, 19, 3, 17), (2, 60, 3), (700, 130)]
LAYOUTS = ["contiguous", "channels_last", "padded", "strided"]


def pair_of(shape, dtype=torch.float32, ignored=True, device="cpu"):
    """Logits, two targets, and weight; the targets agree here and there."""
    logits, first, weight = make(shape, dtype=dtype, ignored=ignored)
    _, second, _ = make(shape, ignored=ignored, seed=1)
    if first.dim():
        second = torch.where(torch.arange(first.numel()).view(first.shape) % 5 == 0, first, second)
    else:
        first, second = first.abs() % shape[0], second.abs() % shape[0]
    return tuple(t.to(device) for t in (logits, first, second, weight))


def expected_loss(logits, target, weight, z_loss=0.0, **options):
    """In the dtype of logits, and differentiable."""
    if isinstance(target, tuple):
        first, second, lam = target
        return lam * expected_loss(logits, first, weight, z_loss, **options) + (
            1 - lam
        ) * expected_loss(logits, second, weight, z_loss, **options)
    loss = F.cross_entropy(logits, target, weight, **options)
    if not z_loss:
        return loss
    lse = logits.logsumexp(1 if logits.dim() > 1 else 0)
    ignored = options.get("ignore_index", -100)
    counts = torch.full_like(lse, True) if target.is_floating_point() else target != ignored
    square = torch.where(counts != 0, lse**2, 0)
    reduction = options.get("reduction", "mean")
    if reduction == "none":
        return loss + z_loss * square
    return loss + z_loss * square.sum() / (counts.sum() if reduction == "mean" else 1)


def close(got, exact, dtype, least=1e-2):
    """Within the dtype's error, relative to the largest value."""
    assert got.dtype == dtype
    assert got.shape == exact.shape
    finite = exact[exact.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    bound = TOLERANCE[dtype] * max(largest, least)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=bound, equal_nan=True)


def check(logits, target, weight=None, grad_in_forward=False, **options):
    """Loss and gradient at the logits, under a gradient of random numbers at the loss."""
    logits = logits.detach().requires_grad_()
    loss = cross_entropy(logits, target, weight, grad_in_forward=grad_in_forward, **options)
    with torch.no_grad():
        torch.testing.assert_close(
            cross_entropy(logits, target, weight, **options), loss, equal_nan=True
        )
    # Powers of two: a gradient of forward is rounded before it is multiplied.
    power = torch.randint(-1, 2, loss.shape, generator=torch.Generator().manual_seed(0))
    grad = 2 ** power.double().to(loss.device)
    wide = logits.detach().double().requires_grad_()
    wide_target = target
    if isinstance(target, torch.Tensor) and target.is_floating_point():
        wide_target = target.double()
    exact = expected_loss(wide, wide_target, None if weight is None else weight.double(), **options)
    close(loss.detach(), exact.detach(), logits.dtype)
    (got,) = torch.autograd.grad(loss, logits, grad.to(loss.dtype))
    (exact_grad,) = torch.autograd.grad(exact, wide, grad)
    close(got, exact_grad, logits.dtype)
    assert got.stride() == torch.empty_like(logits).stride()


OPTIONS = [
    {},
    {"z_loss": 1e-2},
    {"label_smoothing": 0.2},
    {"label_smoothing": 0.1, "z_loss": 0.5},
    {"reduction": "sum", "z_loss": 0.1},
    {"reduction": "none"},
    {"reduction": "none", "z_loss": 0.1, "label_smoothing": 0.3},
]


@pytest.mark.devices(simt_every=11)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("grad_in_forward", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pair_of_targets(shape, options, weighted, grad_in_forward, dtype, device):
    logits, first, second, weight = pair_of(shape, dtype, device=device)
    check(logits, (first, second, 0.3), weight if weighted else None, grad_in_forward, **options)


@pytest.mark.devices(simt_every=17)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", ["class", "probability"])
@pytest.mark.parametrize("grad_in_forward", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_target(shape, options, weighted, grad_in_forward, kind, dtype, device):
    logits, target, weight = make(
        shape,
        probabilities=kind == "probability",
        ignored=len(shape) > 1,
        dtype=dtype,
        device=device,
    )
    check(logits, target, weight if weighted else None, grad_in_forward, **options)


# Few rows are shared out by classes, from 32768 on: the second count leaves parts of unequal size.
@pytest.mark.devices(simt_every=23)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("grad_in_forward", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(32768,), (1, 32769), (15, 33000), (16, 33000)])
def test_parts_of_the_classes(shape, options, grad_in_forward, dtype, device):
    logits, first, second, weight = pair_of(shape, dtype, device=device)
    check(logits, (first, second, 0.3), weight, grad_in_forward, **options)
    check(logits, first, weight, grad_in_forward, **options)


def test_parts_of_the_classes_without_a_finite_logit(device):
    """The first part, the last, and all of them; and where the target is one of those."""
    logits, target, weight = make((8, 70000), device=device)
    logits[0, :30000] = logits[1, 40000:] = logits[2] = -INF
    logits[3, 69999], logits[4, 3] = INF, NAN
    target[:] = torch.tensor([69999, 3, 5, 7, 9, 11, -100, 35000])
    logits[5, 11] = logits[6, 5] = -INF
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
        check(logits, target, weight, reduction="none", **options)


def test_parts_of_the_classes_are_told_of_by_the_extras(device):
    logits, target, _ = make((5, 100000), device=device)
    target[0], target[1] = logits[0].argmax(), -100
    logits[2, 99999] = logits[2, 7] = 100  # the first of equals
    target[2], target[3] = 99999, 99999
    logits[3, 99999] = 100
    _, lse, correct = cross_entropy(logits, target, return_lse=True, return_correct=True)
    torch.testing.assert_close(lse, logits.logsumexp(1))
    assert correct.tolist() == [True, False, False, True, logits[4].argmax() == target[4]]


def test_the_last_part_of_the_classes_checks_targets():
    logits, target, _ = make((5, 100000))
    target[4] = 100000
    with pytest.raises(IndexError, match="Target 100000 is out of bounds"):
        cross_entropy(logits, target)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_in_forward", [False, True])
@pytest.mark.parametrize("shape", [(37, 11), (5, 420), (2, 19, 3, 17), (2, 60, 3, 3)])
def test_layouts(shape, grad_in_forward, layout, device):
    logits, first, second, weight = pair_of(shape, device=device)
    logits = lay_out(logits, layout)
    check(logits, (first, second, 0.6), weight, grad_in_forward, z_loss=0.1)
    check(logits, first, weight, grad_in_forward, label_smoothing=0.1)


def test_lam_at_its_ends_is_one_target(device):
    logits, first, second, _ = pair_of((20, 7), device=device)
    for lam, target in ((1, first), (0, second), (1.0, first)):
        torch.testing.assert_close(
            cross_entropy(logits, (first, second, lam)), F.cross_entropy(logits, target)
        )


def test_targets_of_a_pair_are_ignored_apart(device):
    logits, first, second, weight = pair_of((6, 5), ignored=False, device=device)
    first[:3], second[2:] = -100, -100
    for reduction in ("none", "mean", "sum"):
        check(logits, (first, second, 0.25), weight, reduction=reduction, z_loss=0.1)
    first[:] = -100
    assert cross_entropy(logits, (first, second, 0.25)).isnan()
    check(logits, (first, second, 0.25), reduction="sum")


@pytest.mark.parametrize("shape", [(40, 6), (40, 300)])
def test_infinite_logits_beside_a_pair(shape, device):
    logits, first, second, _ = pair_of(shape, ignored=False, device=device)
    other = (torch.maximum(first, second) + 1) % shape[1]
    logits[torch.arange(40, device=device), other] = -INF
    check(logits, (first, second, 0.4), reduction="none")


# On the CPU alone: a kernel on a GPU stops by an assertion, after which the process has no GPU.
@pytest.mark.parametrize("bad", [-1, 7])
@pytest.mark.parametrize("grad_in_forward", [False, True])
def test_every_target_is_checked(bad, grad_in_forward):
    logits, first, second, _ = pair_of((20, 7), ignored=False)
    logits.requires_grad_()
    second[11] = bad
    for target in ((first, second, 0.5), (second, first, 0.5), second):
        with pytest.raises(IndexError, match=f"^Target {bad} is out of bounds.$"):
            cross_entropy(logits, target, grad_in_forward=grad_in_forward)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
def test_lse(shape, dtype, device):
    logits, target, weight = make(shape, ignored=len(shape) > 1, dtype=dtype, device=device)
    logits.requires_grad_()
    loss, lse = cross_entropy(logits, target, weight, return_lse=True, label_smoothing=0.1)
    wide = logits.detach().double().requires_grad_()
    dim = 1 if len(shape) > 1 else 0
    exact = wide.logsumexp(dim)
    close(lse.detach(), exact.detach(), torch.float64 if dtype == torch.float64 else torch.float32)

    exact_loss = F.cross_entropy(wide, target, weight.double(), label_smoothing=0.1)
    grad = torch.randint(-3, 4, exact.shape, generator=torch.Generator().manual_seed(0)).to(device)
    for ours, theirs in (
        ((lse * grad).sum(), (exact * grad).sum()),
        (3 * loss.double() + (lse * grad).sum(), 3 * exact_loss + (exact * grad).sum()),
    ):
        (got,) = torch.autograd.grad(ours, logits, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs, wide, retain_graph=True)
        close(got, expected, dtype)


def test_lse_of_infinities(device):
    logits = torch.tensor([[-INF, -INF, -INF], [1.0, -INF, 2.0], [INF, 0.0, 1.0], [NAN, 0.0, 1.0]])
    logits, target = logits.to(device), torch.zeros(4, dtype=torch.int64, device=device)
    _, lse = cross_entropy(logits, target, return_lse=True)
    assert lse[0] == -INF
    torch.testing.assert_close(lse[1], logits[1].logsumexp(0))
    assert lse[3].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_correct(shape, layout, dtype, device):
    logits, target, _ = make(shape, ignored=True)
    logits = logits.round().to(dtype)  # many are equal
    some = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    some.view(-1)[:2] = torch.tensor([True, False])
    target = torch.where(some, logits.argmax(1), target)
    target.view(-1)[1] = (logits.argmax(1).view(-1)[1] + 1) % shape[1]
    expected = ((logits.argmax(1) == target) & (target != -100)).to(device)
    logits, target = logits.to(device), target.to(device)
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "none"}):
        loss, correct = cross_entropy(
            lay_out(logits, layout), target, return_correct=True, **options
        )
        assert correct.dtype == torch.bool
        assert torch.equal(correct, expected)
        close(loss, F.cross_entropy(logits.double(), target, **options), dtype)
    assert 0 < correct.sum() < correct.numel()


@pytest.mark.parametrize("classes", [5, 300])
def test_the_first_of_equal_logits_is_the_answer(classes, device):
    logits = torch.zeros(classes, classes, device=device)
    target = torch.arange(classes, device=device)
    _, correct = cross_entropy(logits, target, return_correct=True)
    assert correct.nonzero().tolist() == [[0]]
    logits[2:] = -INF
    _, correct = cross_entropy(logits.t(), torch.full_like(target, 1), return_correct=True)
    assert not correct.any()
    logits[:, 1] = NAN
    _, correct = cross_entropy(logits, torch.full_like(target, 1), return_correct=True)
    assert not correct.any()


def test_everything_at_once(device):
    logits, target, weight = make((300, 10), ignored=True, device=device)
    logits.requires_grad_()
    loss, lse, correct = cross_entropy(
        logits, target, weight, z_loss=0.1, return_lse=True, return_correct=True
    )
    torch.testing.assert_close(loss, expected_loss(logits, target, weight, 0.1))
    torch.testing.assert_close(lse, logits.logsumexp(1))
    assert torch.equal(correct, logits.argmax(1) == target)
    assert loss.requires_grad
    assert lse.requires_grad
    assert not correct.requires_grad
    with torch.no_grad():
        assert not cross_entropy(logits, target, return_lse=True)[1].requires_grad


# --- gradient in the forward pass -----------------------------------------------------------------


def test_gradient_of_forward_is_that_of_backward(device):
    for shape in ((300, 10), (200, 1000), (2, 19, 30, 31), (64, 5000)):
        logits, target, weight = make(shape, ignored=True, device=device)
        logits.requires_grad_()
        results = []
        for grad_in_forward in (False, True):
            loss = cross_entropy(logits, target, weight, grad_in_forward=grad_in_forward)
            results.append((loss.detach(), *torch.autograd.grad(loss, logits)))
        assert torch.equal(results[0][0], results[1][0])
        close(results[1][1], results[0][1].double(), torch.float32)


def test_gradient_of_forward_in_large_chunks_and_threads():
    """As large as gradients that are streamed past the cache."""
    logits, target, _ = make((2100, 4099))
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, target), logits)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        loss = cross_entropy(logits, target, grad_in_forward=True)
        results.append(torch.autograd.grad(loss, logits)[0])
    assert all(torch.equal(results[0], other) for other in results[1:])
    close(results[0], expected.double(), torch.float32)


def test_gradient_of_forward_keeps_no_logits(device):
    logits, target, _ = make((100, 10), device=device)
    logits.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = cross_entropy(logits, target, grad_in_forward=True)
    assert not kept
    with torch.no_grad():
        logits.zero_()  # nobody minds
    loss.backward()
    assert logits.grad.abs().max() > 0


def test_gradient_of_forward_is_for_once(device):
    logits, target, _ = make((100, 10), device=device)
    logits.requires_grad_()
    loss = cross_entropy(logits, target, grad_in_forward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="grad_in_forward=False to go backward twice"):
        loss.backward()
    loss = cross_entropy(logits, target, grad_in_forward=True)
    with pytest.raises(RuntimeError, match="grad_in_forward=False for create_graph"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_gradient_of_forward_where_more_is_needed(device):
    logits, target, weight = make((10, 4), probabilities=True, device=device)
    logits.requires_grad_()
    target.requires_grad_()
    loss = cross_entropy(logits, target, weight, grad_in_forward=True)
    got = torch.autograd.grad(loss, (logits, target), create_graph=True)
    expected = torch.autograd.grad(F.cross_entropy(logits, target, weight), (logits, target))
    torch.testing.assert_close(got, expected)
    loss, lse = cross_entropy(logits, target, return_lse=True, grad_in_forward=True)
    assert lse.requires_grad
    with torch.no_grad():
        assert not cross_entropy(logits, target, grad_in_forward=True).requires_grad


def test_gradient_of_a_small_call_comes_with_the_loss(device):
    """And is the same where it has been given away, changed by the caller, or is scaled."""
    for shape in ((128, 10), (64, 300)):
        logits, target, weight = make(shape, ignored=True, device=device)
        logits.requires_grad_()
        loss = cross_entropy(logits, target, weight, label_smoothing=0.1)
        (exact,) = torch.autograd.grad(
            F.cross_entropy(logits.double(), target, weight.double(), label_smoothing=0.1), logits
        )
        for factor in (1.0, 1.0, -2.5, 0.0, 1.0):
            (got,) = torch.autograd.grad(factor * loss, logits, retain_graph=True)
            close(got, factor * exact.double(), torch.float32)
            got.fill_(77)
        with torch.no_grad():
            logits.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# --- derivatives, compilation, other routes -------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 2)])
def test_gradcheck_and_gradgradcheck(shape, options):
    logits, first, second, weight = pair_of(shape, torch.float64)
    logits = (logits / 3).requires_grad_()

    def function(logits):
        loss = cross_entropy(logits, (first, second, 0.3), weight, **options)
        return loss, *cross_entropy(logits, first, weight, return_lse=True, **options)

    assert torch.autograd.gradcheck(function, logits, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, logits, check_batched_grad=True)


def test_z_loss_of_probabilities_has_derivatives_of_all_orders():
    logits, target, weight = make((4, 3), probabilities=True, dtype=torch.float64, scale=1.0)
    leaves = [t.requires_grad_() for t in (logits, target, weight)]
    for reduction in ("none", "mean"):

        def function(*leaves, reduction=reduction):
            return cross_entropy(*leaves, z_loss=0.3, reduction=reduction)

        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("options", OPTIONS)
def test_functorch_and_forward_mode(options):
    logits, first, second, weight = pair_of((6, 5), torch.float64, ignored=False)
    tangent = make((6, 5), dtype=torch.float64, seed=1)[0]

    def ours(logits):
        return cross_entropy(logits, (first, second, 0.3), weight, **options).sum()

    def theirs(logits):
        return expected_loss(logits, (first, second, 0.3), weight, **options).sum()

    for transform in (torch.func.grad, torch.func.hessian):
        torch.testing.assert_close(transform(ours)(logits), transform(theirs)(logits))
    got, exact = (torch.func.jvp(f, (logits,), (tangent,)) for f in (ours, theirs))
    torch.testing.assert_close(got, exact)

    def row(logits, first):
        loss, lse, correct = cross_entropy(
            logits, first, z_loss=0.1, return_lse=True, return_correct=True
        )
        return loss, lse, correct

    loss, lse, correct = torch.vmap(row)(logits, first)
    torch.testing.assert_close(
        loss, expected_loss(logits, first, None, z_loss=0.1, reduction="none")
    )
    torch.testing.assert_close(lse, logits.logsumexp(1))
    assert torch.equal(correct, logits.argmax(1) == first)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("grad_in_forward", [False, True])
def test_compile_gives_the_same_numbers(grad_in_forward, dynamic):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def compiled(logits, first, second, weight):
        mixed = cross_entropy(
            logits,
            (first, second, 0.3),
            weight,
            label_smoothing=0.1,
            grad_in_forward=grad_in_forward,
        )
        loss, lse, correct = cross_entropy(
            logits, first, z_loss=0.1, return_lse=True, return_correct=True
        )
        return mixed + loss + (lse * lse).mean(), correct

    for shape in ((9, 5), (11, 5), (12, 60)):
        logits, first, second, weight = pair_of(shape)
        logits.requires_grad_()
        got, correct = compiled(logits, first, second, weight)
        expected = (
            expected_loss(logits, (first, second, 0.3), weight, label_smoothing=0.1)
            + expected_loss(logits, first, None, z_loss=0.1)
            + (logits.logsumexp(1) ** 2).mean()
        )
        torch.testing.assert_close(got, expected)
        assert torch.equal(correct, logits.argmax(1) == first)
        torch.testing.assert_close(
            torch.autograd.grad(got, logits), torch.autograd.grad(expected, logits)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_autocast(dtype, device):
    logits, first, second, _ = pair_of((30, 9), dtype, device=device)
    logits.requires_grad_()
    for grad_in_forward in (False, True):
        with torch.autocast(device.type, torch.bfloat16):
            loss = cross_entropy(
                logits, (first, second, 0.3), z_loss=0.1, grad_in_forward=grad_in_forward
            )
        expected = expected_loss(logits.float(), (first, second, 0.3), None, z_loss=0.1)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected)
        got, exact = (torch.autograd.grad(2 * f, logits)[0] for f in (loss, expected))
        close(got, exact.double(), dtype)


def test_what_has_no_kernel_has_all_of_it():
    """Subclasses, and pairs of probabilities, run torch's own functions."""

    class Logits(torch.Tensor):
        pass

    logits, first, second, weight = pair_of((6, 5))
    kept = logits.as_subclass(Logits)
    for options in OPTIONS:
        torch.testing.assert_close(
            torch.Tensor(cross_entropy(kept, (first, second, 0.3), weight, **options)),
            expected_loss(logits, (first, second, 0.3), weight, **options),
        )
    _, lse, correct = cross_entropy(kept, first, return_lse=True, return_correct=True)
    torch.testing.assert_close(torch.Tensor(lse), logits.logsumexp(1))
    assert torch.equal(correct.as_subclass(torch.Tensor), logits.argmax(1) == first)

    soft = [F.one_hot(t.abs() % 5, 5).float() for t in (first, second)]
    torch.testing.assert_close(
        cross_entropy(logits, (*soft, 0.3)), expected_loss(logits, (*soft, 0.3), None)
    )


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
def test_empty_batch(shape):
    logits, first, _ = make(shape)
    loss, lse, correct = cross_entropy(
        logits, first, reduction="sum", z_loss=0.1, return_lse=True, return_correct=True
    )
    assert loss == 0
    assert lse.shape == correct.shape == rows_of(shape)


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ("pair", {"lam": 1.5}, ValueError, "lam must be between 0 and 1, got 1.5"),
        ("pair", {"lam": NAN}, ValueError, "lam must be between 0 and 1, got nan"),
        ("pair", {"lam": "0.5"}, TypeError, "lam must be a number, got str"),
        ("two", {}, ValueError, r"target must be a tensor or \(target_a, target_b, lam\)"),
        ("one", {"z_loss": -0.1}, ValueError, "z_loss must not be negative, got -0.1"),
        ("one", {"z_loss": NAN}, ValueError, "z_loss must not be negative, got nan"),
        (
            "pair",
            {"return_correct": True},
            ValueError,
            "return_correct needs one target of class indices",
        ),
        (
            "soft",
            {"return_correct": True},
            ValueError,
            "return_correct needs one target of class indices",
        ),
    ],
)
def test_errors(target, options, error, message):
    logits, first, second, _ = pair_of((6, 5))
    targets = {
        "one": first,
        "two": (first, second),
        "pair": (first, second, options.pop("lam", 0.5)),
        "soft": logits.softmax(1),
    }
    with pytest.raises(error, match=message):
        cross_entropy(logits, targets[target], **options)


def test_shapes_of_a_pair_raise_what_torch_raises():
    logits, first, second, _ = pair_of((6, 5))
    for wrong in (second[:4], second.to(torch.int32)):
        with pytest.raises((ValueError, RuntimeError)) as expected:
            F.cross_entropy(logits, wrong)
        with pytest.raises(expected.type) as got:
            cross_entropy(logits, (first, wrong, 0.5))
        assert str(got.value) == str(expected.value)


def test_module(device):
    logits, first, second, weight = pair_of((30, 9), device=device)
    logits.requires_grad_()
    loss = imgfast.nn.CrossEntropyLoss(weight, z_loss=0.1, grad_in_forward=True)
    expected = expected_loss(logits, (first, second, 0.3), weight, z_loss=0.1)
    got = loss(logits, (first, second, 0.3))
    torch.testing.assert_close(got, expected)
    assert type(got.grad_fn).__name__ == "_CrossEntropyWithGradientBackward"
    _, lse, correct = imgfast.nn.CrossEntropyLoss(return_lse=True, return_correct=True)(
        logits, first
    )
    torch.testing.assert_close(lse, logits.logsumexp(1))
    assert torch.equal(correct, logits.argmax(1) == first)
