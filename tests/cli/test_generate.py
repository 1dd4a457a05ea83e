"""``imgfast train --model generator`` and ``imgfast generate``, as a user runs them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from imgfast import cli
from imgfast.cli.generate import parse_seeds
from imgfast.data import load_data
from imgfast.engine import load_generator

CLASSES = {"Ankle boot": 9, "Bag": 8, "T-shirt": 0}


def imgfast(*arguments) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder of real pictures of three classes, in the colours red, green and blue."""
    root = tmp_path_factory.mktemp("workspace")
    data = load_data("fashion-mnist")
    for channel, (name, label) in enumerate(CLASSES.items()):
        (root / "pictures" / name).mkdir(parents=True)
        for number, index in enumerate((data.labels == label).nonzero().flatten()[:30].tolist()):
            pixels = np.zeros((28, 28, 3), np.uint8)
            pixels[..., channel] = data.images[index, 0].numpy()
            Image.fromarray(pixels).save(root / "pictures" / name / f"{number:02}.png")
    return root


@pytest.fixture(autouse=True)
def in_workspace(workspace, monkeypatch):
    monkeypatch.chdir(workspace)


@pytest.fixture(scope="module")
def trained(workspace) -> dict:
    """What training on that folder printed as JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        (workspace / "recipe.toml").write_text(
            'model = "generator"\ncodes = 16\nencoder_widths = [8, 8, 8]\nbatch_size = 24\n'
        )
        done = imgfast(
            "train", "--config", "recipe.toml", "--data", "pictures", "--image-size", 32,
            "--decoder-widths", "8,8,8", "--prior-width", 32, "--prior-depth", 1,
            "--epochs", 2, "--prior-epochs", 4, "--prior-lr", 0.01, "--ema", 0.5,
            "--out", "run", "--seed", 4, "--json",
        )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "tokenizer: epoch 2" in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image).copy()


def test_train_ends_with_one_line_of_json(workspace, trained):
    assert trained["checkpoint"] == "run/last.safetensors" and trained["samples"] == "run/samples"
    assert trained["held_out"] == 18 and trained["train_seconds"] > 0
    assert trained["psnr"] > 5 and 0 < trained["held_out_loss"] < 3
    assert (trained["model"], trained["codes"], trained["prior_epochs"]) == ("generator", 16, 4)
    assert (trained["tokenizer_epochs"], trained["encoder_widths"]) == (2, [8, 8, 8])
    config = load_generator("run").config
    assert (config.channels, config.image_size, config.side) == (3, 32, 8)
    assert config.classes == tuple(sorted(CLASSES))
    done = imgfast("train", "--resume", "run", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["psnr"] == trained["psnr"]


def test_pictures_of_a_class_with_their_provenance(workspace, trained):
    arguments = ("generate", "--checkpoint", "run", "--class", "Ankle boot")
    done = imgfast(*arguments, "--seeds", "0-4", "--out", "boots", "--guidance", 1.5, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    names = [f"boots/Ankle-boot-{seed}.png" for seed in range(5)]
    assert [item["path"] for item in found["pictures"]] == names
    assert [item["seed"] for item in found["pictures"]] == list(range(5))
    assert sorted(str(path) for path in Path("boots").iterdir()) == names
    loaded = load_generator("run")
    label = loaded.config.classes.index("Ankle boot")
    expected = loaded.model.generate(torch.full((5,), label), range(5), 1.5)
    for seed, name in enumerate(names):
        assert np.array_equal(pixels_of(name), expected[seed].permute(1, 2, 0).numpy())
    with Image.open(names[3]) as image:
        texts = dict(image.text)
    assert "trainedAlgorithmicMedia" in texts.pop("XML:com.adobe.xmp")
    assert texts.pop("Software").startswith("imgfast ")
    told = hashlib.sha256(Path("run/last.safetensors").read_bytes()).hexdigest()
    assert texts == {
        "Checkpoint-SHA256": told,
        "Class": "Ankle boot",
        "Seed": "3",
        "Guidance": "1.5",
        "Temperature": "1",
    }
    assert found["sha256"] == told

    # One alone is the same picture, to the byte.
    done = imgfast(*arguments, "--seeds", 3, "--out", "alone", "--guidance", 1.5)
    assert done.exit_code == 0 and "1 pictures in alone" in done.stdout
    assert Path("alone/Ankle-boot-3.png").read_bytes() == Path(names[3]).read_bytes()
    done = imgfast(*arguments, "--seeds", 3, "--out", "unguided", "--guidance", 1)
    with Image.open("unguided/Ankle-boot-3.png") as image:
        assert image.text["Temperature"] == "0.9"


def test_a_sheet_of_all_classes(workspace, trained):
    done = imgfast("generate", "--checkpoint", "run", "--seeds", "0-19", "--grid", "sheet.png")
    assert done.exit_code == 0, done.stderr
    with Image.open("sheet.png") as image:
        assert image.format == "PNG" and image.text["Guidance"] == "3.25"
        assert "trainedAlgorithmicMedia" in image.text["XML:com.adobe.xmp"]
        assert "Class" not in image.text
        assert image.width > 16 * 32 and image.height > 3 * 2 * 32  # 16 and 4 in rows of 16


def test_the_way_from_one_picture_to_another(workspace, trained):
    ends = ("pictures/Bag/01.png", "pictures/T-shirt/02.png")
    arguments = ("generate", "--checkpoint", "run", "--interpolate", *ends, "--out", "way")
    done = imgfast(*arguments, "--steps", 4, "--json")
    assert done.exit_code == 0, done.stderr
    names = [f"way/interpolation-{step:03}.png" for step in range(1, 5)]
    assert [item["path"] for item in json.loads(done.stdout)["pictures"]] == names
    first, last = (pixels_of(names[i]).astype(int) for i in (0, 3))
    assert (first != last).any()
    with Image.open(names[1]) as image:
        assert image.text["Step"] == "2 of 4" and "Seed" not in image.text
    assert imgfast(*arguments, "--class", "Bag").exit_code == 2
    done = imgfast("generate", "--checkpoint", "run", "--interpolate", ends[0], "no.png",
                   "--out", "way2")  # fmt: skip
    assert done.exit_code == 1 and "no.png: cannot be read" in done.stderr
    assert not Path("way2").exists()


def test_nothing_is_overwritten_unless_asked(workspace, trained):
    Path("mine").mkdir()
    Path("mine/Bag-1.png").write_bytes(b"mine")
    arguments = ("generate", "--checkpoint", "run", "--class", "Bag", "--seeds", "0-2")
    done = imgfast(*arguments, "--out", "mine")
    assert done.exit_code == 1
    assert "mine/Bag-1.png: already exists; choose another place or use --overwrite" in done.stderr
    assert [path.name for path in Path("mine").iterdir()] == ["Bag-1.png"]
    assert Path("mine/Bag-1.png").read_bytes() == b"mine"
    done = imgfast(*arguments, "--out", "new", "--grid", "mine/Bag-1.png")
    assert done.exit_code == 1 and not Path("new").exists()
    done = imgfast(*arguments, "--out", "new", "--grid", "new/Bag-2.png")
    assert done.exit_code == 1 and "must be another file" in done.stderr
    assert imgfast(*arguments, "--out", "mine", "--overwrite").exit_code == 0
    assert len(list(Path("mine").iterdir())) == 3 and pixels_of("mine/Bag-1.png").any()


@pytest.mark.parametrize(
    "arguments, rule",
    [
        (("--class", "Cat"), "class must be one of Ankle boot, Bag, T-shirt, got 'Cat'"),
        (("--seeds", "5-3"), "seeds must rise, got '5-3'"),
        (("--seeds", "a"), "seeds must be like 0-63 or 0,5,7-9, got 'a'"),
        (("--seeds=-1",), "seeds must be like 0-63 or 0,5,7-9, got '-1'"),
        (("--seeds", ""), "seeds must be like"),
        (("--seeds", "0-100000"), "at most 100000 seeds at once"),
        (("--seeds", "0-40000"), "at most 100000 pictures at once, got 120003"),
        (("--seeds", "9223372036854775808"), r"seeds must be below 2^63"),
        (("--guidance", "101"), "guidance must lie in [0, 100], got 101"),
        (("--temperature", "0"), "temperature must lie in [0.01, 100], got 0"),
        (("--checkpoint", "absent"), "absent: cannot be read"),
        (("--checkpoint", "pictures/Bag/00.png"), "must be a safetensors file"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_1(workspace, trained, arguments, rule):
    done = imgfast("generate", "--checkpoint", "run", "--out", "none", *arguments)
    assert done.exit_code == 1 and rule in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert not Path("none").exists() or not any(Path("none").iterdir())


def test_commands_say_which_kind_of_checkpoint_they_take(workspace, trained):
    for command in (("predict", "pictures"), ("explain", "pictures", "--out", "maps")):
        done = imgfast(command[0], "--checkpoint", "run", *command[1:])
        assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
        assert "of a classifier, it is of a generator; use it with imgfast gen" in done.stderr


@pytest.mark.parametrize(
    "arguments, rule",
    [
        (
            ("--model", "generator", "--mixup", 0.1, "--shift", 2),
            "--shift, --mixup: a classifier's",
        ),
        (("--model", "tiny", "--codes", 8), "--codes: --model generator's"),
        (("--model", "generator", "--find-lr"), "--find-lr does not belong"),
        (("--model", "generator", "--encoder-widths", "8,x"), "must be like 32,64,128"),
        (("--model", "generator", "--prior-lr", "99"), "prior_lr must lie in"),
    ],
)
def test_options_of_the_other_model_are_refused(workspace, arguments, rule):
    done = imgfast("train", "--data", "pictures", "--out", "other", *arguments)
    assert done.exit_code == 2 and rule in " ".join(done.stderr.replace("│", " ").split())
    assert not Path("other").exists()


def test_a_size_that_cannot_be_halved_names_one_that_can(workspace):
    arguments = ("train", "--model", "generator", "--data", "pictures", "--image-size", 30)
    done = imgfast(*arguments, "--out", "other")
    assert done.exit_code == 1 and "got 30; 32 is near" in done.stderr
    assert not Path("other").exists()


def test_seeds_are_ranges_and_numbers():
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds("7, 2-3,3-5") == [7, 2, 3, 4, 5]
    assert parse_seeds(str(2**63 - 1)) == [2**63 - 1]


def test_info_counts_the_generator(workspace):
    done = imgfast("info", "--model", "generator", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["parameters"] == told["tokenizer_parameters"] + told["prior_parameters"] > 1e5
