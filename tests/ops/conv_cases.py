"""What the tests of conv_relu_pool share: exact data, and the comparison with stock in float64.

Inputs are small multiples of 1/4, so that every sum is exact in float32: ties are true ties, the
tie rule is tried all the time, and no wrong position of a maximum can hide behind rounding.
"""

import torch

from imgfast.ops.conv_relu_pool import _bind, conv_relu_pool, dispatch_info
from imgfast.ops.conv_relu_pool_route import spec_of
from imgfast.ops.conv_relu_pool_stock import conv_relu_pool_stock

TOLERANCE = {  # relative to the largest value
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}
SCALINGS = ("channels", "pictures", "offset", "tiny", "huge")


def exact(shape, seed, dtype=torch.float32, top=6):
    """Multiples of 1/4 in [-top / 4, top / 4]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-top, top + 1, shape, generator=generator).to(dtype) / 4


def make(
    n,
    c,
    h,
    w,
    k,
    r,
    s,
    *,
    groups=1,
    bias=True,
    dtype=torch.float32,
    layout="nchw",
    seed=0,
    device="cpu",
):
    """x, weight, bias of a configuration; x in one of the layouts of lay_out."""
    x = lay_out(exact((n, c, h, w), seed, dtype).to(device), layout)
    weight = exact((k, c // groups, r, s), seed + 1, dtype, top=3).to(device)
    return x, weight, exact((k,), seed + 2, dtype).to(device) if bias else None


def lay_out(t, layout):
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":  # neither format: H and W swapped in memory
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "offset":  # not aligned, not dense
        n, c, h, w = t.shape
        wide = t.new_full((n, c, h + 1, w + 3), float("nan"))
        view = wide[:, :, 1:, 3:]
        view.copy_(t)
        return view
    return t


def badly_scaled(x, scaling):
    """Three pictures, by one of SCALINGS."""
    if scaling == "channels":
        return x * 10.0 ** torch.linspace(-4, 4, x.shape[1]).view(1, -1, 1, 1)
    if scaling == "pictures":
        return x * torch.tensor([1e-8, 1.0, 1e8]).view(-1, 1, 1, 1)
    return {"offset": x + 1000, "tiny": x * 1e-30, "huge": x * 1e30}[scaling]


def stock(x, weight, bias, **options):
    options.pop("algorithm", None)
    return conv_relu_pool_stock(x, weight, bias, spec_of(*_bind(**options)))


def ours(x, weight, bias, **options):
    """conv_relu_pool by our kernels wherever there is one, be it slower than stock."""
    options.setdefault("algorithm", "direct")
    try:
        dispatch_info(x, weight, bias, **options)
    except RuntimeError:
        options["algorithm"] = "auto"
    return conv_relu_pool(x, weight, bias, **options)


def gradients(function, tensors, grad_y, **options):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    wanted = [t for t in leaves if t is not None]
    return y, torch.autograd.grad(y, wanted, grad_y(y) if callable(grad_y) else grad_y)


def assert_near(actual, reference, what, loosened=1):
    """NaN and infinities in the same places, the rest within TOLERANCE of the largest value,
    wherever the tensors are."""
    tolerance = loosened * TOLERANCE[actual.dtype]
    largest = reference[reference.isfinite()].abs().max().item() if reference.numel() else 0.0
    torch.testing.assert_close(
        actual.double().cpu(),
        reference.double().cpu(),
        rtol=tolerance,
        atol=tolerance * largest,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


def check(x, weight, bias, **options):
    """Value and gradients against stock on the CPU in float64; strides and dtype against stock as
    it is."""
    wide = [None if t is None else t.detach().double().cpu() for t in (x, weight, bias)]
    with torch.no_grad():
        y = ours(x, weight, bias, **options)
        like = stock(x, weight, bias, **options)
    grad_y = exact(y.shape, 7, y.dtype, top=4).to(y.device)
    reference, wide_grads = gradients(stock, wide, grad_y.double().cpu(), **options)
    if options.get("activation") in ("gelu", "silu"):
        # Not monotone, and left to stock while training: rounding decides between its near ties.
        _, wide_grads = gradients(stock, (x, weight, bias), grad_y, **options)
    assert (y.dtype, y.shape, y.stride()) == (like.dtype, like.shape, like.stride())
    assert_near(y, reference, "y")
    # In two bytes, the derivative of sigmoid and tanh is read off a rounded output, here as in
    # stock, and stock, where it is the route, rounds between its operators.
    smooth = options.get("activation") in ("sigmoid", "tanh")
    left_to_stock = (
        dispatch_info(x, weight.detach().requires_grad_(), bias, **options).name == "stock"
    )
    loosened = 16 if x.element_size() == 2 and (smooth or left_to_stock) else 1
    trained, grads = gradients(ours, (x, weight, bias), grad_y, **options)
    assert_near(trained, reference, "y while training")
    names = [name for name, t in zip(("x", "weight", "bias"), wide, strict=True) if t is not None]
    for name, grad, wide_grad in zip(names, grads, wide_grads, strict=True):
        assert_near(grad, wide_grad, f"grad_{name}", loosened)
