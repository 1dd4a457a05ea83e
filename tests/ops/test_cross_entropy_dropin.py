"""cross_entropy and CrossEntropyLoss in the place of torch's: errors word for word, torch's own
samples, autocast, deprecated arguments, foreign dtypes and subclasses."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import check, gradients, make

import imgfast
from imgfast import cross_entropy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    common_methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    common_modules = pytest.importorskip("torch.testing._internal.common_modules")


def outcome(function, *args, **kwargs):
    """What a call raises, as type and text; or what it returns."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)


def same_outcome(*args, **kwargs):
    expected = outcome(F.cross_entropy, *args, **kwargs)
    got = outcome(cross_entropy, *args, **kwargs)
    if isinstance(expected, tuple):
        assert got == expected
    else:
        torch.testing.assert_close(got, expected, equal_nan=True)
    return expected


X = torch.linspace(-2, 2, 15).reshape(3, 5)
Y = torch.tensor([0, 4, 2])
P = X.softmax(1)
MISTAKES = {
    "target beyond the classes": ((X, torch.tensor([0, 5, 2])), {}),
    "negative target": ((X, torch.tensor([0, -1, 2])), {}),
    "two bad targets": ((X, torch.tensor([7, 1, -3])), {}),
    "bad target in an image": ((X.reshape(1, 5, 3), torch.tensor([[1, 9, 2]])), {}),
    "bad target with weight": ((X, torch.tensor([0, 5, 2]), torch.ones(5)), {}),
    "bad target of a single sample": ((X[0], torch.tensor(5)), {}),
    "ignored target that is no longer ignored": (
        (X, torch.tensor([0, -100, 2])),
        {"ignore_index": 1},
    ),
    "int32 target": ((X, Y.int()), {}),
    "int16 target": ((X, Y.short()), {}),
    "bool target": ((X, Y.bool()), {}),
    "float target": ((X, Y.float()), {}),
    "uint8 image": ((X.reshape(1, 5, 3, 1), torch.zeros(1, 3, 1, dtype=torch.uint8)), {}),
    "int64 probabilities": ((X, X.long()), {}),
    "other batch": ((X, Y[:2]), {}),
    "other batch of images": ((torch.zeros(2, 3, 2, 2), torch.zeros(3, 2, 2).long()), {}),
    "other positions": ((torch.zeros(2, 5, 3), torch.zeros(2, 4).long()), {}),
    "other height": ((torch.zeros(2, 5, 3, 3), torch.zeros(2, 4, 3).long()), {}),
    "two-dimensional target": ((X, torch.zeros(3, 2).long()), {}),
    "target of one dimension less": ((torch.zeros(2, 5, 3), torch.zeros(2).long()), {}),
    "scalar input": ((torch.tensor(1.0), torch.tensor(0)), {}),
    "scalar input and float target": ((torch.tensor(1.0), torch.tensor(0.5)), {}),
    "no classes": ((torch.zeros(3, 0), Y), {}),
    "short weight": ((X, Y, torch.ones(4)), {}),
    "short weight, probabilities": ((X, P, torch.ones(4)), {}),
    "square weight": ((X, Y, torch.ones(5, 5)), {}),
    "float64 weight": ((X, Y, torch.ones(5).double()), {}),
    "weight that requires grad": ((X, Y, torch.ones(5, requires_grad=True)), {}),
    "smoothing above 1": ((X, Y), {"label_smoothing": 1.5}),
    "smoothing above 1, probabilities": ((X, P), {"label_smoothing": 1.5}),
    "ignore_index with probabilities": ((X, P), {"ignore_index": 0}),
    "unknown reduction": ((X, Y), {"reduction": "average"}),
    "int64 input": ((X.long(), Y), {}),
    "complex input": ((X.to(torch.complex64), Y), {}),
    "target is not a tensor": ((X, [0, 1, 2]), {}),
    "input is not a tensor": (([[0.0, 1.0]], Y), {}),
    "weight is not a tensor": ((X, Y, [1.0] * 5), {}),
    "smoothing is a string": ((X, Y), {"label_smoothing": "0.1"}),
    "ignore_index is a float": ((X, Y), {"ignore_index": 0.5}),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", MISTAKES)
def test_errors_are_those_of_torch(name, requires_grad):
    (input, *rest), options = MISTAKES[name]
    if requires_grad and isinstance(input, torch.Tensor) and input.is_floating_point():
        input = input.clone().requires_grad_()
    assert isinstance(same_outcome(input, *rest, **options), tuple), "this is no mistake"


def test_error_in_the_middle_of_a_large_batch():
    logits, target, _ = make((50000, 10))
    target[31415], target[40000] = 10, -1
    with pytest.raises(IndexError, match=r"^Target 10 is out of bounds\.$"):
        cross_entropy(logits, target)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((X, Y.to(torch.uint8)), {}),
        ((X, Y), {"label_smoothing": -1.0}),
        ((X, Y), {"label_smoothing": 1}),
        ((X, Y), {"label_smoothing": float("nan")}),
        ((X, Y, None, None, 4), {}),
        ((X, P.double()), {}),
        ((torch.zeros(3, 0), torch.zeros(3, 0)), {}),
        ((X, P, torch.ones(5).double()), {}),
        ((X, torch.tensor([0, 300, 2])), {"ignore_index": 300}),
        ((X.t(), torch.tensor([0, 1, 2, 0, 1])), {}),
    ],
)  # fmt: skip
def test_unusual_arguments(args, options):
    assert isinstance(same_outcome(*args, **options), torch.Tensor)


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
def test_deprecated_arguments(size_average, reduce):
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        got = cross_entropy(X, Y, size_average=size_average, reduce=reduce)
    with warnings.catch_warnings(record=True) as stock:
        warnings.simplefilter("always")
        expected = F.cross_entropy(X, Y, size_average=size_average, reduce=reduce)
    torch.testing.assert_close(got, expected)
    assert [str(w.message) for w in ours] == [str(w.message) for w in stock]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_torchs_own_samples(dtype):
    torch.manual_seed(0)
    samples = common_methods.sample_inputs_cross_entropy(None, "cpu", dtype, True)
    seen = 0
    for sample in samples:
        (target,), options = sample.args, dict(sample.kwargs)
        weight = options.pop("weight", None)
        ours = check(sample.input, target, weight, **options)
        if dtype in (torch.float32, torch.float64):
            stock = gradients(F.cross_entropy, sample.input, target, weight, **options)
            torch.testing.assert_close(ours, stock, equal_nan=True)
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_torchs_own_samples_of_the_module(dtype):
    torch.manual_seed(0)
    samples = common_modules.module_inputs_torch_nn_CrossEntropyLoss(None, "cpu", dtype, True, True)
    for sample in samples:
        made, (input, target) = sample.constructor_input, sample.forward_input.args
        module = imgfast.nn.CrossEntropyLoss(*made.args, **made.kwargs)
        if dtype != torch.float16:
            stock = torch.nn.CrossEntropyLoss(*made.args, **made.kwargs)
            torch.testing.assert_close(module(input, target), stock(input, target), equal_nan=True)
        options = {k: v for k, v in made.kwargs.items() if k != "weight"}
        check(input, target, made.kwargs.get("weight"), **options)
    assert len(samples) > 20


def test_torchs_own_error_inputs_of_the_module():
    error_inputs = getattr(common_modules, "module_error_inputs_torch_nn_CrossEntropyLoss", None)
    if error_inputs is None:
        pytest.skip("this torch has no error inputs for CrossEntropyLoss")
    for sample in error_inputs(None, "cpu", torch.float32, False, True):
        made = sample.module_error_input.constructor_input
        called = sample.module_error_input.forward_input
        module = imgfast.nn.CrossEntropyLoss(*made.args, **made.kwargs)
        with pytest.raises(sample.error_type, match=sample.error_regex):
            module(*called.args, **called.kwargs)


def test_module():
    weight = torch.linspace(0.1, 1, 5)
    module = imgfast.nn.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1)
    stock = torch.nn.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1)
    assert isinstance(module, torch.nn.CrossEntropyLoss)
    assert repr(module) == repr(stock)
    assert list(module.state_dict()) == list(stock.state_dict())
    torch.testing.assert_close(module(X, Y), stock(X, Y))
    module.load_state_dict(stock.state_dict())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(X, Y), module(X, Y))
    assert module.double()(X.double(), Y).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [None, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "target_dtype", [torch.int64, torch.float32, torch.bfloat16, torch.float64]
)
def test_autocast(dtype, weight_dtype, target_dtype):
    logits, target, weight = make((7, 5), probabilities=target_dtype != torch.int64, dtype=dtype)
    target = target.to(target_dtype)
    weight = None if weight_dtype is None else weight.to(weight_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        expected = outcome(gradients, F.cross_entropy, logits, target, weight)
        got = outcome(gradients, cross_entropy, logits, target, weight)
    if isinstance(expected, tuple):
        assert got == expected
    else:
        torch.testing.assert_close(got, expected)
        if torch.float64 not in (dtype, target_dtype, weight_dtype):
            assert got[0].dtype == torch.float32


def test_subclasses_and_modes_see_torchs_function():
    class Named(torch.Tensor):
        pass

    expected = F.cross_entropy(X, Y)
    got = cross_entropy(X.as_subclass(Named), Y)
    assert isinstance(got, Named)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), expected)
    parameter = torch.nn.Parameter(X)
    torch.testing.assert_close(cross_entropy(parameter, Y), expected)
    assert cross_entropy(X.to("meta"), Y.to("meta")).is_meta
    with torch.inference_mode():
        torch.testing.assert_close(cross_entropy(X.clone(), Y), expected)


def test_negative_view():
    """A lazily negated tensor (a conjugate's imaginary part) reaches the kernel with its sign."""
    lazy = torch.complex(X, X).conj().imag
    assert lazy.is_neg()
    torch.testing.assert_close(cross_entropy(lazy, Y), F.cross_entropy(-X, Y))
