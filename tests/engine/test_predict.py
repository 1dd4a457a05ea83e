"""Predictions of files equal predictions of the same pictures in memory."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from imgfast.engine import load_checkpoint, predict_files, predict_probabilities
from imgfast.engine.abstention import Abstention
from imgfast.engine.predict import predict_features, predict_logits
from imgfast.models import Classifier, build_classifier


@pytest.fixture(scope="module")
def model(run):
    return load_checkpoint(run.path).model


def test_probabilities_are_the_softmax_in_float64(model, pictures):
    found = predict_probabilities(model, pictures.images[:300])  # more than one batch
    x = (pictures.images[:300].double() / 255 - 0.2860) / 0.3530
    stock = type(model)(model.config, layers="stock").double()
    stock.load_state_dict(model.state_dict())
    exact = stock(x).softmax(1)
    torch.testing.assert_close(found.double(), exact.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sum(1), torch.ones(300))
    assert predict_probabilities(model, pictures.images[:0]).shape == (0, 10)


def test_mirror_averages_the_logits_with_those_of_the_mirrored_picture(model, pictures):
    images = pictures.images[:300]
    both = predict_logits(model, images), predict_logits(model, images.flip(3))
    found = predict_logits(model, images, mirror=True)
    torch.testing.assert_close(found, (both[0] + both[1]) / 2, rtol=1e-5, atol=1e-5)
    assert (found - both[0]).abs().max() > 0.1
    of_mirrored = predict_logits(model, images.flip(3), mirror=True)
    torch.testing.assert_close(found, of_mirrored, rtol=1e-5, atol=1e-5)
    scaled = predict_probabilities(model, images, 2.0, mirror=True)
    torch.testing.assert_close(scaled, (found / 2).softmax(1), rtol=1e-5, atol=1e-6)


def test_features_are_what_the_last_layer_sees(model, pictures):
    images = pictures.images[:300]  # more than one batch
    features = predict_features(model, images)
    stock = type(model)(model.config, layers="stock").double()
    stock.load_state_dict(model.state_dict())
    exact = stock.stages((images.double() / 255 - 0.2860) / 0.3530).flatten(1).detach()
    torch.testing.assert_close(features.double(), exact, rtol=1e-4, atol=1e-5)
    logits = model.head(features).detach()
    torch.testing.assert_close(logits, predict_logits(model, images), rtol=1e-5, atol=1e-5)
    assert predict_features(model, images[:0]).shape == (0, 1152)
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, 1, 28, 28\], got float32"):
        predict_features(model, images.float())


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg"])
def test_files_give_what_memory_gives(tmp_path, model, pictures, suffix):
    count = 24
    for index in range(count):
        image = Image.fromarray(pictures.images[index, 0].numpy())
        image.save(
            tmp_path / f"{index:02}.{suffix}", **({"quality": 100} if suffix == "jpg" else {})
        )
    found, errors, named = predict_files(model, [tmp_path])
    assert not errors and not named
    assert [item.path for item in found] == sorted(str(file) for file in tmp_path.iterdir())
    best = predict_probabilities(model, pictures.images[:count]).max(1)
    close = 0.02 if suffix == "jpg" else 1e-6
    assert [item.label for item in found] == [model.config.classes[i] for i in best.indices]
    assert np.allclose([item.probability for item in found], best.values, atol=close)


def test_bad_files_are_errors_of_their_own_and_named_ones_are_told_apart(tmp_path, model, pictures):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(pictures.images[0, 0].numpy()).save(folder / name)
    (folder / "bad.png").write_bytes(b"bad")
    named = tmp_path / "named.png"
    named.write_bytes(b"bad too")
    found, errors, bad_named = predict_files(model, [named, folder])
    assert [item.path for item in found] == [str(folder / "a.png"), str(folder / "b.png")]
    assert [error.path for error in errors] == [str(named), str(folder / "bad.png")]
    assert bad_named == {str(named)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Twelve pictures as files."""
    root = tmp_path_factory.mktemp("twelve")
    for index in range(12):
        Image.fromarray(pictures.images[index, 0].numpy()).save(root / f"{index:02}.png")
    return root


def test_the_most_probable_classes_come_best_first(model, pictures, folder):
    found = predict_files(model, [folder], top_k=3)[0]
    best = predict_probabilities(model, pictures.images[:12]).topk(3)
    for item, indices, values in zip(found, best.indices, best.values, strict=True):
        assert [guess.label for guess in item.top] == [model.config.classes[i] for i in indices]
        assert [guess.probability for guess in item.top] == pytest.approx(values.tolist(), abs=1e-6)
        assert (item.label, item.probability) == (item.top[0].label, item.top[0].probability)
        assert not item.abstained
    assert len(predict_files(model, [folder], top_k=10)[0][0].top) == 10
    for wrong in (0, 11):
        with pytest.raises(ValueError, match=f"top_k must be 1 to 10, got {wrong}"):
            predict_files(model, [folder], top_k=wrong)


def test_below_the_threshold_there_is_no_label(model, pictures, folder):
    plain = predict_probabilities(model, pictures.images[:12])
    scaled = (plain.double().log() / 1.7).softmax(1).amax(1)  # a constant in the logits is nothing
    threshold = scaled.sort().values[4:6].mean().item()
    abstention = Abstention(1.7, threshold, 0.9, 0.5, 100)
    found = predict_files(model, [folder], top_k=2, abstention=abstention)[0]
    assert sum(item.abstained for item in found) == 5
    for item, certainty, index in zip(found, scaled, plain.argmax(1), strict=True):
        assert item.probability == pytest.approx(certainty.item(), abs=1e-6)
        assert item.abstained == (certainty.item() < threshold)
        name = model.config.classes[index]
        assert item.label == (None if item.abstained else name) and item.top[0].label == name


def test_files_in_the_mirror_need_an_abstention_made_so(model, pictures, folder):
    expected = predict_probabilities(model, pictures.images[:12], 1.7, mirror=True).amax(1)
    abstention = Abstention(1.7, 0.0, 0.9, 1.0, 100, mirror=True)
    found = predict_files(model, [folder], abstention=abstention, mirror=True)[0]
    assert [item.probability for item in found] == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(ValueError, match=r"mirror must be as .* calibrated, True, got False"):
        predict_files(model, [folder], abstention=abstention)
    plain = Abstention(1.7, 0.0, 0.9, 1.0, 100)
    with pytest.raises(ValueError, match=r"mirror must be as .* calibrated, False, got True"):
        predict_files(model, [folder], abstention=plain, mirror=True)


def test_batch_norm_is_folded_once(model, folder, monkeypatch):
    config = dataclasses.replace(model.config, widths=(8, 8), convolutions=2, norm="batch")
    normed = build_classifier(config, seed=3)
    for module in normed.modules():  # statistics as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.bias.data.uniform_(-1, 1)
    expected = predict_probabilities(normed, _pixels(folder)).amax(1).tolist()
    before = copy.deepcopy(normed.state_dict())
    ran, folds, forward, fold = [], [], Classifier.forward, Classifier.fold

    def counted_forward(self, x):
        ran.append((self.config.norm, torch.is_inference_mode_enabled()))
        return forward(self, x)

    monkeypatch.setattr(Classifier, "forward", counted_forward)
    monkeypatch.setattr(Classifier, "fold", lambda self: folds.append(self) or fold(self))
    found = predict_files(normed, [folder])[0]
    assert set(ran) == {("none", True)} and len(folds) == 1
    assert [item.probability for item in found] == pytest.approx(expected, abs=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in normed.state_dict().items())


def _pixels(folder):
    """uint8 [N, 1, 28, 28] of the files of a folder."""
    files = sorted(folder.iterdir())
    return torch.stack(
        [torch.from_numpy(np.asarray(Image.open(file))[None].copy()) for file in files]
    )


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 28, 28),
        torch.zeros(2, 1, 28, 28, dtype=torch.int64),
        torch.zeros(1, 28, 28, dtype=torch.uint8),
        torch.zeros(28, dtype=torch.uint8),
        torch.zeros((), dtype=torch.uint8),
        torch.zeros(2, 3, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 1, 0, 28, dtype=torch.uint8),
        torch.full((1, 1, 28, 28), float("nan")),
    ],
    ids=lambda images: f"{images.dtype} {list(images.shape)}",
)
def test_other_dtypes_and_shapes_are_refused(model, images):
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, 1, 28, 28\], got ") as caught:
        predict_probabilities(model, images)
    assert str(caught.value).endswith(str(list(images.shape)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_outputs_that_are_not_finite_are_refused(model, pictures, value):
    broken = copy.deepcopy(model)
    broken.head.bias.data[3] = value
    with pytest.raises(ValueError, match="outputs must be finite"):
        predict_probabilities(broken, pictures.images[:3])


def test_probabilities_are_an_ordinary_tensor(model, pictures):
    found = predict_probabilities(model, pictures.images[:2])
    assert not found.is_inference() and not found.requires_grad
    found.mul_(2)  # would fail on a tensor of inference mode
