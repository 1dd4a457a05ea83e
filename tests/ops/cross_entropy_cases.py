"""What the tests of cross_entropy share: data, and the comparison with stock in float64."""

import torch
import torch.nn.functional as F

from imgfast import cross_entropy

TOLERANCE = {  # relative to the largest value
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-10,
}


def rows_of(shape):
    """The shape of class targets for logits of this shape."""
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def classes_of(shape):
    return shape[1] if len(shape) > 1 else shape[0]


def make(
    shape,
    *,
    probabilities=False,
    ignored=False,
    dtype=torch.float32,
    seed=0,
    scale=3.0,
    device="cpu",
):
    """Logits, target and weight; the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    classes = classes_of(shape)
    logits = (torch.randn(shape, generator=generator) * scale).to(dtype)
    weight = (torch.rand(classes, generator=generator) + 0.1).to(dtype)
    if probabilities:
        raw = torch.randn(shape, generator=generator)
        target = raw.softmax(1 if len(shape) > 1 else 0).to(dtype)
    else:
        target = torch.randint(classes, rows_of(shape), generator=generator)
        if ignored:
            target = torch.where(torch.rand(target.shape, generator=generator) < 0.3, -100, target)
    return logits.to(device), target.to(device), weight.to(device)


def lay_out(t, layout):
    """The same numbers, differently in memory."""
    if layout == "channels_last":
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed":
        return t.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "padded":  # rows neither aligned nor dense
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + 3), 77)
        wide[..., 1:-2] = t
        return wide[..., 1:-2]
    if layout == "strided":  # no dimension has stride 1
        wide = t.new_full((*t.shape, 2), 77)
        wide[..., 0] = t
        return wide[..., 0]
    if layout == "swapped":  # positions that no single stride walks
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    return t.contiguous()


def gradients(function, logits, target, weight, seed=0, **options):
    """Loss and gradients of a random projection of it, at logits and at a probability target."""
    logits = logits.detach().requires_grad_()  # not cloned: the strides matter
    leaves = [logits]
    if target.is_floating_point():
        target = target.detach().requires_grad_()
        leaves.append(target)
    loss = function(logits, target, weight, **options)
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(loss.shape, generator=generator).to(torch.bfloat16).to(loss)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, grad)]


def compilations(function, dynamic):
    """The function compiled anew for each of some options and kinds of target."""
    for options, probabilities in (
        ({}, False),
        ({"reduction": "none"}, True),
        ({"label_smoothing": 0.1}, False),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        yield compiled, options, probabilities


def check(logits, target, weight=None, tolerance=None, least=1e-2, **options):
    """Ours in its dtype against torch's own on the CPU in float64, forward and backward.

    Tolerances are relative to the largest value, or to `least`: the size of the terms that cancel
    where a gradient is 0.
    """
    wide = [
        t if t is None else (t.double() if t.is_floating_point() else t).cpu()
        for t in (logits, target, weight)
    ]
    expected = gradients(F.cross_entropy, *wide, **options)
    got = gradients(cross_entropy, logits, target, weight, **options)
    with torch.no_grad():
        without_graph = cross_entropy(logits, target, weight, **options)
    assert torch.equal(without_graph.isnan(), got[0].isnan())
    assert torch.equal(without_graph.nan_to_num(), got[0].nan_to_num())
    for ours, exact in zip(got, expected, strict=True):
        assert ours.dtype == logits.dtype
        assert ours.shape == exact.shape
        finite = exact[exact.isfinite()]
        largest = finite.abs().max().item() if finite.numel() else 0.0
        bound = (TOLERANCE[logits.dtype] if tolerance is None else tolerance) * max(largest, least)
        torch.testing.assert_close(ours.double().cpu(), exact, rtol=0, atol=bound, equal_nan=True)
    return got
