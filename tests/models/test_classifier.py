"""The classifier: what a configuration builds, and the twin in stock layers."""

import dataclasses
import json

import pytest
import torch

from imgfast.models import PRESETS, ClassifierConfig, build_classifier, classifier_config

TEN = tuple("abcdefghij")
TINY = classifier_config("tiny", TEN, 1, 28, (0.286,), (0.353,))


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
    exact = stock.double()(x.double())
    torch.testing.assert_close(ours(x).double(), exact, rtol=1e-4, atol=1e-5)


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
