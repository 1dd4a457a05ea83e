"""Attacks stay within their bounds, do harm, are reproducible, and leave the model alone."""

import json

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from imgfast.data import split
from imgfast.engine import evaluate, load_checkpoint
from imgfast.engine.attack import METHODS, adversarial, attack_curve, save_plot

EPS = 8 / 255


@pytest.fixture(scope="module")
def model(run):
    return load_checkpoint(run.path).model


@pytest.fixture(scope="module")
def unseen(pictures):
    """64 pictures that the model was not trained on."""
    return split(pictures, seed=0)[1].subset(torch.arange(64))


@pytest.fixture(scope="module")
def pixels(unseen):
    return unseen.images.float() / 255


def exact_losses(model, x, labels):
    """By the stock layers in float64."""
    stock = type(model)(model.config, layers="stock").double()
    stock.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = stock.eval()((x.double() - model.config.mean[0]) / model.config.std[0])
    return cross_entropy(logits, labels, reduction="none")


def test_an_attack_of_size_0_is_the_clean_accuracy(model, unseen):
    clean = evaluate(model, unseen).accuracy
    for method in METHODS:
        assert attack_curve(model, unseen, method, eps=(0,)).accuracy == (clean,)


@pytest.mark.parametrize("eps", [1 / 255, EPS, 1])
@pytest.mark.parametrize("method", METHODS)
def test_pictures_stay_in_the_ball_and_in_range(model, unseen, pixels, method, eps):
    found = adversarial(model, pixels, unseen.labels, eps, method, steps=3)
    assert found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 1
    moved = (found.double() - pixels.double()).abs()
    assert moved.max() <= eps + 1e-7
    assert moved.max() > 0.99 * eps  # and the room is used


def test_fgsm_is_its_formula_in_float64(model, unseen, pixels):
    x = pixels.double().requires_grad_(True)
    stock = type(model)(model.config, layers="stock").double()
    stock.load_state_dict(model.state_dict())
    logits = stock((x - model.config.mean[0]) / model.config.std[0])
    (gradient,) = torch.autograd.grad(cross_entropy(logits, unseen.labels), x)
    expected = (x.detach() + EPS * gradient.sign()).clamp(0, 1)
    found = adversarial(model, pixels, unseen.labels, EPS)
    close = (found - expected).abs() < 1e-6
    assert close[pixels > 0].float().mean() > 0.999
    # In plain black areas rounding decides which of equal values is the maximum.
    assert close.float().mean() > 0.97


def test_losses_rise_and_accuracy_falls(model, unseen, pixels):
    clean = exact_losses(model, pixels, unseen.labels)
    weak, strong = (
        exact_losses(model, adversarial(model, pixels, unseen.labels, EPS, method), unseen.labels)
        for method in METHODS
    )
    assert (weak > clean).float().mean() > 0.9
    assert (strong > clean).float().mean() > 0.95
    assert strong.mean() >= weak.mean()
    sizes = (0, EPS, 2 * EPS)
    fgsm, pgd = (attack_curve(model, unseen, method, sizes) for method in METHODS)
    for curve in (fgsm, pgd):
        assert curve.accuracy[2] < curve.accuracy[0] - 0.1
    # Each size within one picture: a step along the gradient may be luckier than ten.
    for one, many in zip(fgsm.accuracy, pgd.accuracy, strict=True):
        assert many <= one + 1.5 / len(unseen)


def test_the_same_seed_gives_the_same_curve(model, unseen, pixels):
    curves = [attack_curve(model, unseen, "pgd", (0, EPS), 2, seed) for seed in (5, 5)]
    assert curves[0] == curves[1]
    first, same, other = (
        adversarial(model, pixels, unseen.labels, EPS, "pgd", 2, seed) for seed in (5, 5, 6)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    # A point does not depend on the sizes beside it, nor on random numbers drawn elsewhere.
    torch.rand(7)
    alone = attack_curve(model, unseen, "pgd", (EPS,), 2, seed=5)
    assert alone.accuracy == curves[0].accuracy[1:]


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(run, unseen, training):
    model = load_checkpoint(run.path).model.train(training)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.head.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attack_curve(model, unseen, "pgd", (EPS,), steps=2)
    assert model.training == training and model.stages.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name != "head.bias")
        assert parameter.grad is None or name == "head.weight"


def test_it_works_where_gradients_are_off_and_a_large_set_is_thinned(model, pictures):
    seen = []
    with torch.no_grad():
        curve = attack_curve(
            model, pictures, eps=(0, EPS), max_pictures=300, on_picture=lambda *n: seen.append(n)
        )
    assert (curve.pictures, curve.steps) == (300, 1)
    assert seen == [(256, 600), (300, 600), (556, 600), (600, 600)]
    assert curve.accuracy[1] < curve.accuracy[0]


def test_the_curve_as_json_and_as_a_picture(tmp_path, model, unseen):
    curves = [attack_curve(model, unseen, method, (0, EPS), 2) for method in METHODS]
    told = json.loads(json.dumps(curves[1].to_dict()))
    assert (told["method"], told["eps"], told["steps"]) == ("pgd", [0, EPS], 2)
    assert told["accuracy"] == list(curves[1].accuracy) and told["pictures"] == 64
    save_plot(tmp_path / "attack.png", curves)
    with Image.open(tmp_path / "attack.png") as image:
        image.load()
        assert image.format == "PNG" and len(image.convert("L").getcolors()) > 2
    assert [file.name for file in tmp_path.iterdir()] == ["attack.png"]


def test_values_outside_their_range_are_refused(model, unseen, pixels):
    labels = unseen.labels
    for call, words in (
        (lambda: attack_curve(model, unseen, "cw"), "method must be one of fgsm, pgd, got 'cw'"),
        (lambda: attack_curve(model, unseen, eps=(0, 8)), r"eps must lie in \[0, 1\], got 8"),
        (lambda: attack_curve(model, unseen, eps=(float("nan"),)), "eps must lie in"),
        (lambda: attack_curve(model, unseen, "pgd", steps=0), "steps must be at least 1, got 0"),
        (lambda: attack_curve(model, unseen.subset(torch.arange(0))), "at least 1 picture, got 0"),
        (lambda: adversarial(model, pixels * 255, labels, EPS), "divide by 255"),
        (lambda: adversarial(model, pixels.double(), labels, EPS), "float64"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
