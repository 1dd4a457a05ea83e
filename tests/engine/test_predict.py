"""Predictions of files equal predictions of the same pictures in memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from imgfast.engine import load_checkpoint, predict_files, predict_probabilities


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
