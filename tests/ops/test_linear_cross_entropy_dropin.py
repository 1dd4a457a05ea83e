"""linear_cross_entropy and LinearCrossEntropyLoss in the place of torch's: errors word for word,
torch's own samples, autocast, subclasses, a torch that has none."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from linear_cross_entropy_cases import composition, gradients, make, use_small_tiles

import imgfast
from imgfast import linear_cross_entropy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    common_methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    common_modules = pytest.importorskip("torch.testing._internal.common_modules")

stock = getattr(F, "linear_cross_entropy", None)
needs_stock = pytest.mark.skipif(stock is None, reason="this torch has no linear_cross_entropy")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    use_small_tiles(monkeypatch)


def outcome(function, *args, **kwargs):
    """What a call raises, as type and text; or what it returns."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)


def same_outcome(*args, **kwargs):
    expected = outcome(stock, *args, **kwargs)
    got = outcome(linear_cross_entropy, *args, **kwargs)
    if isinstance(expected, tuple):
        assert got == expected
    else:
        torch.testing.assert_close(got, expected, equal_nan=True)
    return expected


X = torch.linspace(-2, 2, 12).reshape(3, 4)
W = torch.linspace(-1, 1, 20).reshape(5, 4).sin()
Y = torch.tensor([0, 4, 2])
P = F.linear(X, W).softmax(1)
MISTAKES = {
    "target beyond the classes": ((X, W, torch.tensor([0, 5, 2])), {}),
    "negative target": ((X, W, torch.tensor([0, -1, 2])), {}),
    "two bad targets": ((X, W, torch.tensor([7, 1, -3])), {}),
    "bad target with weight": ((X, W, torch.tensor([0, 5, 2])), {"weight": torch.ones(5)}),
    "bad target of a single sample": ((X[0], W, torch.tensor(5)), {}),
    "no longer ignored": ((X, W, torch.tensor([0, -100, 2])), {"ignore_index": 1}),
    "int32 target": ((X, W, Y.int()), {}),
    "float target": ((X, W, Y.float()), {}),
    "int64 probabilities": ((X, W, P.long()), {}),
    "other batch": ((X, W, Y[:2]), {}),
    "two-dimensional target": ((X, W, torch.zeros(3, 2).long()), {}),
    "scalar input": ((torch.tensor(1.0), W, Y), {}),
    "input with three dimensions": ((X[None], W, Y[None]), {}),
    "weight vector": ((X, W[0], Y), {}),
    "other features": ((X, W[:, :3], Y), {}),
    "short bias": ((X, W, Y), {"linear_bias": torch.ones(4)}),
    "two-dimensional bias": ((X, W, Y), {"linear_bias": torch.ones(5, 1)}),
    "positions without a batch": ((X[0], W[:, None], torch.tensor([1])), {}),
    "no classes": ((X, W[:0], Y), {}),
    "float64 linear_weight": ((X, W.double(), Y), {}),
    "float64 linear_bias": ((X, W, Y), {"linear_bias": torch.ones(5).double()}),
    "short weight": ((X, W, Y), {"weight": torch.ones(4)}),
    "short weight, probabilities": ((X, W, P), {"weight": torch.ones(4)}),
    "float64 weight": ((X, W, Y), {"weight": torch.ones(5).double()}),
    "weight that requires grad": ((X, W, Y), {"weight": torch.ones(5, requires_grad=True)}),
    "smoothing above 1": ((X, W, Y), {"label_smoothing": 1.5}),
    "smoothing above 1, probabilities": ((X, W, P), {"label_smoothing": 1.5}),
    "ignore_index with probabilities": ((X, W, P), {"ignore_index": -100}),
    "unknown reduction": ((X, W, Y), {"reduction": "average"}),
    "int64 operands": ((X.long(), W.long(), Y), {}),
    "target is not a tensor": ((X, W, [0, 1, 2]), {}),
    "input is not a tensor": (([[0.0, 1.0]], W, Y), {}),
    "linear_weight is None": ((X, None, Y), {}),
    "weight is not a tensor": ((X, W, Y), {"weight": [1.0] * 5}),
    "smoothing is a string": ((X, W, Y), {"label_smoothing": "0.1"}),
    "ignore_index is a float": ((X, W, Y), {"ignore_index": 0.5}),
}


@needs_stock
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", MISTAKES)
def test_errors_are_those_of_torch(name, requires_grad):
    (input, *rest), options = MISTAKES[name]
    if requires_grad and isinstance(input, torch.Tensor) and input.is_floating_point():
        input = input.clone().requires_grad_()
    assert isinstance(same_outcome(input, *rest, **options), tuple), "this is no mistake"


def test_out_of_range_target():
    with pytest.raises(IndexError, match=r"^Target 5 is out of bounds\.$"):
        linear_cross_entropy(X, W, torch.tensor([0, 5, 7]))


@needs_stock
@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((X, W, Y.to(torch.uint8)), {}),
        ((X, W, Y), {"label_smoothing": -1.0}),
        ((X, W, Y), {"label_smoothing": 1}),
        ((X, W, Y), {"ignore_index": 4}),
        ((X, W, torch.tensor([0, 300, 2])), {"ignore_index": 300}),
        ((X, W, P.double()), {}),
        ((X, W, P), {"weight": torch.ones(5).double()}),
        ((X[0], W, torch.tensor(3)), {"linear_bias": torch.arange(5.0)}),
        ((X[0], W, P[0]), {}),
        ((X, W[:, None], Y[:, None]), {"linear_bias": torch.arange(5.0)[:, None]}),
        ((X, W.reshape(5, 2, 2).repeat(1, 1, 2), torch.zeros(3, 2).long()), {"reduction": "none"}),
        ((X, W.reshape(5, 2, 2).repeat(1, 1, 2), torch.rand(3, 5, 2)), {}),
        ((X[:, :1], W[:1, :1], torch.zeros(3).long()), {}),
    ],
)  # fmt: skip
def test_unusual_arguments(args, options):
    assert isinstance(same_outcome(*args, **options), torch.Tensor)


def test_a_torch_without_linear_cross_entropy(monkeypatch):
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    wide, bias = W.reshape(5, 2, 2).repeat(1, 1, 2), torch.arange(10.0).reshape(5, 2)
    target = torch.tensor([[0, 1], [2, 3], [4, 0]])
    logits = torch.einsum("nd,ckd->nck", X, wide) + bias
    torch.testing.assert_close(
        linear_cross_entropy(X, wide, target, linear_bias=bias), F.cross_entropy(logits, target)
    )
    torch.testing.assert_close(
        linear_cross_entropy(X[0], W, torch.tensor(3)), composition(X[0], W, torch.tensor(3))
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear_cross_entropy(X, W[:, :3], Y)


def test_probabilities_and_weights_that_require_grad():
    input, linear_weight, _, target, weight = make(probabilities=True)
    results = []
    for function in (linear_cross_entropy, composition):
        leaves = [t.detach().requires_grad_() for t in (input, linear_weight, target, weight)]
        loss = function(*leaves[:3], weight=leaves[3], label_smoothing=0.1)
        results.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(*results)


@needs_stock
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_torchs_own_samples(dtype):
    torch.manual_seed(0)
    samples = common_methods.sample_inputs_linear_cross_entropy(None, "cpu", dtype, True)
    seen = 0
    for sample in samples:
        (linear_weight, target), options = sample.args, dict(sample.kwargs)
        linear_bias = options.pop("linear_bias", None)
        tensors = sample.input, linear_weight, linear_bias, target
        ours = gradients(linear_cross_entropy, *tensors, **options)
        theirs = gradients(stock, *tensors, **options)
        if dtype.itemsize >= 4:
            torch.testing.assert_close(ours, theirs)
        else:  # logits up to 600, of which bfloat16 loses the units: no worse than stock
            wide = [None if t is None else t.double() for t in tensors[:3]]
            wide.append(target.double() if target.is_floating_point() else target)
            options = {k: v.double() if k == "weight" else v for k, v in options.items()}
            for a, b, e in zip(ours, theirs, gradients(stock, *wide, **options), strict=True):
                assert a.dtype == b.dtype
                error, stocks = ((t.double() - e).norm() for t in (a, b))
                assert error <= 1.2 * stocks + torch.finfo(dtype).eps * e.norm()
        seen += 1
    assert seen > 20


@needs_stock
def test_torchs_own_error_inputs():
    seen = 0
    for error in common_methods.error_inputs_linear_cross_entropy(None, "cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)
        seen += 1
    assert seen > 3


@needs_stock
def test_torchs_own_samples_of_the_module():
    torch.manual_seed(0)
    samples = common_modules.module_inputs_torch_nn_LinearCrossEntropyLoss(
        None, "cpu", torch.float64, True, True
    )
    seen = 0
    for sample in samples:
        made, (input, target) = sample.constructor_input, sample.forward_input.args
        options = dict(made.kwargs)
        if options.pop("options") is not None:
            continue
        theirs = torch.nn.LinearCrossEntropyLoss(*made.args, **options)
        ours = imgfast.nn.LinearCrossEntropyLoss(*made.args, **options)
        ours.load_state_dict(theirs.state_dict())
        results = []
        for module in (ours, theirs):
            loss = module(input, target)
            results.append([loss, *torch.autograd.grad(loss.sum(), [input, *module.parameters()])])
        torch.testing.assert_close(*results, equal_nan=True)
        seen += 1
    assert seen > 100


@needs_stock
def test_torchs_own_error_inputs_of_the_module():
    error_inputs = getattr(
        common_modules, "module_error_inputs_torch_nn_LinearCrossEntropyLoss", None
    )
    if error_inputs is None:
        pytest.skip("this torch has no error inputs for LinearCrossEntropyLoss")
    for sample in error_inputs(None, "cpu", torch.float32, False, True):
        made = sample.module_error_input.constructor_input
        called = sample.module_error_input.forward_input
        with pytest.raises(sample.error_type, match=sample.error_regex):
            module = imgfast.nn.LinearCrossEntropyLoss(*made.args, **made.kwargs)
            module(*called.args, **called.kwargs)


@needs_stock
@pytest.mark.parametrize("out_features", [(), (2, 3)])
def test_module(out_features):
    torch.manual_seed(0)
    options = {
        "out_features": out_features,
        "bias": True,
        "weight": torch.linspace(0.1, 1, 5),
        "ignore_index": 2,
        "label_smoothing": 0.1,
    }
    ours = imgfast.nn.LinearCrossEntropyLoss(4, 5, **options)
    theirs = torch.nn.LinearCrossEntropyLoss(4, 5, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    target = torch.randint(5, (3, *out_features))
    torch.testing.assert_close(ours(X, target), theirs(X, target))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(X, target), ours(X, target))
    for wrong in ({"weight": torch.ones(4)}, {"label_smoothing": 1.5}, {"reduction": "average"}):
        expected, got = (
            outcome(lambda module=module, wrong=wrong: module(4, 5, **wrong)(X, Y))
            for module in (torch.nn.LinearCrossEntropyLoss, imgfast.nn.LinearCrossEntropyLoss)
        )
        assert got == expected and isinstance(got, tuple)


@needs_stock
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [None, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "target_dtype", [torch.int64, torch.float32, torch.bfloat16, torch.float64]
)
def test_autocast(dtype, weight_dtype, target_dtype):
    *tensors, target, weight = make(7, 6, 5, probabilities=target_dtype != torch.int64)
    tensors = [t.to(dtype) for t in tensors]
    target = target.to(target_dtype)
    weight = None if weight_dtype is None else weight.to(weight_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        expected = outcome(gradients, stock, *tensors, target, weight=weight)
        got = outcome(gradients, linear_cross_entropy, *tensors, target, weight=weight)
    if isinstance(expected, tuple):
        assert got == expected
    else:
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
        if torch.float64 not in (dtype, target_dtype, weight_dtype):
            assert got[0].dtype == torch.float32


def test_autocast_of_mixed_operands_and_backward_inside():
    input, linear_weight, linear_bias, target, _ = make()
    input = input.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(linear_cross_entropy, input, linear_weight, linear_bias, target)
        theirs = gradients(composition, input, linear_weight, linear_bias, target)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_subclasses_and_modes():
    class Named(torch.Tensor):
        pass

    expected = linear_cross_entropy(X, W, Y)
    got = linear_cross_entropy(X.as_subclass(Named), W, Y)
    assert isinstance(got, Named)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), expected)
    torch.testing.assert_close(linear_cross_entropy(X, torch.nn.Parameter(W), Y), expected)
    assert linear_cross_entropy(X.to("meta"), W.to("meta"), Y.to("meta")).is_meta
    with torch.inference_mode():
        torch.testing.assert_close(linear_cross_entropy(X.clone(), W, Y), expected)
