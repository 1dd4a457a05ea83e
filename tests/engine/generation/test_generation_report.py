"""Generators whose quality is known: copies, real pictures, class means, noise."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from imgfast.data import load_data
from imgfast.engine import load_checkpoint, predict_probabilities
from imgfast.engine.generation.report import no_nearer, report_generator
from imgfast.engine.generation.report_files import save_report
from imgfast.models import GUIDANCE, build_classifier

STEP = 32  # of the codes below, which are pixels in 8 steps


class Known(torch.nn.Module):
    """A generator that makes what a function of label, seed and guidance says."""

    def __init__(self, data, make):
        super().__init__()
        self.config = SimpleNamespace(classes=data.classes, channels=1, image_size=28, codes=12)
        self.make, self.calls, self.temperatures = make, [], []

    def encode(self, images):
        return (images[:, 0] // STEP).long()

    def decode(self, codes):
        return (codes * STEP + STEP // 2).to(torch.uint8)[:, None]

    def generate(self, labels, seeds, guidance=GUIDANCE, temperature=None):
        wanted = list(zip(labels.tolist(), seeds, strict=True))
        self.calls += [(label, seed, guidance) for label, seed in wanted]
        self.temperatures.append(temperature)
        return torch.stack([self.make(label, seed, guidance) for label, seed in wanted])


def in_classes(data):
    return [data.images[data.labels == label] for label in range(len(data.classes))]


@pytest.fixture(scope="module")
def judge(run):
    """Trained on the first 1,000 pictures, and on none of those below."""
    return load_checkpoint(run.path).model


@pytest.fixture(scope="module")
def held_out():
    return load_data("fashion-mnist").subset(torch.arange(1000, 2000))


@pytest.fixture(scope="module")
def training():
    return load_data("fashion-mnist").subset(torch.arange(2000, 3200))


@pytest.fixture(scope="module")
def fresh():
    """Pictures that nothing else has seen, class after class."""
    return in_classes(load_data("fashion-mnist").subset(torch.arange(3500, 4500)))


@pytest.fixture(scope="module")
def means(training):
    return [images.double().mean(0).round().to(torch.uint8) for images in in_classes(training)]


@pytest.fixture(scope="module")
def real_or_means(training, fresh, means):
    """Unguided real pictures, guided class means."""

    def make(label, seed, guidance):
        return means[label] if guidance == GUIDANCE else fresh[label][seed % len(fresh[label])]

    return Known(training, make)


@pytest.fixture(scope="module")
def copies_or_noise(training):
    """Unguided training pictures through the codes, guided noise."""
    known = in_classes(training)

    def make(label, seed, guidance):
        if guidance == GUIDANCE:
            dice = torch.Generator().manual_seed(seed)
            return torch.randint(0, 256, (1, 28, 28), generator=dice, dtype=torch.uint8)
        return known[label][seed % len(known[label])] // STEP * STEP + STEP // 2

    return Known(training, make)


@pytest.fixture(scope="module")
def found(real_or_means, judge, held_out, training):
    return report_generator(real_or_means, judge, held_out, training, per_class=40)


@pytest.fixture(scope="module")
def bad(copies_or_noise, judge, held_out, training):
    return report_generator(copies_or_noise, judge, held_out, training, per_class=40)


def test_real_pictures_are_at_the_floor(found):
    real, floor = found.generated[0], found.real
    assert real.guidance == 1.0 and floor.guidance is None
    assert real.frechet == pytest.approx(floor.frechet, rel=0.15)
    assert abs(real.kernel) < 3 * real.kernel_error
    assert abs(floor.kernel) < 3 * floor.kernel_error
    for one in (real, floor):
        assert one.frechet_share < 0.05
        assert one.agreement == pytest.approx(found.judge_accuracy, abs=0.05)
        low, high = one.agreement_interval
        assert low < one.agreement < high and high - low < 0.1
        assert min(one.precision, one.recall) > 0.7 and one.coverage > 0.9
        assert one.density == pytest.approx(1, abs=0.15)
        assert one.within_class == pytest.approx(1, abs=0.05)
    assert real.not_copying and real.novelty > 0.9


def test_class_means_are_the_ceiling(found):
    means = found.generated[1]
    assert means.guidance == GUIDANCE
    same = ("frechet", "kernel", "agreement", "precision", "coverage", "class_agreement")
    for name in same:
        assert getattr(means, name) == pytest.approx(getattr(found.class_means, name), abs=1e-9)
    assert means.frechet_share == pytest.approx(1, abs=1e-12) and means.agreement > 0.6
    assert means.kernel > 10 * means.kernel_error
    assert means.coverage < 0.1 and means.recall < 0.01 and means.within_class == 0


def test_noise_is_told_from_pictures(bad):
    for noise in (bad.noise, bad.generated[1]):
        assert noise.agreement == pytest.approx(0.1, abs=0.05)
        assert noise.frechet_share > 1 and noise.kernel > 10 * noise.kernel_error
        assert noise.precision < 0.05 and noise.recall < 0.05 and noise.coverage < 0.05
        assert noise.within_class > 1.2
    assert bad.generated[1].not_copying and bad.generated[1].novelty > 1


def test_copies_are_caught(bad):
    copies = bad.generated[0]
    # Nothing else gives them away.
    assert copies.frechet < 1.2 * bad.reconstructed.frechet
    assert copies.coverage > 0.9 * bad.reconstructed.coverage
    assert copies.not_copying is False and copies.novelty == pytest.approx(0, abs=0.05)
    assert copies.nearest == pytest.approx(bad.copy_nearest, rel=0.05)
    assert copies.nearest < 0.5 * bad.reconstructed.nearest < 0.6 * bad.real.nearest
    assert copies.nearest_low < copies.nearest


def test_figures_by_other_means(judge, held_out, training, real_or_means, monkeypatch):
    """On the pictures that were compared: agreement, PSNR, distance in a class, use of codes."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    seen = []
    monkeypatch.setattr(real_or_means, "encode", lambda x: seen.append(x) or (x[:, 0] // 32).long())
    found = report_generator(real_or_means, judge, held_out, training, (1.0,), per_class=20)
    other = seen[0]  # the real half that is reconstructed
    labels = torch.arange(10).repeat_interleave(20)
    digests = {image.numpy().tobytes() for image in held_out.images}
    assert all(image.numpy().tobytes() in digests for image in other)
    for images, quality in ((other, found.real), (other // 32 * 32 + 16, found.reconstructed)):
        right = (predict_probabilities(judge, images).argmax(1) == labels).double()
        assert quality.agreement == pytest.approx(right.mean().item())
        assert quality.class_agreement == pytest.approx(right.view(10, 20).mean(1).tolist())
        assert quality.kind == ("real" if images is other else "reconstructed")
        pool = training.images.flatten(1).double()
        away = torch.cdist(images.flatten(1).double(), pool).min(1).values / 28 / 255
        assert quality.nearest == pytest.approx(away.median().item(), rel=1e-6)
        assert quality.nearest_low == pytest.approx(away.quantile(0.05).item(), rel=1e-6)

    def spread(images):
        rows = images.view(10, 20, -1).double()
        return torch.cdist(rows, rows).sum() / (10 * 20 * 19)

    rebuilt = other // 32 * 32 + 16
    ratio = (spread(rebuilt) / spread(other)).item()
    assert found.reconstructed.within_class / found.real.within_class == pytest.approx(ratio)
    psnr = peak_signal_noise_ratio(rebuilt.double(), other.double(), data_range=255.0)
    assert found.reconstruction_psnr == pytest.approx(psnr.item(), abs=1e-4)
    counts = np.unique((other // 32).numpy(), return_counts=True)[1]
    shares = counts / counts.sum()
    assert (found.codes, found.codes_used) == (12, len(counts))
    assert found.code_perplexity == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert found.features == 128  # one for each filter of the last stage


def test_both_guidances_get_the_same_seeds_of_each_class(judge, held_out, training, fresh):
    steps = []
    model = Known(training, lambda label, seed, _: fresh[label][seed % len(fresh[label])])
    arguments = (model, judge, held_out, training, (1.0, 3.5), 7, 2)
    first = report_generator(*arguments, on_picture=lambda *step: steps.append(step))
    assert [call[2] for call in model.calls] == [1.0] * 70 + [3.5] * 70
    unguided, guided = ([call[:2] for call in model.calls[start:][:70]] for start in (0, 70))
    assert unguided == guided == [(i // 7, 2 * 70 + i) for i in range(70)]
    assert model.temperatures == [0.9] * 2 + [1.0] * 2  # 64 pictures at a time
    assert steps[-1] == (700, 700) and steps == sorted(steps)
    # Of each class the two that are nearest to a training picture are shown.
    for label, distances in enumerate(first.pictures.distances):
        made = torch.stack([model.make(*call) for call in model.calls[:70] if call[0] == label])
        pixels = (images.flatten(1).double() / 255 for images in (made, training.images))
        away = torch.cdist(*pixels).sort(1).values[:, :3] / 28
        order = away[:, 0].argsort()[:2]
        torch.testing.assert_close(distances, away[order], rtol=1e-6, atol=0)
        assert torch.equal(first.pictures.closest[label], made[order])
    assert report_generator(*arguments).to_dict() == first.to_dict()
    other = report_generator(*arguments[:-1], 3)
    assert other.per_class == first.per_class == 7
    assert other.real.frechet != first.real.frechet
    assert other.generated[0].frechet != first.generated[0].frechet


def test_perfect_codes_have_a_bounded_psnr(judge, held_out, training, means, monkeypatch):
    model = Known(training, lambda label, *_: means[label])
    monkeypatch.setattr(model, "encode", lambda x: x[:, 0].long())
    monkeypatch.setattr(model, "decode", lambda codes: codes.to(torch.uint8)[:, None])
    found = report_generator(model, judge, held_out, training, (1.0,), per_class=4)
    assert found.reconstruction_psnr == pytest.approx(10 * math.log10(255**2 * 12))
    assert found.copy_nearest == 0
    assert found.reconstructed.frechet == found.real.frechet
    json.dumps(found.to_dict(), allow_nan=False)


def test_codes_that_keep_nothing_have_no_scale_of_novelty(judge, held_out, training, monkeypatch):
    grey = torch.full((1, 28, 28), 60, dtype=torch.uint8)
    model = Known(training, lambda *_: grey)
    monkeypatch.setattr(model, "decode", lambda codes: grey.expand(len(codes), 1, 28, 28))
    found = report_generator(model, judge, held_out, training, (1.0,), per_class=4)
    assert found.copy_nearest == found.reconstructed.nearest == found.generated[0].nearest
    assert found.generated[0].novelty is None and found.generated[0].within_class == 0


def test_chance_alone_is_rarely_called_copying():
    dice = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 2, 100, dtype=torch.float64, generator=dice)
    alarms = sum(not no_nearer(a, b) for a, b in draws)
    assert 0.01 < alarms / 2000 < 0.04
    assert not any(no_nearer(a - 0.4, b) for a, b in draws[:100])
    assert all(no_nearer(a + 0.4, b) for a, b in draws[:100])


def test_sets_are_no_larger_than_the_data_and_the_memory_allow(
    judge, held_out, training, means, monkeypatch
):
    model = Known(training, lambda label, *_: means[label])
    few = held_out.subset(torch.arange(300))
    found = report_generator(model, judge, few, training, (1.0,), per_class=10_000)
    assert found.per_class == int(torch.bincount(few.labels).min()) // 2
    for limit, size in (("_MAX_NUMBERS", 1152), ("_MAX_PIXELS", 784)):
        with monkeypatch.context() as patch:
            patch.setattr(f"imgfast.engine.generation.report.{limit}", size * 69)
            found = report_generator(model, judge, held_out, training, (1.0,))
            assert found.per_class == 6


def test_what_cannot_be_judged_is_refused(judge, held_out, training, means):
    model = Known(training, lambda label, *_: means[label])

    def refused(words, generator=model, judge=judge, held_out=held_out, guidances=(1.0,), **more):
        with pytest.raises(ValueError, match=words) as caught:
            report_generator(generator, judge, held_out, training, guidances, **more)
        assert "\n" not in str(caught.value)

    def judging(**changes):
        return build_classifier(dataclasses.replace(judge.config, **changes))

    names = ("a", *judge.config.classes[1:])
    colour = judging(channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    renamed = dataclasses.replace(held_out, classes=names)
    few = held_out.subset((held_out.labels != 3).nonzero().flatten())
    wrong = r"judge: classes must be the generator's, .*'T-shirt.*, got \('a', "
    refused(wrong, judge=judging(classes=names))
    refused(r"judge: channels must be the generator's, 1, got 3", judge=colour)
    wrong = r"judge: image_size must be the generator's, 28, got 32; train"
    refused(wrong, judge=judging(image_size=32))
    refused(r"judge: must have at most 8192 features .* got 25088", judge=judging(widths=(128,)))
    refused("each class must have at least 8 held-out pictures, 'Dress' has 0", held_out=few)
    refused("held-out pictures' classes must be", held_out=renamed)
    refused("per_class must be at least 4, got 3", per_class=3)
    refused(r"guidances must be 1 or more, got \[\]", guidances=())
    refused(r"guidances must be 1 or more.* got \[1.0, 1.0\]", guidances=(1.0, 1.0))


def test_files_say_what_the_report_says(tmp_path, found, real_or_means, fresh, training):
    folder = tmp_path / "report"
    save_report(folder, found, {"Checkpoint-SHA256": "ab" * 32})
    values = json.loads((folder / "generation.json").read_text())
    assert values == json.loads(json.dumps(found.to_dict()))
    assert "not comparable with Inception FID" in values["note"]
    assert [one["guidance"] for one in values["generated"]] == [1.0, GUIDANCE]
    names = {"generation.json", "neighbours.png", "reconstructions.png", "samples.png"}
    assert {file.name for file in folder.iterdir()} == names

    def shown(name, left, top):
        with Image.open(folder / f"{name}.png") as sheet:
            assert sheet.text["Checkpoint-SHA256"] == "ab" * 32 and sheet.text["Seed"] == "0"
            assert "trainedAlgorithmicMedia" in sheet.text["XML:com.adobe.xmp"]
            cell = sheet.convert("L").crop((left, top, left + 56, top + 56))
        return torch.from_numpy(np.array(cell)[::2, ::2].copy())

    # Each picture is enlarged twofold; rows are 61 apart, of neighbours 77, and pictures 57.
    second = fresh[2][(2 * 40 + 1) % len(fresh[2])]  # the class's second seed
    assert torch.equal(shown("samples", 104 + 57, 20 + 2 * 61), second[0])
    pictures = found.pictures
    pair = 104 + 2 * 57 + 10
    assert torch.equal(shown("reconstructions", pair, 20 + 61), pictures.real[1, 1, 0])
    rebuilt = pictures.real[1, 1, 0] // STEP * STEP + STEP // 2
    assert torch.equal(shown("reconstructions", pair + 57, 20 + 61), rebuilt)
    closest = pictures.closest[4, 0, 0]
    assert torch.equal(shown("neighbours", 104, 20 + 4 * 77), closest)
    away = (training.images[:, 0].double() - closest.double()).square().mean((1, 2)).sqrt() / 255
    assert torch.equal(
        shown("neighbours", 104 + 57, 20 + 4 * 77), training.images[away.argmin(), 0]
    )
    torch.testing.assert_close(pictures.distances[4, 0], away.sort().values[:3])
