"""What the tests of linear_cross_entropy share: data, small tiles, the comparison in float64."""

import torch
import torch.nn.functional as F

from imgfast import linear_cross_entropy
from imgfast.ops import linear_cross_entropy_route as route
from imgfast.ops import linear_cross_entropy_tiles as tiles

TOLERANCE = {  # relative to the largest value
    torch.float64: 1e-12,
    torch.float32: 4e-6,
    torch.bfloat16: 2**-6,
    torch.float16: 2**-9,
}


def use_small_tiles(monkeypatch, rows=7, tile_bytes=256, kept_bytes=1 << 20):
    """Several blocks and chunks for small heads; 256 bytes are 7 rows by 9 classes of float32."""
    monkeypatch.setattr(route, "SMALL", 0)
    monkeypatch.setattr(tiles, "ROWS", rows)
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(tiles, "KEPT_BYTES", kept_bytes)


def make(
    rows=23,
    features=9,
    classes=37,
    *,
    probabilities=False,
    ignored=False,
    dtype=torch.float32,
    scale=1.0,
    seed=0,
    device="cpu",
):
    """input, linear_weight, linear_bias, target, weight; the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    input, linear_weight = randn(rows, features) * scale, randn(classes, features)
    linear_bias = randn(classes)
    weight = torch.rand(classes, generator=generator) + 0.1
    if probabilities:
        target = randn(rows, classes).softmax(1).to(dtype)
    else:
        target = torch.randint(classes, (rows,), generator=generator)
        if ignored:
            target[torch.rand(rows, generator=generator) < 0.3] = -100
    input, linear_weight, linear_bias, weight = (
        t.to(device, dtype) for t in (input, linear_weight, linear_bias, weight)
    )
    return input, linear_weight, linear_bias, target.to(device), weight


def composition(input, linear_weight, target, *, linear_bias=None, ignore_index=-100, **options):
    logits = F.linear(input, linear_weight, linear_bias)
    return F.cross_entropy(logits, target, ignore_index=ignore_index, **options)


def gradients(function, input, linear_weight, linear_bias, target, seed=0, **options):
    """Loss and gradients of a random projection of it, at input, linear_weight and linear_bias."""
    leaves = [
        t.detach().requires_grad_() for t in (input, linear_weight, linear_bias) if t is not None
    ]
    if linear_bias is not None:
        options["linear_bias"] = leaves[2]
    loss = function(*leaves[:2], target, **options)
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(loss.shape, generator=generator).to(torch.bfloat16).to(loss)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, grad)]


def check(
    input,
    linear_weight,
    linear_bias,
    target,
    function=linear_cross_entropy,
    reference=composition,
    tolerance=None,
    least=1e-2,
    **options,
):
    """Ours in its dtype against the reference in float64, forward and backward.

    Tolerances are relative to the largest value, or to `least`: the size of the terms that cancel
    where a gradient is 0.
    """
    dtype = input.dtype
    wide = [
        t.double() if t is not None and t.is_floating_point() else t
        for t in (input, linear_weight, linear_bias, target)
    ]
    wide_options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    expected = gradients(reference, *wide, **wide_options)
    got = gradients(function, input, linear_weight, linear_bias, target, **options)
    given = options if linear_bias is None else {**options, "linear_bias": linear_bias}
    with torch.no_grad():
        without_graph = function(input, linear_weight, target, **given)
    torch.testing.assert_close(without_graph, got[0], equal_nan=True)
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    for ours, exact in zip(got, expected, strict=True):
        assert ours.dtype == dtype and ours.shape == exact.shape
        finite = exact[exact.isfinite()]
        largest = finite.abs().max().item() if finite.numel() else 0.0
        bound = tolerance * max(largest, least)
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=bound, equal_nan=True)
    return got
