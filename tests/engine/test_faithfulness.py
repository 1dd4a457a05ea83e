"""Deletion and insertion: by hand, and that every method beats a random order."""

import itertools

import pytest
import torch

from imgfast.data import normalise, split
from imgfast.engine import load_checkpoint, predict_probabilities
from imgfast.engine.attribution import grad_cam, integrated_gradients, occlusion
from imgfast.engine.faithfulness import (
    STEPS,
    blur,
    faithfulness,
    pixel_order,
    random_baseline,
)


@pytest.fixture(scope="module")
def model(run):
    return load_checkpoint(run.path).model


@pytest.fixture(scope="module")
def images(pictures):
    return split(pictures, seed=0)[1].images[:48]


@pytest.fixture(scope="module")
def target(model, images):
    return predict_probabilities(model, images).argmax(1)


def test_every_method_beats_a_random_order(model, images, target):
    random = random_baseline(model, images, target)
    maps = {
        "grad-cam": grad_cam(model, images, target),
        "integrated-gradients": integrated_gradients(model, images, target)[0],
        "occlusion": occlusion(model, images, target),
    }
    scores = {
        name: faithfulness(model, images, target, pixel_order(heat)) for name, heat in maps.items()
    }
    for name, score in scores.items():
        assert score.deletion.mean() < random.deletion.mean(), name
    # These two see single pixels and small patches; Grad-CAM's map is 7 x 7.
    for name in ("integrated-gradients", "occlusion"):
        assert scores[name].deletion.mean() < 0.75 * random.deletion.mean(), name
        assert scores[name].insertion.mean() > 1.1 * random.insertion.mean(), name
    # The opposite order is worse than chance.
    opposite = pixel_order(-maps["integrated-gradients"])
    assert faithfulness(model, images, target, opposite).deletion.mean() > random.deletion.mean()


def test_areas_by_hand(model, images, target):
    """One pixel after the other, in float64, against the batched curves."""
    order = pixel_order(torch.zeros(2, 28, 28), seed=5)
    found = faithfulness(model, images[:2], target[:2], order)
    network = type(model)(model.config, layers="stock").double().eval()
    network.load_state_dict(model.state_dict())
    x = normalise(images[:2], model.config.mean, model.config.std)
    for row in range(2):
        curves = ([], [])
        for start, end, curve in ((x, 0 * x, curves[0]), (blur(x), x, curves[1])):
            start, end = start[row].double().flatten(), end[row].double().flatten()
            for count in range(0, 785, 784 // STEPS):
                now = start.clone()
                now[order[row, :count]] = end[order[row, :count]]
                with torch.no_grad():
                    logits = network(now.view(1, 1, 28, 28))
                curve.append(logits.softmax(1)[0, target[row]].item())
        for area, curve in zip((found.deletion, found.insertion), curves, strict=True):
            assert len(curve) == STEPS + 1
            exact = sum(a + b for a, b in itertools.pairwise(curve)) / 2 / STEPS
            assert area[row].item() == pytest.approx(exact, abs=1e-4)


def test_the_hottest_pixels_come_first_and_ties_in_random_order():
    heat = torch.zeros(2, 6, 6)
    heat[0, 2, 3], heat[0, 5, 5], heat[0, 0, 0] = 3, 2, -1
    order = pixel_order(heat)
    assert order[0, :2].tolist() == [15, 35] and order[0, -1] == 0
    assert order.sort(1).values.tolist() == [list(range(36))] * 2
    assert torch.equal(order, pixel_order(heat))
    ties = order[1].tolist()
    assert ties != sorted(ties) and ties != order[0].tolist()
    assert not torch.equal(order, pixel_order(heat, seed=1))


def test_blur_keeps_flat_pictures_and_spreads_a_point():
    flat = torch.full((1, 2, 9, 9), 0.7)
    torch.testing.assert_close(blur(flat), flat)
    point = torch.zeros(1, 2, 33, 33)
    point[0, 1, 16, 16] = 1
    found = blur(point)
    assert found[0, 0].abs().max() == 0
    assert found[0, 1].sum().item() == pytest.approx(1, abs=1e-5)
    weights = torch.exp(-0.5 * (torch.arange(-9, 10, dtype=torch.float64) / (33 / 8)) ** 2)
    weights /= weights.sum()
    expected = torch.outer(weights, weights)
    torch.testing.assert_close(found[0, 1, 7:26, 7:26].double(), expected, rtol=1e-5, atol=1e-7)
    assert blur(torch.ones(1, 1, 2, 2)).tolist() == [[[[1, 1], [1, 1]]]]
