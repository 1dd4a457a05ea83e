"""Two processes train as one does, each with its share of every batch."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from imgfast import cli
from imgfast.engine import load_checkpoint
from imgfast.engine.distributed import Processes
from imgfast.engine.training_step import _parts


def test_shares_are_everything_once():
    for count in (0, 1, 7, 16):
        for size in (1, 2, 3, 5):
            shares = [Processes(rank, size).share(count) for rank in range(size)]
            assert [item for share in shares for item in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_weights_of_parts_make_the_mean_over_the_pictures():
    losses = torch.randn(13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for size in (1, 2, 3):
        for parts in (1, 4, 13):
            means = [
                sum(losses[part].mean() * weight for part, weight in found)
                for rank in range(size)
                for found in [_parts(13, parts, Processes(rank, size))]
            ]
            # As the gradients: a sum over the parts, then a mean over the processes.
            torch.testing.assert_close(sum(means) / size, losses.mean())
    with pytest.raises(ValueError, match="a picture for each of 3 processes, got 2"):
        _parts(2, 1, Processes(0, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """201 pictures as files."""
    root = tmp_path_factory.mktemp("distributed") / "pictures"
    for index in range(201):
        name = pictures.classes[int(pictures.labels[index])].replace("/", "-")
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures.images[index, 0].numpy()).save(root / name / f"{index}.png")
    return root


def test_two_processes_train_as_one(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    # 33 pictures in a batch: shares of 16 and 17.
    arguments = [
        "train", "--data", str(folder), "--image-size", "28", "--epochs", "4",
        "--batch-size", "33", "--accumulate", "2", "--ema", "0.9", "--mixup", "0.4", "--cutmix",
        "1", "--optimizer", "sgd", "--device", "cpu", "--json", "--out",
    ]  # fmt: skip
    one = CliRunner().invoke(cli.app, [*arguments, "one"])
    assert one.exit_code == 0, one.stderr
    two = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "-m", "imgfast", *arguments, "two"],
        cwd=folder.parent, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert len(two.stdout.splitlines()) == 1, two.stdout  # the first process alone speaks
    told, runs = {}, {}
    for name, done in (("one", one), ("two", two)):
        told[name] = json.loads(done.stdout)
        lines = (folder.parent / name / "metrics.jsonl").read_text().splitlines()
        runs[name] = [json.loads(line) for line in lines]
    assert [line["epoch"] for line in runs["two"]] == [1, 2, 3, 4]
    for first, second in zip(runs["one"], runs["two"], strict=True):
        assert second["loss"] == pytest.approx(first["loss"], abs=1e-4)
        assert second["lr"] == first["lr"]
        assert abs(second["accuracy"] - first["accuracy"]) * told["one"]["held_out"] < 1.5
    assert told["one"]["held_out"] == told["two"]["held_out"] > 30
    models = [load_checkpoint(folder.parent / name).model.state_dict() for name in runs]
    for key, value in models[0].items():
        torch.testing.assert_close(models[1][key], value, rtol=0, atol=1e-3)
