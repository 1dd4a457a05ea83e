"""``imgfast evaluate`` of a generator: what it prints, writes, and refuses."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from imgfast import cli
from imgfast.data import load_data, split
from imgfast.engine import save_checkpoint
from imgfast.engine.checkpoint import load_checkpoint, load_generator
from imgfast.engine.generation.report import report_generator
from imgfast.models import build_classifier, build_generator, classifier_config
from imgfast.models.generator import generator_config

CLASSES = {"Trouser": 1, "Bag": 8, "Sneaker [low]": 7}
SMALL = {
    "encoder_widths": (4, 8, 8),
    "decoder_widths": (8, 8, 4),
    "codes": 16,
    "code_size": 4,
    "prior_width": 16,
    "prior_depth": 1,
    "prior_heads": 2,
}


def evaluate(*arguments) -> Result:
    return CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)])


@pytest.fixture(autouse=True)
def in_workspace(workspace, monkeypatch):
    monkeypatch.chdir(workspace)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder of real pictures, 3 classes of 60; a generator and judges that know it.

    Nothing is trained: this is about what reaches what.
    """
    root = tmp_path_factory.mktemp("workspace")
    data = load_data("fashion-mnist")
    for name, label in CLASSES.items():
        (root / "pictures" / name).mkdir(parents=True)
        for number, index in enumerate((data.labels == label).nonzero().flatten()[:60].tolist()):
            image = Image.fromarray(data.images[index, 0].numpy())
            image.save(root / "pictures" / name / f"{number:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        pictures = load_data("pictures", 28)
    told = {"data": "pictures", "fingerprint": pictures.fingerprint(), "seed": 3}
    look = (pictures.classes, 1, 28, pictures.mean, pictures.std)
    generator = build_generator(generator_config(*look, **SMALL))
    save_checkpoint(root / "gen.safetensors", generator, told)
    judge = classifier_config("tiny", *look, widths=(4, 8))
    save_checkpoint(root / "judge.safetensors", build_classifier(judge), told)
    save_checkpoint(root / "leaky.safetensors", build_classifier(judge), {**told, "seed": 4})
    colour = classifier_config("tiny", look[0], 3, 28, (0.5,) * 3, (0.5,) * 3, widths=(4, 8))
    save_checkpoint(root / "colour.safetensors", build_classifier(colour), told)
    return root


JUDGED = ("--checkpoint", "gen.safetensors", "--judge", "judge.safetensors", "--per-class", 6)


def test_json_is_the_report_on_what_was_held_out(workspace):
    done = evaluate(*JUDGED, "--seed", 5, "--guidance", 1.5, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    training, held_out = split(load_data("pictures", 28), seed=3)
    model = load_generator("gen.safetensors").model
    judge = load_checkpoint("judge.safetensors").model
    expected = report_generator(model, judge, held_out, training, (1.0, 1.5), 6, 5).to_dict()
    assert {key: found[key] for key in expected} == json.loads(json.dumps(expected))
    extra = {key: found[key] for key in set(found) - set(expected)}
    assert extra == {
        "checkpoint": "gen.safetensors",
        "judge": "judge.safetensors",
        "data": "pictures",
        "skipped": 0,
        "out": None,
    }


def test_the_table_has_every_set_and_says_what_it_is_not(workspace):
    done = evaluate(*JUDGED)
    assert done.exit_code == 0, done.stderr
    found = json.loads(evaluate(*JUDGED, "--json").stdout)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["real", "rebuilt", "unguided", "guided", "3.25", "means", "noise"] in rows
    sets = [found["real"], found["reconstructed"], *found["generated"]]
    sets += [found["class_means"], found["noise"]]
    for name, key, digits in (
        ("agreement", "agreement", 3),
        ("Frechet distance", "frechet", 2),
        ("kernel distance", "kernel", 4),
        ("coverage", "coverage", 3),
        ("within class", "within_class", 3),
    ):
        assert [*name.split(), *(f"{one[key]:.{digits}f}" for one in sets)] in rows
    shares = [f"{one['class_agreement'][1]:.2f}" for one in sets]
    assert ["Sneaker", "[low]", *shares] in rows
    text = done.stdout
    assert "sets of 6 x 3 pictures" in text and "not comparable with Inception FID" in text
    assert f"reconstruction {found['reconstruction_psnr']:.2f} dB (PSNR)" in text
    for one in found["generated"]:
        flag = "not copying" if one["not_copying"] else "copying"
        heat = {1.0: "0.9", 3.25: "1"}[one["guidance"]]
        assert f"guidance {one['guidance']:g}, temperature {heat}: {flag}; nearest" in text


def test_the_temperature_is_that_of_both_sets(workspace):
    found = json.loads(evaluate(*JUDGED, "--temperature", 0.5, "--json").stdout)
    usual = json.loads(evaluate(*JUDGED, "--json").stdout)
    assert [one["temperature"] for one in found["generated"]] == [0.5, 0.5]
    assert [one["temperature"] for one in usual["generated"]] == [0.9, 1.0]
    for one, other in zip(found["generated"], usual["generated"], strict=True):
        assert one["frechet"] != other["frechet"]


def test_guidance_1_is_judged_once(workspace):
    found = json.loads(evaluate(*JUDGED, "--guidance", 1, "--json").stdout)
    assert [one["guidance"] for one in found["generated"]] == [1.0]


def test_files_are_written_into_a_new_folder(workspace):
    done = evaluate(*JUDGED, "--out", "report")
    assert done.exit_code == 0 and done.stdout.endswith("report report\n"), done.stderr
    names = {"generation.json", "neighbours.png", "reconstructions.png", "samples.png"}
    assert {file.name for file in (workspace / "report").iterdir()} == names
    with Image.open("report/samples.png") as sheet:
        assert sheet.text["Checkpoint-SHA256"] == load_generator("gen.safetensors").sha256
    again = evaluate(*JUDGED, "--out", "report")
    assert again.exit_code == 1 and "report: already exists; choose another" in again.stderr


def test_what_does_not_fit_is_one_line_with_exit_code_1(workspace):
    gen, judge = ("--checkpoint", "gen.safetensors"), ("--judge", "judge.safetensors")
    for arguments, words in (
        (gen, "--judge must name a classifier for gen.safetensors, which is a generator; train"),
        ((*gen, *judge, "--attack", "fgsm"), "gen.safetensors is a generator, which takes no --at"),
        ((*gen, "--top-k", 3, "--abstain", 0.9), "which takes no --top-k, --abstain"),
        (
            ("--checkpoint", "judge.safetensors", *judge, "--per-class", 9),
            "judge.safetensors is a classifier, which takes no --judge, --per-class",
        ),
        ((*gen, "--judge", "gen.safetensors"), "must be the checkpoint of a classifier"),
        ((*gen, "--judge", "colour.safetensors"), "judge: channels must be the generator's, 1, go"),
        ((*gen, "--judge", "leaky.safetensors"), "train a judge with --seed 3"),
        ((*gen, *judge, "--guidance", -1), "guidance must lie in [0, 100], got -1.0"),
        ((*gen, *judge, "--data", "absent"), "absent: must be a folder with one"),
    ):
        done = evaluate(*arguments)
        assert done.exit_code == 1, arguments
        assert words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stdout == ""
    assert evaluate(*gen, *judge, "--per-class", 3).exit_code == 2


def test_a_leaky_judge_is_told_how_many_pictures_it_has_seen(workspace):
    data = load_data("pictures", 28)
    held_out = set(split(data, seed=3)[1].digests())
    seen = sum(digest in held_out for digest in split(data, seed=4)[0].digests())
    assert 0 < seen < 36
    done = evaluate("--checkpoint", "gen.safetensors", "--judge", "leaky.safetensors")
    assert f"leaky.safetensors: was trained on {seen} of the 36 pictures" in done.stderr


@pytest.fixture(scope="module")
def others(workspace) -> str:
    """The held-out pictures again, in a folder of their own."""
    _, held_out = split(load_data(str(workspace / "pictures"), 28), seed=3)
    for number, (image, label) in enumerate(zip(held_out.images, held_out.labels, strict=True)):
        folder = workspace / "others" / held_out.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    return "others"


def test_other_pictures_are_compared_with_and_the_training_set_is_searched(others):
    found = json.loads(evaluate(*JUDGED, "--data", others, "--json").stdout)
    assert found["data"] == "others" and found["per_class"] == 6
    own = json.loads(evaluate(*JUDGED, "--json").stdout)
    # Training pictures are the same, so a copy of one is as near; none of the others is one.
    assert found["copy_nearest"] == pytest.approx(own["copy_nearest"], rel=0.2)
    assert found["real"]["nearest_low"] > 0


def test_a_training_set_that_has_changed_is_refused(workspace, others):
    extra = Image.fromarray(torch.arange(784).remainder(256).byte().view(28, 28).numpy())
    extra.save("pictures/Bag/new.png")
    try:
        done = evaluate(*JUDGED)
        assert done.exit_code == 1 and "has changed since gen.safetensors was tra" in done.stderr
        done = evaluate(*JUDGED, "--data", others)
        assert done.exit_code == 1 and "so copies cannot be told; train it again" in done.stderr
    finally:
        Path("pictures/Bag/new.png").unlink()
