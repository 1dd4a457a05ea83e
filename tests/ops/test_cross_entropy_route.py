"""Which of the kernel and stock's functions runs on CUDA: chosen by a timing, of each kind of call
once. The choice knows nothing of the device, so that CPU tensors do here."""

import math

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import make

from imgfast.ops import cross_entropy_route as route
from imgfast.ops import cuda_route, timing

OPTIONS = route.options_of("mean", -100, 0.0, 1.0, 0.0, False, False)


class Stopwatch:
    """In place of timing.medians: runs every candidate once, and lets one of them win."""

    def __init__(self, winner):
        self.winner = winner
        self.calls = 0

    def __call__(self, candidates, device):
        self.calls += 1
        for run in candidates.values():
            run()
        return dict.fromkeys(sorted(candidates, key=lambda name: name != self.winner), 0.001)


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(cuda_route, "_wins", {})


@pytest.fixture
def stopwatch(monkeypatch):
    stopwatch = Stopwatch("imgfast")
    monkeypatch.setattr(timing, "medians", stopwatch)
    return stopwatch


def choose(logits, target, weight=None, options=OPTIONS, return_lse=False):
    def run(input, targets, weight):
        loss = F.cross_entropy(input, targets[0], weight)
        return (loss, input.logsumexp(1)) if return_lse else loss

    return route.kernel_wins(logits, (target,), weight, options, return_lse, run, run)


@pytest.mark.parametrize("winner", ["imgfast", "stock"])
@pytest.mark.parametrize("training", [False, True])
def test_the_faster_one_is_remembered(winner, training, stopwatch):
    stopwatch.winner = winner
    logits, target, _ = make((6, 10))
    logits.requires_grad_(training)
    for _ in range(3):
        assert choose(logits, target) == (winner == "imgfast")
    assert stopwatch.calls == 1
    assert logits.grad is None


def test_kinds_of_calls(stopwatch):
    logits, target, weight = make((64, 10))
    choose(logits, target)
    choose(*make((100, 10))[:2])  # as many rows, but for a factor of 2
    choose(logits, target, options=OPTIONS._replace(ignore_index=3))
    assert stopwatch.calls == 1
    others = [
        lambda: choose(*make((640, 10))[:2]),
        lambda: choose(*make((64, 11))[:2]),
        lambda: choose(*make((64, 10), probabilities=True)[:2]),
        lambda: choose(*make((12,))[:2]),
        lambda: choose(*make((13,))[:2]),
        lambda: choose(logits.t().contiguous().t(), target),
        lambda: choose(logits.bfloat16(), target),
        lambda: choose(logits, target, weight),
        lambda: choose(logits, target, options=OPTIONS._replace(label_smoothing=0.1)),
        lambda: choose(logits, target, return_lse=True),
        lambda: choose(logits.clone().requires_grad_(), target),
    ]
    for i, call in enumerate(others):
        call()
        assert stopwatch.calls == 2 + i


def test_what_may_not_be_timed_is_stocks_until_it_has_been(stopwatch):
    logits, target, _ = make((6, 10))
    torch.use_deterministic_algorithms(True)
    try:
        assert not choose(logits, target)
        assert stopwatch.calls == 0
        torch.use_deterministic_algorithms(False)
        assert choose(logits, target)
        torch.use_deterministic_algorithms(True)
        assert choose(logits, target)
        assert stopwatch.calls == 1
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_real_stopwatch():
    """What takes longer loses, whichever it is."""
    logits, target, _ = make((6, 10))

    def quick(input, targets, weight):
        return F.cross_entropy(input, targets[0])

    def slow(input, targets, weight):
        for _ in range(50):
            loss = quick(input, targets, weight)
        return loss

    for dtype, candidates in ((torch.float32, (quick, slow)), (torch.float64, (slow, quick))):
        wins = route.kernel_wins(logits.to(dtype), (target,), None, OPTIONS, False, *candidates)
        assert wins == (candidates[0] is quick)


@pytest.mark.parametrize(
    ("reduction", "ignore_index", "label_smoothing"),
    [("max", -100, 0.0), ("mean", 1.5, 0.0), ("mean", 2**25, 0.0), ("mean", -100, 1.5),
     ("mean", -100, math.nan), ("mean", -100, "0")],
)  # fmt: skip
def test_wrong_options_have_no_kernel(reduction, ignore_index, label_smoothing):
    assert route.options_again(reduction, ignore_index, label_smoothing, 1, 0, False, False) is None
