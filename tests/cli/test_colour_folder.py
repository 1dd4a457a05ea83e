"""Colour JPEGs of mixed sizes go through every command, as a user's own pictures do."""

import json

import pytest
from make_glyphs import CLASSES, make_glyphs
from PIL import Image
from typer.testing import CliRunner

from imgfast import cli


def imgfast(*arguments):
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("colour")
    make_glyphs(root / "pictures", count=120)
    options = ("--model", "base", "--widths", "8,16", "--epochs", 4, "--batch-size", 16)
    out = ("--data", root / "pictures", "--out", root / "run", "--json")
    trained = json.loads(imgfast("train", *options, *out).splitlines()[-1])
    assert trained["widths"] == [8, 16] and trained["held_out"] == 20
    return root


def test_evaluate(workspace):
    checkpoint = ("--checkpoint", workspace / "run", "--out", workspace / "report")
    found = json.loads(imgfast("evaluate", *checkpoint, "--top-k", 5, "--json"))
    assert found["pictures"] == 20 and found["top_k_accuracy"] >= found["accuracy"]
    names = {path.name for path in (workspace / "report").iterdir()}
    assert {"confusion.png", "confusion.csv", "mistakes.png", "reliability.png"} <= names


def test_predict(workspace):
    out = imgfast("predict", workspace / "pictures", "--checkpoint", workspace / "run", "--json")
    predictions = json.loads(out)["predictions"]
    assert len(predictions) == 120
    assert {row["label"] for row in predictions} <= set(CLASSES)


def test_explain(workspace):
    picture = next((workspace / "pictures" / "star").iterdir())
    maps = workspace / "maps"
    imgfast("explain", picture, "--checkpoint", workspace / "run", "--out", maps)
    (path,) = maps.glob("*.png")
    with Image.open(path) as overlay:
        assert len(overlay.convert("RGB").getcolors(1 << 20)) > 100


def test_attack_abstention_and_foreign_pictures(workspace):
    (workspace / "other" / "grey").mkdir(parents=True)
    for level in range(20):
        Image.new("RGB", (50, 40), (12 * level,) * 3).save(workspace / f"other/grey/{level}.png")
    options = ("--attack", "fgsm", "--attack", "pgd", "--abstain", 0.05, "--json")
    options += ("--ood", workspace / "other", "--out", workspace / "attacked")
    found = json.loads(imgfast("evaluate", "--checkpoint", workspace / "run", *options))
    assert [curve["method"] for curve in found["attacks"]] == ["fgsm", "pgd"]
    for curve in found["attacks"]:
        assert curve["accuracy"][0] == found["accuracy"]
    assert 0 <= found["ood_auroc"] <= 1 and found["abstention"]["accuracy"] >= 0.05
    assert (workspace / "attacked" / "attack.png").is_file()
    assert (workspace / "run" / "abstention.json").is_file()
