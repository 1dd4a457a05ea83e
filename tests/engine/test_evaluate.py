"""Scores against values worked out by hand, and that only unseen pictures are judged."""

import dataclasses

import pytest
import torch
from PIL import Image

from imgfast.data import DataError, load_folder, split
from imgfast.engine import evaluate, evaluate_checkpoint, load_checkpoint, save_checkpoint
from imgfast.engine.evaluate import score


def test_scores_by_hand():
    #            true:     cat cat cat dog dog cow
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 0, 1])
    found = score(predicted, labels, ("cat", "dog", "cow", "emu"))
    assert found.confusion == ((2, 1, 0, 0), (1, 1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0))
    assert found.accuracy == 3 / 6
    cat, dog, cow, emu = found.classes
    assert (cat.precision, cat.recall) == pytest.approx((2 / 3, 2 / 3))
    assert (dog.precision, dog.recall, dog.f1) == pytest.approx((1 / 3, 1 / 2, 0.4))
    assert (cow.precision, cow.recall, cow.f1, cow.pictures) == (0, 0, 0, 1)
    assert (emu.precision, emu.recall, emu.f1, emu.pictures) == (0, 0, 0, 0)
    # The emu has no pictures and does not count.
    assert found.macro_recall == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found.macro_precision == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 5 + 0) / 3)


def test_no_pictures_have_no_score():
    none = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one picture, got none"):
        score(none, none, ("a", "b"))


def test_a_checkpoint_scores_what_its_training_reported(result, run, pictures):
    loaded = load_checkpoint(run.path)
    held_out = split(pictures, seed=0)[1]
    assert evaluate(loaded.model, held_out) == result.evaluation
    assert loaded.training["accuracy"] == result.evaluation.accuracy


def write_folder(root, data):
    """A set as a folder of PNG files."""
    for index, label in enumerate(data.labels.tolist()):
        folder = root / data.classes[label].replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[index, 0].numpy()).save(folder / f"{index}.png")
    return root


def test_of_the_training_folder_only_the_held_out_part_is_judged(tmp_path, result, pictures):
    few = pictures.subset(torch.arange(200))
    data = load_folder(write_folder(tmp_path / "pictures", few), size=28)
    training = {"data": data.name, "seed": 3, "fingerprint": data.fingerprint()}
    model = result.model
    config = dataclasses.replace(model.config, classes=data.classes)
    model = type(model)(config)
    save_checkpoint(tmp_path / "m.safetensors", model, training)
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    held_out = split(data, seed=3)[1]
    for name in (None, data.name):
        evaluation, judged = evaluate_checkpoint(loaded, name)
        assert sorted(judged.digests()) == sorted(held_out.digests())
        assert evaluation.pictures == len(held_out)

    # Another folder: everything. The same folder after a change: no longer known what is new.
    other = write_folder(tmp_path / "other", few.subset(torch.arange(50)))
    assert evaluate_checkpoint(loaded, str(other))[0].pictures == 50
    next((tmp_path / "pictures" / "Coat").iterdir()).unlink()
    with pytest.raises(DataError, match="has changed since"):
        evaluate_checkpoint(loaded)


def test_a_picture_moved_from_train_to_test_is_noticed(tmp_path, result, pictures):
    root = tmp_path / "pictures"
    write_folder(root / "train", pictures.subset(torch.arange(100)))
    write_folder(root / "test", pictures.subset(torch.arange(100, 150)))
    data = load_folder(root, size=28)
    training = {"data": data.name, "seed": 0, "fingerprint": data.fingerprint()}
    model = type(result.model)(dataclasses.replace(result.model.config, classes=data.classes))
    save_checkpoint(tmp_path / "m.safetensors", model, training)
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    assert evaluate_checkpoint(loaded)[0].pictures == 50
    moved = next((root / "train" / "Bag").iterdir())
    moved.rename(root / "test" / "Bag" / moved.name)
    for name in (None, str(root)):
        with pytest.raises(DataError, match="has changed since"):
            evaluate_checkpoint(loaded, name)


def test_pictures_the_model_was_trained_on_are_refused(tmp_path, result):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, result.model, {"data": "fashion-mnist-full", "seed": 0})
    with pytest.raises(DataError, match="is part of what"):
        evaluate_checkpoint(load_checkpoint(path), "fashion-mnist")


def test_other_classes_are_refused(tmp_path, result):
    config = dataclasses.replace(result.model.config, classes=("a", "b"))
    save_checkpoint(tmp_path / "m.safetensors", type(result.model)(config), {})
    with pytest.raises(DataError, match="pictures and classes must be the model's"):
        evaluate_checkpoint(load_checkpoint(tmp_path / "m.safetensors"), "fashion-mnist")
    with pytest.raises(DataError, match="give --data"):
        evaluate_checkpoint(load_checkpoint(tmp_path / "m.safetensors"))
