"""arcface_loss and cosface_loss: against the papers' formulas in float64, and their derivatives."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from linear_cross_entropy_cases import TOLERANCE, check, gradients, make, use_small_tiles

import imgfast
from imgfast import arcface_loss, cosface_loss
from imgfast.ops import linear_cross_entropy_route as route
from imgfast.ops import linear_cross_entropy_tiles as tiles


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    use_small_tiles(monkeypatch)


def arcface_reference(input, linear_weight, target, *, margin=0.5, scale=64.0, **options):
    """By the angle itself."""
    cosines = F.normalize(input) @ F.normalize(linear_weight).t()
    theta = cosines.clamp(-1, 1).acos()
    turned = torch.where(
        theta + margin < math.pi, (theta + margin).cos(), cosines - margin * math.sin(margin)
    )
    own = F.one_hot(target.clamp_min(0), len(linear_weight)).bool() & (target >= 0).unsqueeze(1)
    return F.cross_entropy(scale * torch.where(own, turned, cosines), target, **options)


def cosface_reference(input, linear_weight, target, *, margin=0.35, scale=64.0, **options):
    cosines = F.normalize(input) @ F.normalize(linear_weight).t()
    own = F.one_hot(target.clamp_min(0), len(linear_weight)).bool() & (target >= 0).unsqueeze(1)
    logits = scale * torch.where(own, cosines - margin, cosines)
    return F.cross_entropy(logits, target, **options)


LOSSES = [(arcface_loss, arcface_reference), (cosface_loss, cosface_reference)]
losses = pytest.mark.parametrize(("loss", "reference"), LOSSES)


@pytest.mark.devices(simt_every=7)
@losses
@pytest.mark.parametrize("small", [0, 1 << 20])  # by tiles, and as the composition
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_options(
    monkeypatch, weighted, smoothing, reduction, dtype, small, loss, reference, device
):
    monkeypatch.setattr(route, "SMALL", small)
    input, linear_weight, _, target, weight = make(ignored=True, dtype=dtype, device=device)
    check(
        input,
        linear_weight,
        None,
        target,
        loss,
        reference,
        weight=weight if weighted else None,
        reduction=reduction,
        label_smoothing=smoothing,
        margin=0.4,
        scale=30.0,
        tolerance=30 * TOLERANCE[dtype],  # a rounding of a cosine counts 30 times
    )


@losses
@pytest.mark.parametrize("kept_bytes", [0, 500, 1 << 20])
def test_kept_and_recomputed_tiles(monkeypatch, kept_bytes, loss, reference):
    input, linear_weight, _, target, _ = make(ignored=True)
    expected = gradients(loss, input, linear_weight, None, target)
    monkeypatch.setattr(tiles, "KEPT_BYTES", kept_bytes)
    got = gradients(loss, input, linear_weight, None, target)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize("margin", [0.0, 0.5, 1.5, 3.0])
def test_angles_from_0_to_pi(monkeypatch, margin, small):
    """Features at known angles to the vector of their class, on both sides of pi - margin."""
    monkeypatch.setattr(route, "SMALL", small)
    theta = torch.linspace(0.01, math.pi - 0.01, 97, dtype=torch.float64)
    input = torch.stack([theta.cos(), theta.sin()], 1) * 3
    linear_weight = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-0.5, 0.5]], dtype=torch.float64)
    target = torch.zeros(97, dtype=torch.long)
    check(
        input,
        linear_weight,
        None,
        target,
        arcface_loss,
        arcface_reference,
        margin=margin,
        scale=8.0,
        reduction="none",
        tolerance=1e-10,  # acos near 1 loses digits
    )


@losses
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"label_smoothing": 0.2}])
def test_gradcheck_and_gradgradcheck(options, loss, reference):
    input, linear_weight, _, target, _ = make(6, 3, 10, ignored=True, dtype=torch.float64)
    leaves = input.requires_grad_(), linear_weight.requires_grad_()

    def function(input, linear_weight):
        return loss(input, linear_weight, target, scale=4.0, **options)

    assert torch.autograd.gradcheck(function, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves, check_batched_grad=True)


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_features_along_their_class_and_against_it(monkeypatch, small, dtype):
    """theta = 0, where the derivative by the cosine is infinite, and pi; and the zero vector."""
    monkeypatch.setattr(route, "SMALL", small)
    linear_weight = torch.eye(3, dtype=dtype)
    for input in (torch.eye(3), -torch.eye(3), torch.zeros(3, 3)):
        leaves = [input.to(dtype).requires_grad_(), linear_weight.clone().requires_grad_()]
        loss = arcface_loss(*leaves, torch.arange(3), scale=4.0)
        grads = torch.autograd.grad(loss, leaves)
        assert loss.isfinite() and all(g.isfinite().all() for g in grads)
    for input in (torch.eye(3, dtype=dtype), -torch.eye(3, dtype=dtype)):
        check(
            input, linear_weight, None, torch.arange(3), cosface_loss, cosface_reference, scale=4.0
        )


def test_short_vectors():
    """Below 1e-12 the norm is a constant, as for torch.nn.functional.normalize."""
    input, linear_weight, _, target, _ = make(9, 4, 12, dtype=torch.float64)
    input[::2] *= 1e-14
    linear_weight[::3] *= 1e-14
    check(input, linear_weight, None, target, cosface_loss, cosface_reference, scale=4.0)


@losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(dtype, loss, reference):
    input, linear_weight, _, target, _ = make(60, 32, 300, dtype=dtype)
    wide = [t.double() for t in (input, linear_weight)]
    exact = gradients(reference, *wide, None, target, scale=16.0)
    ours = gradients(loss, input, linear_weight, None, target, scale=16.0)
    for a, e in zip(ours, exact, strict=True):
        assert a.dtype == dtype
        assert (a.double() - e).norm() <= 16 * torch.finfo(dtype).eps * e.norm()


@losses
def test_autocast(loss, reference):
    input, linear_weight, _, target, _ = make(60, 32, 300)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(loss, input, linear_weight, None, target, scale=16.0)
    exact = gradients(reference, input, linear_weight, None, target, scale=16.0)
    for a, e in zip(ours, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - e).norm() <= 16 * 2**-8 * e.norm()


@losses
@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_compile(monkeypatch, kept_bytes, loss, reference):
    monkeypatch.setattr(tiles, "KEPT_BYTES", kept_bytes)
    torch._dynamo.reset()
    input, linear_weight, _, target, _ = make(ignored=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        gradients(compiled, input, linear_weight, None, target),
        gradients(loss, input, linear_weight, None, target),
    )


@losses
@pytest.mark.parametrize("small", [0, 1 << 20])
def test_errors(monkeypatch, small, loss, reference):
    monkeypatch.setattr(route, "SMALL", small)
    input, linear_weight, _, target, _ = make()
    name = loss.__name__
    for error, message, arguments, options in (
        (IndexError, r"^Target 40 is out of bounds\.$", (input, linear_weight, target + 40), {}),
        (ValueError, f"{name}: margin must be", (input, linear_weight, target), {"margin": -0.1}),
        (ValueError, f"{name}: scale must be", (input, linear_weight, target), {"scale": 0.0}),
        (RuntimeError, f"{name}: input must be", (input[:, :3], linear_weight, target), {}),
        (RuntimeError, f"{name}: input must be", (input[0], linear_weight, target), {}),
        (RuntimeError, f"{name}: target must be", (input, linear_weight, target[:4]), {}),
        (RuntimeError, f"{name}: target must be", (input, linear_weight, target.int()), {}),
        (ValueError, "average", (input, linear_weight, target), {"reduction": "average"}),
    ):
        if error is IndexError:
            arguments[2].clamp_max_(40)
        with pytest.raises(error, match=message):
            loss(*arguments, **options)
    if loss is arcface_loss:
        with pytest.raises(ValueError, match="below pi"):
            loss(input, linear_weight, target, margin=math.pi)


@pytest.mark.parametrize(
    ("module", "loss"),
    [(imgfast.nn.ArcFaceLoss, arcface_loss), (imgfast.nn.CosFaceLoss, cosface_loss)],
)
def test_modules(module, loss):
    input, _, _, target, weight = make()
    head = module(9, 37, scale=20.0, weight=weight, label_smoothing=0.1)
    expected = loss(
        input, head.linear.weight, target, scale=20.0, weight=weight, label_smoothing=0.1
    )
    assert torch.equal(head(input, target), expected)
    assert sorted(head.state_dict()) == ["linear.weight", "weight"]
    again = copy.deepcopy(head)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(input, target), expected)
    assert "num_classes=37" in repr(head) and "scale=20.0" in repr(head)
    wider = module(9, 37, margin=0.6, dtype=torch.float64)
    assert wider(input.double(), target).dtype == torch.float64
