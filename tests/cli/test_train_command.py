"""``imgfast train`` beyond the defaults: settings from a file, resuming, the range test."""

import json

import pytest
from typer.testing import CliRunner

from imgfast import cli
from imgfast.data import load_data
from imgfast.engine import load_checkpoint


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """An empty folder to work in, and 200 pictures as the default set."""
    import torch

    pictures = load_data("fashion-mnist").subset(torch.arange(200))
    monkeypatch.setattr("imgfast.cli.train.load_data", lambda *_, **__: pictures)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imgfast(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_flags_override_the_file(small):
    (small / "recipe.toml").write_text(
        'epochs = 5\nbatch_size = 40\nflip = false\noptimizer = "sgd"\nema = 0.9\n'
    )
    done = imgfast("train", "--config", "recipe.toml", "--epochs", 1, "--flip", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["epochs"], told["flip"]) == (1, True)
    assert (told["batch_size"], told["optimizer"], told["ema"]) == (40, "sgd", 0.9)
    assert told["lr"] == 0.05 and told["checkpoint"] == "runs/tiny-0/last.safetensors"
    assert json.loads((small / "runs/tiny-0/config.json").read_text())["optimizer"] == "sgd"


@pytest.mark.parametrize(
    "text, code, rule",
    [
        ("epoch = 1", 1, "recipe.toml: train: 'epoch' is no setting"),
        ('lr = "a"', 1, "recipe.toml: train: lr must be of type float"),
        ("epochs = 0", 1, "recipe.toml: train: epochs must lie in"),
        (None, 1, "recipe.toml"),
    ],
)
def test_a_file_at_fault_is_one_line(small, text, code, rule):
    if text is not None:
        (small / "recipe.toml").write_text(text)
    done = imgfast("train", "--config", "recipe.toml")
    assert done.exit_code == code and len(done.stderr.splitlines()) == 1
    assert rule in done.stderr and not (small / "runs").exists()


def test_resume_goes_on_and_ends_with_the_same_bytes(small, monkeypatch):
    arguments = ("train", "--epochs", 3, "--batch-size", 40, "--seed", 5)
    assert imgfast(*arguments, "--out", "whole").exit_code == 0

    from imgfast.engine.training_step import TrainingStep

    begin = TrainingStep.begin_epoch

    def interrupted(self, epoch):
        if epoch == 3:
            raise OSError("no more")
        return begin(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "begin_epoch", interrupted)
        assert imgfast(*arguments, "--out", "parts").exit_code == 1
    assert load_checkpoint("parts").training["epoch"] == 2
    done = imgfast("train", "--resume", "parts", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["seed"] == 5
    for name in ("last.safetensors", "best.safetensors", "config.json"):
        assert (small / "parts" / name).read_bytes() == (small / "whole" / name).read_bytes()


def test_resume_takes_no_other_settings(small):
    done = imgfast("train", "--resume", "absent")
    assert done.exit_code == 1 and "absent: must be the folder of a run" in done.stderr
    assert imgfast("train", "--resume", "absent", "--lr", 0.1).exit_code == 2


def test_find_lr_suggests_and_leaves_the_folder_free(small):
    done = imgfast("train", "--find-lr", "--batch-size", 40, "--out", "run", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert 1e-5 < told["lr"] < 1 and (small / told["picture"]).read_bytes()[1:4] == b"PNG"
    done = imgfast("train", "--lr", told["lr"], "--epochs", 1, "--out", "run")
    assert done.exit_code == 0, done.stderr
    assert (small / "run/lr.png").exists() and load_checkpoint("run").training["lr"] == told["lr"]
