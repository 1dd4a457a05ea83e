"""Derivatives of cross_entropy of every order, compilation, and what is kept for backward."""

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import compilations, gradients, lay_out, make, rows_of

from imgfast import cross_entropy

OPS = torch.ops.imgfast
CASES = [
    {},
    {"reduction": "none"},
    {"reduction": "sum", "label_smoothing": 0.2},
    {"label_smoothing": 0.2},
]


def leaves_of(shape, probabilities, weighted):
    ignored = len(shape) > 1
    logits, target, weight = make(
        shape, probabilities=probabilities, ignored=ignored, dtype=torch.float64, scale=1.0
    )
    logits.requires_grad_()
    if probabilities:
        target.requires_grad_()
        weight.requires_grad_()
    return logits, target, weight if weighted else None


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 2)])
def test_gradcheck_and_gradgradcheck(shape, probabilities, weighted, options):
    leaves = leaves_of(shape, probabilities, weighted)

    def function(*leaves):
        return cross_entropy(*leaves, **options)

    assert torch.autograd.gradcheck(function, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves, check_batched_grad=True)


def test_gradient_of_the_target_alone():
    logits, target, weight = make((5, 4), probabilities=True, dtype=torch.float64)
    target.requires_grad_()
    loss = cross_entropy(logits, target, weight)
    expected = F.cross_entropy(logits, target, weight)
    torch.testing.assert_close(
        torch.autograd.grad(loss, target), torch.autograd.grad(expected, target)
    )


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("options", CASES)
def test_functorch(options, probabilities):
    logits, target, weight = make((6, 5), probabilities=probabilities)
    tangent = make((6, 5), seed=1)[0]
    if options == {"label_smoothing": 0.2}:
        weight = None  # torch's weighted mean with smoothing cannot be vmapped

    def loss(f, x, t=target):
        return f(x, t, weight, **options)

    def total(f, x, t=target):
        return loss(f, x, t).sum()

    func, functional = torch.func, torch.autograd.functional
    for transform in (
        lambda f: func.vmap(lambda x, t: loss(f, x, t))(logits, target),
        lambda f: func.vmap(func.grad(lambda x, t: total(f, x, t)))(logits, target),
        lambda f: func.jacrev(lambda x: loss(f, x))(logits),
        lambda f: func.jacfwd(lambda x: loss(f, x))(logits),
        lambda f: func.hessian(lambda x: total(f, x))(logits),
        lambda f: func.jvp(lambda x: loss(f, x), (logits,), (tangent,)),
        lambda f: functional.hessian(lambda x: total(f, x), logits),
        lambda f: functional.jacobian(lambda x: loss(f, x), logits, vectorize=True),
    ):
        torch.testing.assert_close(transform(cross_entropy), transform(F.cross_entropy))


def test_forward_mode():
    logits, target, _ = make((6, 5))
    tangent = make((6, 5), seed=1)[0]
    results = []
    for function in (cross_entropy, F.cross_entropy):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(logits, tangent)
            results.append(torch.autograd.forward_ad.unpack_dual(function(dual, target)))
    torch.testing.assert_close(results[0].tangent, results[1].tangent)


def operator_arguments(
    shape, probabilities, reduction, dtype=torch.float32, float_loss=False, device="cpu"
):
    logits, target, weight = make(shape, probabilities=probabilities, dtype=dtype, device=device)
    other = None if probabilities else target.flip(0)
    options = (reduction, -100, 0.1, 0.3, 1e-3)
    return (logits.requires_grad_(), target, other, weight, *options, float_loss, False)


@pytest.mark.devices("cpu", "cuda")  # the emulated operators make layouts of their own
@pytest.mark.parametrize("shape", [(7,), (2, 130, 3)])
@pytest.mark.parametrize("reduction", [0, 1])
@pytest.mark.parametrize("probabilities", [False, True])
def test_opcheck(probabilities, reduction, shape, device):
    wide = torch.float32 if device.type == "cuda" else torch.float64
    for dtype in (wide, torch.bfloat16):
        arguments = operator_arguments(
            shape, probabilities, reduction, dtype, dtype == torch.bfloat16, device
        )
        torch.library.opcheck(OPS.cross_entropy.default, arguments)
        loss, stats = OPS.cross_entropy(*arguments)
        plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
        torch.library.opcheck(OPS.cross_entropy_with_gradient.default, plain)
        for grad_lse in (None, stats.new_ones(rows_of(shape))):
            torch.library.opcheck(
                OPS.cross_entropy_backward.default,
                (torch.ones_like(loss).detach(), grad_lse, *plain[:4], stats.detach(), *plain[4:9]),
            )


@pytest.mark.devices("cpu", "cuda")  # as above
@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "transposed", "padded", "strided", "swapped"]
)
def test_opcheck_of_strides(layout, device):
    logits, target, _ = make((2, 5, 3, 4), device=device)
    logits = lay_out(logits, layout).requires_grad_()
    arguments = (logits, target, None, None, 1, -100, 0.0, 1.0, 0.0, False, True)
    torch.library.opcheck(OPS.cross_entropy.default, arguments)


def test_the_backward_operator_refuses_to_be_differentiated():
    arguments = operator_arguments((5, 4), False, 1)
    _, stats = OPS.cross_entropy(*arguments)
    grad = OPS.cross_entropy_backward(
        torch.ones(()), None, *arguments[:4], stats.detach(), *arguments[4:9]
    )
    with pytest.raises(NotImplementedError, match="create_graph=True"):
        grad.sum().backward()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_gives_the_same_numbers(dynamic):
    for compiled, options, probabilities in compilations(cross_entropy, dynamic):
        for shape in ((9, 5), (11, 5), (2, 19, 3, 4)):
            logits, target, weight = make(shape, probabilities=probabilities)
            ours = gradients(cross_entropy, logits, target, weight, **options)
            again = gradients(compiled, logits, target, weight, **options)
            torch.testing.assert_close(again, ours)


def test_compile_of_a_model_with_inductor():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 5)
    x, target = torch.randn(16, 8), torch.randint(5, (16,))

    def step(x, target):
        return cross_entropy(model(x).relu(), target, label_smoothing=0.1)

    compiled = torch.compile(step, fullgraph=True)
    results = []
    for function in (step, compiled):
        model.zero_grad()
        loss = function(x, target)
        loss.backward()
        results.append([loss.detach(), model.weight.grad.clone(), model.bias.grad.clone()])
    torch.testing.assert_close(results[0], results[1])
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        compiled(x, target.clone().fill_(7))


def test_compile_keeps_errors_and_autocast():
    torch._dynamo.reset()
    logits, target, _ = make((6, 5), dtype=torch.bfloat16)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(logits, target):
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(logits, target)

    loss = function(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target))
    with pytest.raises(Exception, match="Expected input batch_size"):
        function(logits, target[:3])


def test_export():
    class Loss(torch.nn.Module):
        def forward(self, logits, target):
            return cross_entropy(logits, target)

    logits, target, _ = make((6, 5))
    program = torch.export.export(Loss(), (logits, target))
    torch.testing.assert_close(program.module()(logits, target), F.cross_entropy(logits, target))


def saved_bytes(function, *args, **kwargs):
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(*args, **kwargs)
    return sum(seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7000, 10), (70, 1000), (2, 19, 64, 64)])
def test_saved_bytes(shape, dtype, device):
    """Beside the arguments, 8 bytes a row and the divisor."""
    logits, target, weight = make(shape, dtype=dtype, device=device)
    logits.requires_grad_()
    arguments = sum(t.numel() * t.element_size() for t in (logits, target, weight))
    saved = saved_bytes(cross_entropy, logits, target, weight)
    assert saved == arguments + 8 * target.numel() + 16
    if dtype == torch.float32 and logits.shape[1] > 10:
        assert saved < saved_bytes(F.cross_entropy, logits, target, weight) + arguments


def test_overwritten_logits_are_noticed(device):
    logits, target, _ = make((7000, 10), device=device)
    hidden = logits.requires_grad_() * 1
    loss = cross_entropy(hidden, target)
    hidden.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_overwritten_logits_of_a_small_call_do_not_matter():
    """The gradient has been computed; derivatives of it have not."""
    logits, target, _ = make((6, 5))
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, target), logits)
    hidden = logits * 1
    loss = cross_entropy(hidden, target)
    hidden.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, logits, create_graph=True, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


def test_backward_twice(device):
    logits, target, _ = make((6, 5), device=device)
    logits.requires_grad_()
    loss = cross_entropy(logits, target)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
