"""The temperature is the best one, the threshold the smallest, and both belong to one file."""

import dataclasses
import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from imgfast.data import split
from imgfast.engine import load_checkpoint, predict_probabilities, save_checkpoint
from imgfast.engine.abstention import (
    Abstention,
    AbstentionError,
    calibrate,
    load_abstention,
    ood_auroc,
    save_abstention,
)
from imgfast.engine.predict import predict_logits


@pytest.fixture(scope="module")
def model(run):
    return load_checkpoint(run.path).model


@pytest.fixture(scope="module")
def held_out(pictures):
    return split(pictures, seed=0)[1]


@pytest.fixture(scope="module")
def found(model, held_out):
    return calibrate(model, held_out, accuracy=0.9)


def test_the_temperature_is_that_of_a_fine_search_in_float64(model, held_out, found):
    logits = predict_logits(model, held_out.images).double()
    candidates = torch.logspace(-1, 1, 2001, dtype=torch.float64)
    losses = torch.stack([cross_entropy(logits / t, held_out.labels) for t in candidates])
    assert found.temperature == pytest.approx(candidates[losses.argmin()].item(), rel=2e-3)
    # It changes the probabilities and not the classes.
    plain = predict_probabilities(model, held_out.images)
    scaled = predict_probabilities(model, held_out.images, found.temperature)
    assert torch.equal(plain.argmax(1), scaled.argmax(1))
    exact = (logits / found.temperature).softmax(1)
    torch.testing.assert_close(scaled.double(), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("accuracy", [0.8, 0.9, 0.95])
def test_the_threshold_is_the_smallest_that_reaches_the_accuracy(model, held_out, accuracy):
    found = calibrate(model, held_out, accuracy)
    best = predict_probabilities(model, held_out.images, found.temperature).max(1)
    right = best.indices == held_out.labels

    def kept_accuracy(threshold):
        return right[best.values >= threshold].double().mean().item()

    kept = best.values >= found.threshold
    assert found.accuracy == kept_accuracy(found.threshold) >= accuracy
    assert found.coverage == kept.double().mean().item() and 0 < found.coverage < 1
    # Every smaller threshold, one at each certainty that is refused, lets in too many mistakes.
    assert all(kept_accuracy(t) < accuracy for t in best.values[~kept].tolist())
    # Neither neighbour is so near that rounding could move it across.
    assert (best.values.double() - found.threshold).abs().min() > 1e-7


def test_the_mirror_image_counts_where_asked(model, held_out, found):
    mirrored = calibrate(model, held_out, 0.9, mirror=True)
    assert mirrored.mirror and not found.mirror and mirrored.threshold != found.threshold
    best = predict_probabilities(model, held_out.images, mirrored.temperature, mirror=True).max(1)
    kept = best.values >= mirrored.threshold
    right = (best.indices == held_out.labels)[kept].double().mean().item()
    assert right == mirrored.accuracy >= 0.9


def test_by_hand(model, monkeypatch, held_out):
    """Certainty falls from picture to picture; the third one and the last are mistakes."""
    scores = torch.tensor([4.0, 3.0, 2.0, 2.0, 1.5, 1.0])
    logits = torch.stack([scores, torch.zeros(6)], 1)
    monkeypatch.setattr("imgfast.engine.abstention.predict_logits", lambda *_: logits)
    monkeypatch.setattr("imgfast.engine.abstention._fit_temperature", lambda *_: 1.0)
    six = dataclasses.replace(
        held_out.subset(torch.arange(6)), labels=torch.tensor([0, 0, 1, 0, 0, 1])
    )
    p = torch.sigmoid(scores.double()).tolist()
    for wanted, kept, accuracy in ((1, 2, 1.0), (0.8, 5, 0.8), (0.75, 5, 0.8), (0.5, 6, 4 / 6)):
        # 3 of 4 would do for 0.75, but 4 of 5 keeps more; the two of equal certainty go together.
        found = calibrate(model, six, wanted)
        assert (found.coverage, found.accuracy) == (kept / 6, accuracy)
        middle = (p[kept - 1] + p[min(kept, 5)]) / 2
        assert found.threshold == pytest.approx(middle, abs=1e-6)
    wrong = dataclasses.replace(six, labels=torch.ones(6, dtype=torch.int64))
    with pytest.raises(AbstentionError, match=r"no threshold reaches .* 90.00% .* best .* 0.00%"):
        calibrate(model, wrong, 0.9)


def test_a_perfect_set_has_a_bounded_temperature_and_all_are_kept(model, held_out):
    predicted = predict_probabilities(model, held_out.images).argmax(1)
    found = calibrate(model, dataclasses.replace(held_out, labels=predicted))
    assert 0.05 <= found.temperature < 1
    assert (found.accuracy, found.coverage, found.pictures) == (1, 1, len(held_out))


def test_what_cannot_be_calibrated_is_refused(model, held_out):
    for accuracy in (0, 1.1, float("nan")):
        with pytest.raises(AbstentionError, match=r"accuracy must lie in \(0, 1\]"):
            calibrate(model, held_out, accuracy)
    with pytest.raises(AbstentionError, match="at least 1 held-out picture"):
        calibrate(model, held_out.subset(torch.arange(0)))


def test_it_comes_back_from_its_file(tmp_path, model, found):
    save_checkpoint(tmp_path / "last.safetensors", model, {})
    stored = save_abstention(tmp_path, found)
    assert stored == tmp_path / "abstention.json"
    for path in (tmp_path, tmp_path / "last.safetensors"):
        assert load_abstention(path) == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["abstention.json", "last.safetensors"]


def test_another_checkpoint_and_damaged_files_are_refused(tmp_path, model, found):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, model, {})
    with pytest.raises(AbstentionError, match=r"imgfast evaluate .* --abstain"):
        load_abstention(tmp_path)
    stored = save_abstention(path, found)
    values = json.loads(stored.read_text())
    inner = values["abstention"]
    for content in (
        b"",
        b"\xff\xfe",
        b"[" * 50_000,
        b" " * 70_000 + b"{}",
        b"[]",
        json.dumps({**values, "format": "imgfast-abstention-2"}).encode(),
        json.dumps({**values, "abstention": {**inner, "threshold": "0.5"}}).encode(),
        json.dumps({**values, "abstention": {**inner, "threshold": float("nan")}}).encode(),
        json.dumps({**values, "abstention": {**inner, "temperature": 0}}).encode(),
        json.dumps({**values, "abstention": {**inner, "pictures": True}}).encode(),
        json.dumps({**values, "abstention": {**inner, "mirror": 1}}).encode(),
        json.dumps({**values, "abstention": {**inner, "more": 1}}).encode(),
        json.dumps({**values, "abstention": None}).encode(),
    ):
        stored.write_bytes(content)
        with pytest.raises(AbstentionError, match=r"is not valid: .*--abstain`$") as caught:
            load_abstention(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    save_abstention(path, found)
    save_checkpoint(path, model, {"epoch": 1})
    with pytest.raises(AbstentionError, match="made for other bytes; run `imgfast evaluate"):
        load_abstention(path)
    path.unlink()
    with pytest.raises(AbstentionError, match="cannot be read"):
        load_abstention(path)


def test_from_dict_is_to_dict_backwards(found):
    assert Abstention.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_foreign_pictures_are_less_certain(model, held_out):
    dice = torch.Generator().manual_seed(0)
    shape = held_out.images.shape
    foreign = {
        "noise": torch.randint(0, 256, shape, generator=dice, dtype=torch.uint8),
        "dark noise": torch.randint(0, 64, shape, generator=dice, dtype=torch.uint8),
        "upside down": held_out.images.flip(2),
    }
    for name, images in foreign.items():
        assert ood_auroc(model, held_out.images, images) > 0.6, name


def test_auroc_counts_pairs(model, held_out):
    inside, outside = held_out.images[:40], held_out.images[40:70].flip(2)
    a, b = (predict_probabilities(model, x, 2.0).amax(1) for x in (inside, outside))
    wins = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    assert ood_auroc(model, inside, outside, 2.0) == pytest.approx(wins.mean().item(), abs=1e-6)
    assert ood_auroc(model, inside, inside) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="pictures on both sides, got 40 and 0"):
        ood_auroc(model, inside, outside[:0])
