"""``imgfast data`` as a user or a script runs it."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from imgfast import cli


def imgfast(*arguments) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two classes of six pictures, two of which are equal, split in two parts; one bad file."""
    monkeypatch.setenv("IMGFAST_CACHE", str(tmp_path / "cache"))
    dice = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = dice.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    root = tmp_path / "set"
    (root / "test/cat/1.png").write_bytes((root / "train/cat/0.png").read_bytes())
    (root / "train/dog/[red].png").write_bytes(b"no picture")
    return root


def test_a_folder_as_text_and_as_json(folder):
    done = imgfast("data", folder)
    assert done.exit_code == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines == [
        f"{folder}: 12 pictures, 3x32x32 in memory (colour)",
        "cat 6",
        "dog 6",
        "width 12 to 12 pixels, median 12",
        "height 9 to 9 pixels, median 9",
        "formats PNG 12",
        "colour 0 grey, 12 coloured",
        "unreadable 1",
        "duplicates 1; groups of equal pictures: 1 within a class, 0 across classes",
        "1 held out and in training too",
        "train/cat/0.png = test/cat/1.png",
        "split 8 training, 4 held out (official test)",
        "split 6 training, 2 validation, 4 test (official test, seed 0)",
    ]
    assert "skipped 1 unreadable picture" in done.stderr and "[red].png" in done.stderr
    done = imgfast("data", folder, "--json", "--image-size", 16, "--seed", 5)
    found = json.loads(done.stdout)
    assert found["image_size"] == 16 and found["seed"] == 5 and found["official"] == ["test"]
    assert found["width"] == {"minimum": 12, "median": 12, "maximum": 12}
    assert found["skipped"][0]["path"].endswith("train/dog/[red].png")


def test_the_cache_is_kept_and_cleared(folder, tmp_path):
    assert imgfast("data", folder, "--no-cache").exit_code == 0
    assert not (tmp_path / "cache").exists()
    imgfast("data", folder)
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 1
    done = imgfast("data", "--clear-cache", "--json")
    found = json.loads(done.stdout)
    assert found["files"] == 1 and found["bytes"] > 12 * 3 * 32 * 32
    assert list((tmp_path / "cache" / "decoded").iterdir()) == []
    assert "deleted 0 decoded folders, 0 bytes" in imgfast("data", "--clear-cache").stdout


def test_the_shipped_subset():
    found = json.loads(imgfast("data", "fashion-mnist", "--json").stdout)
    assert set(found["classes"].values()) == {1400} and found["grey"] == found["pictures"] == 14_000
    assert found["split"] == {"training": 11_200, "held_out": 2_800}
    assert found["three_way_split"] == {"training": 9_800, "validation": 1_400, "test": 2_800}
    assert found["width"] == {"minimum": 28, "median": 28, "maximum": 28}
    assert found["duplicates"]["groups"] == []


def test_mistakes_are_one_line(folder):
    for name, words in (("absent", "one sub-folder per class"), ("torchvision:X", "one of CIFAR")):
        done = imgfast("data", name)
        assert done.exit_code == 1 and words in done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert imgfast("data").exit_code == 2
