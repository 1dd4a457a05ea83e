"""Derivatives of linear_cross_entropy of every order, compilation, and what is kept."""

import pytest
import torch
from cross_entropy_cases import compilations
from linear_cross_entropy_cases import composition, gradients, make, use_small_tiles

from imgfast import arcface_loss, linear_cross_entropy
from imgfast.ops import linear_cross_entropy_route as route
from imgfast.ops import linear_cross_entropy_tiles as tiles

OPS = torch.ops.imgfast
CASES = [
    {},
    {"reduction": "none"},
    {"reduction": "sum", "label_smoothing": 0.2},
    {"label_smoothing": 0.2},
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    use_small_tiles(monkeypatch, rows=4)


def leaves_of(probabilities=False):
    *leaves, target, weight = make(
        6, 3, 10, probabilities=probabilities, ignored=True, dtype=torch.float64
    )
    return [t.requires_grad_() for t in leaves], target, weight


def loss_of(function, target, **options):
    def loss(input, linear_weight, linear_bias):
        return function(input, linear_weight, target, linear_bias=linear_bias, **options)

    return loss


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
def test_gradcheck_and_gradgradcheck(probabilities, weighted, options):
    leaves, target, weight = leaves_of(probabilities)
    loss = loss_of(linear_cross_entropy, target, weight=weight if weighted else None, **options)
    assert torch.autograd.gradcheck(loss, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(loss, leaves, check_batched_grad=True)


def test_second_derivatives_of_frozen_heads():
    leaves, target, _ = leaves_of()
    for frozen in range(3):
        given = [t.detach() if i == frozen else t for i, t in enumerate(leaves)]
        asked = [t for t in given if t.requires_grad]
        results = []
        for function in (linear_cross_entropy, composition):
            loss = loss_of(function, target)(*given)
            first = torch.autograd.grad(loss, asked, create_graph=True)
            results.append(torch.autograd.grad(sum((g * g).sum() for g in first), asked))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("options", CASES)
def test_functorch(options):
    leaves, target, _ = leaves_of()
    leaves = [t.detach() for t in leaves]
    tangents = [torch.ones_like(t) for t in leaves]
    func = torch.func
    for transform in (
        lambda f: func.jacrev(loss_of(f, target, **options), (0, 1, 2))(*leaves),
        lambda f: func.jacfwd(loss_of(f, target, **options))(*leaves),
        lambda f: func.jvp(loss_of(f, target, **options), tuple(leaves), tuple(tangents)),
        lambda f: func.vmap(lambda w: loss_of(f, target, **options)(leaves[0], w, leaves[2]))(
            torch.stack([leaves[1], -leaves[1]])
        ),
    ):
        torch.testing.assert_close(transform(linear_cross_entropy), transform(composition))


def test_forward_mode():
    leaves, target, _ = leaves_of()
    results = []
    for function in (linear_cross_entropy, composition):
        with torch.autograd.forward_ad.dual_level():
            input = torch.autograd.forward_ad.make_dual(leaves[0], torch.ones_like(leaves[0]))
            dual = function(input, leaves[1], target)
            results.append(torch.autograd.forward_ad.unpack_dual(dual).tangent)
    torch.testing.assert_close(*results)


def test_batched_gradients_of_the_eager_path():
    leaves, target, _ = leaves_of()
    rows = torch.eye(len(target), dtype=torch.float64)
    results = []
    for function in (linear_cross_entropy, composition):
        loss = loss_of(function, target, reduction="none")(*leaves)
        results.append(torch.autograd.grad(loss, leaves, rows, is_grads_batched=True))
    torch.testing.assert_close(*results)


def test_checkpoint():
    leaves, target, _ = leaves_of()
    loss = loss_of(linear_cross_entropy, target)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    again = torch.utils.checkpoint.checkpoint(loss, *leaves, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again, leaves), expected)


def test_backward_twice_gives_the_same_bits():
    leaves, target, _ = leaves_of()
    loss = loss_of(linear_cross_entropy, target)(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves, retain_graph=True)
    third = torch.autograd.grad(loss, leaves[1])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[1], third[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


def test_backward_with_another_number_of_threads():
    leaves, target, _ = leaves_of()
    threads = torch.get_num_threads()
    results = []
    for later in (threads, threads + 3):
        torch.set_num_threads(threads)
        loss = loss_of(linear_cross_entropy, target)(*leaves)
        torch.set_num_threads(later)
        results.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(*results)


def test_overwritten_arguments_are_noticed():
    leaves, target, _ = leaves_of()
    for i in range(3):
        given = [t * 1 for t in leaves]
        loss = loss_of(linear_cross_entropy, target)(*given)
        given[i].detach().zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_logits_are_kept_until_backward_and_up_to_the_budget(monkeypatch):
    leaves, target, _ = leaves_of()
    for budget, kept in ((0, 0), (100, 12), (1 << 20, 60)):
        monkeypatch.setattr(tiles, "KEPT_BYTES", budget)
        loss = loss_of(linear_cross_entropy, target)(*leaves)
        assert len(loss.grad_fn.kept.logits) == kept
        loss.backward()
        assert not hasattr(loss.grad_fn, "kept")


def operator_arguments(probabilities, reduction, dtype, margin="none", autocast=False):
    *leaves, target, weight = make(6, 3, 10, probabilities=probabilities, dtype=dtype)
    products = torch.bfloat16 if autocast else dtype
    options = (reduction, -100, 0.1, autocast, products, margin, 0.5, 4.0)
    if margin != "none":
        leaves[2] = None
    leaves = [None if t is None else t.requires_grad_() for t in leaves]
    return (*leaves, target, weight, *options)


@pytest.mark.parametrize("reduction", [0, 1])
@pytest.mark.parametrize(
    ("probabilities", "margin"),
    [(False, "none"), (True, "none"), (False, "arcface"), (False, "cosface")],
)
def test_opcheck(probabilities, margin, reduction):
    for dtype, autocast in ((torch.float64, False), (torch.bfloat16, False), (torch.float32, True)):
        arguments = operator_arguments(probabilities, reduction, dtype, margin, autocast)
        torch.library.opcheck(OPS.linear_cross_entropy.default, arguments)
        plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
        loss, stats = OPS.linear_cross_entropy(*plain)
        for needs in ((True, True, margin == "none"), (False, True, False), (True, False, False)):
            torch.library.opcheck(
                OPS.linear_cross_entropy_backward.default,
                (torch.ones_like(loss), *plain[:5], stats, *plain[5:], *needs),
            )


@pytest.mark.parametrize("transposed", [0, 1])
def test_opcheck_of_strides(transposed):
    arguments = list(operator_arguments(False, 1, torch.float32))
    arguments[transposed] = arguments[transposed].detach().t().contiguous().t().requires_grad_()
    torch.library.opcheck(OPS.linear_cross_entropy.default, tuple(arguments))


def test_gradients_of_the_operator():
    """Those of the eager path; and differentiable."""
    leaves, target, weight = leaves_of()

    def operator(*leaves):
        flat = (1, -100, 0.1, False, torch.float64, "none", 0.0, 1.0)
        return OPS.linear_cross_entropy(*leaves, target, weight, *flat)[0]

    ours = loss_of(linear_cross_entropy, target, weight=weight, label_smoothing=0.1)
    assert torch.equal(operator(*leaves), ours(*leaves))
    results = [torch.autograd.grad(f(*leaves), leaves) for f in (operator, ours)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.autograd.gradgradcheck(operator, leaves)


def test_the_backward_operator_refuses_to_be_differentiated():
    leaves, target, weight = leaves_of()
    flat = (1, -100, 0.1, False, torch.float64, "none", 0.0, 1.0)
    _, stats = OPS.linear_cross_entropy(*leaves, target, weight, *flat)
    one = torch.ones((), dtype=torch.float64)
    grad, *_ = OPS.linear_cross_entropy_backward(
        one, *leaves, target, weight, stats, *flat, True, True, True
    )
    with pytest.raises(NotImplementedError, match="create_graph=True"):
        grad.sum().backward()


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_gives_the_same_numbers(monkeypatch, dynamic, kept_bytes):
    """Through the operator, and as the composition."""
    monkeypatch.setattr(tiles, "KEPT_BYTES", kept_bytes)
    for compiled, options, probabilities in compilations(linear_cross_entropy, dynamic):
        for rows in (9, 11):
            *tensors, _ = make(rows, 4, 13, probabilities=probabilities)
            ours = gradients(linear_cross_entropy, *tensors, **options)
            again = gradients(compiled, *tensors, **options)
            torch.testing.assert_close(again, ours)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_which_path_is_compiled(monkeypatch, kept_bytes):
    monkeypatch.setattr(tiles, "KEPT_BYTES", kept_bytes)
    torch._dynamo.reset()
    targets = []

    def backend(module, _):
        targets.extend(str(node.target) for node in module.graph.nodes)
        return module

    *tensors, target, _ = make()
    torch.compile(linear_cross_entropy, fullgraph=True, backend=backend)(*tensors[:2], target)
    assert any("imgfast.linear_cross_entropy" in t for t in targets) == (kept_bytes == 0)


def test_compile_of_a_model_with_inductor(monkeypatch):
    monkeypatch.setattr(tiles, "KEPT_BYTES", 0)
    torch._dynamo.reset()
    torch.manual_seed(0)
    body, head = torch.nn.Linear(8, 6), torch.nn.Linear(6, 50)
    x, target = torch.randn(16, 8), torch.randint(50, (16,))
    parameters = [*body.parameters(), head.weight]

    def step(x, target):
        features = body(x).relu()
        plain = linear_cross_entropy(features, head.weight, target, label_smoothing=0.1)
        return plain + arcface_loss(features, head.weight, target)

    compiled = torch.compile(step, fullgraph=True)
    results = []
    for function in (step, compiled):
        loss = function(x, target)
        results.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
    torch.testing.assert_close(results[0], results[1])
    with pytest.raises(IndexError, match="Target 70 is out of bounds"):
        compiled(x, target.clone().fill_(70))


def test_compile_keeps_errors_and_autocast(monkeypatch):
    monkeypatch.setattr(tiles, "KEPT_BYTES", 0)
    torch._dynamo.reset()
    *tensors, _ = make()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(*args, **kwargs)

    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(linear_cross_entropy, *tensors)
    got = gradients(function, *tensors)
    assert [t.dtype for t in got] == [t.dtype for t in expected] == [torch.float32] * 4
    torch.testing.assert_close(got, expected)
    with pytest.raises(Exception, match="Expected input batch_size"):
        function(tensors[0], tensors[1], tensors[3][:3])


def test_export(monkeypatch):
    monkeypatch.setattr(tiles, "KEPT_BYTES", 0)

    class Loss(torch.nn.Module):
        def forward(self, input, linear_weight, target):
            return linear_cross_entropy(input, linear_weight, target)

    input, linear_weight, _, target, _ = make()
    program = torch.export.export(Loss(), (input, linear_weight, target))
    torch.testing.assert_close(
        program.module()(input, linear_weight, target), composition(input, linear_weight, target)
    )


def test_small_heads_run_as_the_composition(monkeypatch):
    monkeypatch.setattr(route, "SMALL", 23 * 37)
    input, linear_weight, _, target, _ = make()
    loss = linear_cross_entropy(input.requires_grad_(), linear_weight, target)
    assert not hasattr(loss.grad_fn, "kept")
    monkeypatch.setattr(route, "SMALL", 23 * 37 - 1)
    loss = linear_cross_entropy(input, linear_weight, target)
    assert hasattr(loss.grad_fn, "kept")
