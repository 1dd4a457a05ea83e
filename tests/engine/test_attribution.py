"""Heat maps against values worked out by hand and against what the papers promise."""

import dataclasses

import pytest
import torch
from torch import nn

from imgfast.data import normalise, split
from imgfast.engine import load_checkpoint, predict_probabilities
from imgfast.engine.attribution import (
    grad_cam,
    integrated_gradients,
    last_feature_map,
    occlusion,
)
from imgfast.engine.stock_twin import stock_twin
from imgfast.models import build_classifier


@pytest.fixture(scope="module")
def model(run):
    return load_checkpoint(run.path).model


@pytest.fixture(scope="module")
def images(pictures):
    """Held-out pictures."""
    return split(pictures, seed=0)[1].images[:24]


@pytest.fixture(scope="module")
def target(model, images):
    return predict_probabilities(model, images).argmax(1)


def inputs(model, images):
    return normalise(images, model.config.mean, model.config.std)


def test_the_twin_gives_the_fused_logits(model, images):
    twin = stock_twin(model)
    x = inputs(model, images)
    torch.testing.assert_close(twin(x), model(x).detach(), rtol=1e-4, atol=1e-4)
    assert all(type(module).__module__.startswith("torch.nn") for module in twin.stages)
    assert not any(value.requires_grad for value in twin.parameters())
    assert all(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_the_last_feature_map_is_behind_the_activation_and_before_the_pooling(model, activation):
    twin = stock_twin(build_classifier(dataclasses.replace(model.config, activation=activation)))
    shapes = []
    module = last_feature_map(twin)
    module.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    twin(torch.zeros(1, 1, 28, 28))
    assert shapes == [(1, 128, 7, 7)]
    assert type(module).__name__.lower() == activation


def test_the_last_feature_map_with_normalisation_behind_two_convolutions():
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU()]
    stages = nn.Sequential(*layers, nn.MaxPool2d(2))
    assert last_feature_map(nn.Sequential(stages, nn.Flatten(), nn.Linear(8, 2))) is layers[4]
    with pytest.raises(ValueError, match="needs a network with a convolution"):
        last_feature_map(nn.Linear(2, 2))


def test_grad_cam_by_hand(model, images, target):
    """Equations 1 and 2 of the paper, written out with autograd in float64."""
    twin = stock_twin(model).double()
    x = inputs(model, images).double()
    head, stages = twin.head, list(twin.stages)
    maps = nn.Sequential(*stages[:-1])(x).requires_grad_()  # [N, K, 7, 7], pooling left out
    logits = head(stages[-1](maps).flatten(1))
    (slopes,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), maps)
    coarse = (slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    expected = nn.functional.interpolate(coarse, (28, 28), mode="bilinear")[:, 0]
    found = grad_cam(model, images, target)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-3, atol=1e-4)
    assert found.min() >= 0 and found.amax((1, 2)).median() > 0


def test_integrated_gradients_are_complete(model, images, target):
    heat, completeness = integrated_gradients(model, images, target)
    x = inputs(model, images)
    rows = torch.arange(len(x))
    with torch.no_grad():
        gap = model(x)[rows, target] - model(torch.zeros_like(x))[rows, target]
    torch.testing.assert_close(completeness.difference, gap, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(heat.sum((1, 2)), completeness.total, rtol=1e-3, atol=1e-3)
    assert completeness.error.max() < 0.05
    # Two points do not integrate a network: the check can fail.
    coarse = integrated_gradients(model, images, target, steps=2)[1]
    assert coarse.error.mean() > 3 * completeness.error.mean()


def test_occlusion_by_hand(model, images, target):
    """One pixel under one patch only, and the falls of the log-probability that make it up."""
    x = inputs(model, images[:2])
    heat = occlusion(model, images[:2], target[:2])
    with torch.no_grad():
        before = model(x).log_softmax(1)
        for row in range(2):
            for top, left in ((0, 0), (12, 8), (24, 24)):  # patches of 4 x 4 pixels every 2
                falls = []
                for y in {max(top - 2, 0), top}:
                    for z in {max(left - 2, 0), left}:
                        covered = x[row : row + 1].clone()
                        covered[:, :, y : y + 4, z : z + 4] = 0
                        after = model(covered).log_softmax(1)
                        falls.append((before[row] - after[0])[target[row]])
                expected = torch.stack(falls).mean()
                torch.testing.assert_close(heat[row, top, left], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [grad_cam, occlusion, lambda *a: integrated_gradients(*a)[0]])
def test_maps_are_deterministic_and_leave_the_model_alone(model, images, target, method):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = method(model, images[:5], target[:5])
    assert first.shape == (5, 28, 28) and bool(torch.isfinite(first).all())
    assert torch.equal(first, method(model, images[:5], target[:5]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert method(model, images[:0], target[:0]).shape == (0, 28, 28)


def test_colour_pictures_have_one_map(model):
    config = dataclasses.replace(model.config, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    network = build_classifier(config).eval()
    images = torch.randint(0, 256, (2, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    images, target = images.to(torch.uint8), torch.tensor([1, 2])
    heat, completeness = integrated_gradients(network, images, target)
    torch.testing.assert_close(heat.sum((1, 2)), completeness.total, rtol=1e-3, atol=1e-4)
    for found in (heat, grad_cam(network, images, target), occlusion(network, images, target)):
        assert found.shape == (2, 28, 28) and found.abs().max() > 0
