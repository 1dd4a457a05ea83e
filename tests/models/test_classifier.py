"""The classifier: what a configuration builds, and the twin in stock layers."""

import dataclasses
import json

import pytest
import torch

from imgfast.models import MONOTONE, PRESETS, ClassifierConfig, build_classifier, classifier_config

TEN = tuple("abcdefghij")
TINY = classifier_config("tiny", TEN, 1, 28, (0.286,), (0.353,))
BASE = classifier_config("base", TEN, 1, 28, (0.286,), (0.353,))


def test_tiny_is_three_stages_and_a_linear_layer():
    shapes = {name: tuple(p.shape) for name, p in build_classifier(TINY).named_parameters()}
    assert shapes == {
        "stages.conv1.weight": (32, 1, 3, 3),
        "stages.conv1.bias": (32,),
        "stages.conv2.weight": (64, 32, 3, 3),
        "stages.conv2.bias": (64,),
        "stages.conv3.weight": (128, 64, 3, 3),
        "stages.conv3.bias": (128,),
        "head.weight": (10, 128 * 3 * 3),
        "head.bias": (10,),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "leaky_relu", "widths": (8, 17)},
        {"activation": "sigmoid", "widths": (5,), "kernel_size": 5},
        {"activation": "tanh", "widths": (16, 16, 16, 16), "image_size": 37},
        {"activation": "gelu", "widths": (4, 8), "kernel_size": 1},
        {"activation": "silu", "channels": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3},
        {"pool": "avg", "convolutions": 2, "widths": (8, 16)},
        {"norm": "batch", "convolutions": 3, "widths": (8, 16)},
        {"norm": "batch", "pool": "avg", "activation": "gelu", "dropout": 0.5},
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fused_layers_compute_what_the_stock_twin_computes(changes, memory_format):
    config = dataclasses.replace(TINY, **changes)
    ours, stock = (build_classifier(config, layers, seed=3) for layers in ("imgfast", "stock"))
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), stock.state_dict().values()))
    x = torch.randn(5, config.channels, config.image_size, config.image_size)
    x = x.contiguous(memory_format=memory_format)
    ours.to(memory_format=memory_format)
    # The twin in float64 is the reference of both.
    stock.double()
    for model in (ours, stock):
        model.dropout.eval()
    for _ in range(2):  # as in training, with the statistics of the batch; then in evaluation
        torch.testing.assert_close(ours(x).double(), stock(x.double()), rtol=2e-4, atol=2e-5)
        ours.eval()
        stock.eval()


def trained(config, seed=0):
    """A network whose batch norms have seen pictures and have shifts."""
    model = build_classifier(config, seed=seed)
    for name, value in model.named_parameters():
        if "norm" in name and name.endswith("bias"):
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(seed))
    shape = (8, config.channels, config.image_size, config.image_size)
    for batch in torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)):
        model(batch * 2 + 1)
    return model.eval()


@pytest.mark.parametrize("activation", MONOTONE)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_folding_moves_batch_norm_into_the_convolutions(activation, memory_format):
    config = dataclasses.replace(BASE, widths=(8, 16), activation=activation)
    model = trained(config).to(memory_format=memory_format)
    folded = model.fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert folded.config.norm == "none" and not folded.training
    x = torch.randn(5, 1, 28, 28).to(memory_format=memory_format)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.fold("stock")(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"activation": "gelu"}, {"pool": "avg"}, {"norm": "none"}])
def test_what_cannot_be_folded_stays(change):
    model = trained(dataclasses.replace(BASE, widths=(8, 16), **change))
    assert model.fold() is model


def test_a_scale_that_is_not_positive_is_not_folded():
    model = trained(dataclasses.replace(BASE, widths=(8, 16)))
    with torch.no_grad():
        model.stages.norm1_1.weight[3] = -1.0
    assert model.fold() is model


def test_the_scale_of_batch_norm_is_not_trained():
    model = build_classifier(dataclasses.replace(BASE, widths=(8, 16)))
    model(torch.randn(4, 1, 28, 28)).sum().backward()
    for name, value in model.named_parameters():
        assert (value.grad is None) == ("norm" in name and name.endswith("weight")), name


def test_seed_decides_the_weights_and_the_callers_random_state_stays():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (build_classifier(TINY, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_configuration_survives_json():
    assert ClassifierConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"widths": [32, "64"]}, "widths must be tuple"),
        ({"widths": [32, True]}, "widths must be tuple"),
        ({"widths": [10**9]}, "1 to 8192 filters"),
        ({"widths": [1] * 13}, "1 to 12 stages"),
        ({"widths": []}, "1 to 12 stages"),
        ({"image_size": 28.0}, "image_size must be int"),
        ({"image_size": 4}, "8 to 4096 for 3 poolings, got 4"),
        ({"classes": ["a", "a"]}, "distinct"),
        ({"classes": ["a"]}, "2 to 10000 names"),
        ({"classes": "ab"}, "classes must be tuple"),
        ({"channels": 2}, "1 or 3, got 2"),
        ({"std": [0.0]}, "std must be positive"),
        ({"std": [0.1, 0.1]}, "std must be 1 numbers"),
        ({"mean": [float("nan")]}, "mean must be finite"),
        ({"activation": "__import__"}, "activation must be one of"),
        ({"convolutions": 9}, "1 to 8 a stage, got 9"),
        ({"pool": "median"}, "pool must be one of"),
        ({"norm": "layer"}, "norm must be one of"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"kernel_size": 4}, "kernel_size must be 1, 3, 5 or 7, got 4"),
        ({"surprise": 1}, "differ in"),
    ],
)
def test_a_configuration_from_outside_is_checked(change, rule):
    with pytest.raises(ValueError, match=rule):
        ClassifierConfig.from_dict({**TINY.to_dict(), **change})


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match=f"one of {', '.join(PRESETS)}, got 'huge'"):
        classifier_config("huge", TEN, 1, 28, (0.5,), (0.5,))
    with pytest.raises(ValueError, match="layers must be one of"):
        build_classifier(TINY, layers="other")
