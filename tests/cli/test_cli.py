"""The command as a user or a script runs it: output, exit codes, and what is left behind."""

import csv
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from imgfast import cli, engine
from imgfast.data import load_data
from imgfast.engine import load_checkpoint, predict_probabilities
from imgfast.engine.abstention import Abstention, save_abstention
from imgfast.engine.evaluate import evaluation_set
from imgfast.engine.report import report

CLASSES = {"Trouser": 1, "Bag": 8, "Sneaker": 7}


def imgfast(*arguments) -> Result:
    """The command inside this process, which has torch imported already."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def spawn(*arguments, cwd: Path) -> subprocess.CompletedProcess:
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "imgfast", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(autouse=True)
def in_workspace(workspace, monkeypatch):
    monkeypatch.chdir(workspace)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder of real pictures, 3 classes of 40, a fourth of them JPEG, and one bad file."""
    root = tmp_path_factory.mktemp("workspace")
    data = load_data("fashion-mnist")
    for name, label in CLASSES.items():
        (root / "pictures" / name).mkdir(parents=True)
        indices = (data.labels == label).nonzero().flatten()[:40].tolist()
        for number, index in enumerate(indices):
            suffix = "jpg" if number % 4 == 0 else "png"
            image = Image.fromarray(data.images[index, 0].numpy())
            image.save(root / "pictures" / name / f"{number:02}.{suffix}")
    (root / "pictures" / "Bag" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return root


@pytest.fixture(scope="module")
def trained(workspace) -> dict:
    """What ``imgfast train`` on that folder printed as JSON."""
    arguments = ("--data", "pictures", "--image-size", 28, "--epochs", 12, "--batch-size", 32)
    done = spawn("train", *arguments, "--out", "run", "--seed", 4, "--json", cwd=workspace)
    assert done.returncode == 0, done.stderr
    assert "skipped 1 unreadable picture" in done.stderr and "broken.png" in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_train_ends_with_one_line_of_json(workspace, trained):
    assert trained["checkpoint"] == "run/last.safetensors"
    assert trained["accuracy"] >= 0.8 and trained["macro_recall"] >= 0.8
    assert trained["held_out"] == 24 and trained["skipped"] == 1
    assert 0 < trained["train_seconds"] < 100
    assert (trained["seed"], trained["epochs"], trained["batch_size"]) == (4, 12, 32)
    config = load_checkpoint(workspace / trained["checkpoint"]).config
    assert config.classes == tuple(sorted(CLASSES))
    assert (config.channels, config.image_size) == (1, 28)


def test_evaluate_agrees_with_train(workspace, trained):
    done = imgfast("evaluate", "--checkpoint", "run", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy"] == trained["accuracy"]
    assert found["macro_recall"] == trained["macro_recall"]
    assert sum(map(sum, found["confusion"])) == 24
    shown = imgfast("evaluate", "--checkpoint", "run", "--data", "pictures")
    assert f"accuracy {trained['accuracy']:.2%} on 24 pictures" in shown.stdout
    assert "confusion" in shown.stdout and "Sneaker" in shown.stdout


def test_predict_a_folder_skips_and_counts(workspace, trained):
    done = imgfast("predict", "--checkpoint", "run", "pictures", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["predictions"]) == 120
    assert [item["path"] for item in found["skipped"]] == ["pictures/Bag/broken.png"]
    assert "skipped 1 unreadable picture" in done.stderr
    right = [p["label"] == Path(p["path"]).parent.name for p in found["predictions"]]
    assert sum(right) / 120 > 0.85

    # A PNG says exactly what the same pixels in memory say.
    model = load_checkpoint(workspace / "run").model
    data = load_data("fashion-mnist")
    bags = data.images[data.labels == CLASSES["Bag"]][:40]
    best = predict_probabilities(model, bags).max(1)
    by_path = {p["path"]: p for p in found["predictions"]}
    for number in range(40):
        if number % 4:
            item = by_path[f"pictures/Bag/{number:02}.png"]
            assert item["label"] == model.config.classes[best.indices[number]]
            assert item["probability"] == pytest.approx(best.values[number].item(), abs=1e-5)


def test_pictures_and_their_mirror_images_together(workspace, trained):
    arguments = ("--checkpoint", "run", "--mirror", "--json")
    checkpoint = load_checkpoint("run")
    held_out = evaluation_set(checkpoint, None)
    expected = report(checkpoint.model, held_out, mirror=True)
    found = json.loads(imgfast("evaluate", *arguments).stdout)
    assert found["mirror"] is True and found["accuracy"] == expected.evaluation.accuracy
    assert found["log_loss"] == expected.log_loss != report(checkpoint.model, held_out).log_loss
    data = load_data("fashion-mnist")
    bag = data.images[data.labels == CLASSES["Bag"]][1:2]
    best = predict_probabilities(checkpoint.model, bag, mirror=True).amax().item()
    done = imgfast("predict", "pictures/Bag/01.png", *arguments)
    (item,) = json.loads(done.stdout)["predictions"]
    assert item["probability"] == pytest.approx(best, abs=1e-5)
    done = imgfast("evaluate", *arguments, "--attack", "fgsm")
    assert done.exit_code == 1 and "--mirror goes with neither --attack" in done.stderr


def test_predict_as_csv_and_as_text(workspace, trained):
    pattern = "pictures/*/01.png"
    done = imgfast("predict", "--checkpoint", "run", pattern, "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["path"] for row in rows] == [f"pictures/{n}/01.png" for n in sorted(CLASSES)]
    assert all(0.3 < float(row["probability"]) <= 1 for row in rows)
    done = imgfast("predict", "--checkpoint", "run", pattern)
    assert done.stdout.splitlines()[0].startswith(f"pictures/Bag/01.png: {rows[0]['label']} ")


def test_predict_tells_how_fast_it_was(workspace, trained):
    done = imgfast("predict", "--checkpoint", "run", "pictures/Bag/01.png", "pictures/Bag/02.png")
    told = r"imgfast: 2 pictures in \d+\.\d\d s, [\d,]+ pictures/s \(decoding and network\)\n"
    assert re.fullmatch(told, done.stderr) and len(done.stdout.splitlines()) == 2


def test_predict_the_most_probable_classes(workspace, trained):
    arguments = ("predict", "--checkpoint", "run", "pictures/Bag/01.png", "--top-k")
    (item,) = json.loads(imgfast(*arguments, 3, "--json").stdout)["predictions"]
    assert sorted(guess["label"] for guess in item["top"]) == sorted(CLASSES)
    chances = [guess["probability"] for guess in item["top"]]
    assert chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1)
    assert item["abstained"] is False and item["label"] == item["top"][0]["label"]
    shown = ", ".join(f"{guess['label']} {guess['probability']:.1%}" for guess in item["top"][:2])
    assert imgfast(*arguments, 2).stdout == f"pictures/Bag/01.png: {shown}\n"
    (row,) = csv.DictReader(io.StringIO(imgfast(*arguments, 2, "--csv").stdout))
    assert list(row) == ["path", "label", "probability", "label_2", "probability_2"]
    assert row["label_2"] == item["top"][1]["label"]
    assert float(row["probability_2"]) == pytest.approx(chances[1], abs=1e-5)
    done = imgfast(*arguments, 4)
    assert done.exit_code == 1 and done.stderr == "imgfast: predict: top_k must be 1 to 3, got 4\n"
    assert imgfast(*arguments, 0).exit_code == 2


def test_predict_paths_from_standard_input(workspace, trained):
    names = ["pictures/Bag/01.png", "pictures/Trouser/02.png"]
    arguments = ["predict", "--checkpoint", "run", "--json", "pictures/Sneaker/03.png", "-"]
    done = CliRunner().invoke(cli.app, arguments, input="\n".join(names) + "\n\n")
    assert done.exit_code == 0, done.stderr
    found = [item["path"] for item in json.loads(done.stdout)["predictions"]]
    assert found == ["pictures/Sneaker/03.png", *names]
    done = CliRunner().invoke(cli.app, arguments, input="absent.png\n")
    assert done.exit_code == 1 and "absent.png: cannot be read" in done.stderr
    done = CliRunner().invoke(cli.app, arguments, input="\n")
    assert done.exit_code == 1 and "standard input: must name at least one" in done.stderr


def test_predict_abstains_below_the_threshold(workspace, trained):
    arguments = ("predict", "--checkpoint", "run", "pictures", "--abstain")
    done = imgfast(*arguments)
    assert done.exit_code == 1 and done.stdout == ""
    assert "run `imgfast evaluate --checkpoint run/last.safetensors --abstain`" in done.stderr

    plain = json.loads(imgfast(*arguments[:-1], "--json").stdout)["predictions"]
    threshold = sorted(item["probability"] for item in plain)[30] - 1e-5
    save_abstention("run", Abstention(1.0, threshold, 0.99, 0.75, 24))
    found = json.loads(imgfast(*arguments, "--json").stdout)["predictions"]
    for item, before in zip(found, plain, strict=True):
        assert item["abstained"] == (before["probability"] < threshold)
        assert item["label"] == (None if item["abstained"] else before["label"])
    assert sum(item["abstained"] for item in found) == 30
    rows = list(csv.DictReader(io.StringIO(imgfast(*arguments, "--csv").stdout)))
    assert [row["label"] for row in rows] == [item["label"] or "" for item in found]
    lines = imgfast(*arguments).stdout.splitlines()
    for line, item in zip(lines, found, strict=True):
        assert line == f"{item['path']}: {item['label'] or '?'} {item['probability']:.1%}"
    refused = next(item for item in found if item["abstained"])
    (line,) = imgfast(
        "predict", "--checkpoint", "run", refused["path"], "--abstain", "--top-k", 2
    ).stdout.splitlines()
    assert f": ? {refused['probability']:.1%} ({refused['top'][0]['label']} " in line

    # Hotter probabilities are lower: now every picture is below.
    save_abstention("run", Abstention(50.0, threshold, 0.99, 0.75, 24))
    found = json.loads(imgfast(*arguments, "--json").stdout)["predictions"]
    assert all(item["abstained"] and item["probability"] < 0.5 for item in found)


@pytest.mark.parametrize(
    "name, content",
    [
        ("broken.png", b"\x89PNG\r\n\x1a\n"),
        ("page.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        ("no.png", None),
    ],
)
def test_a_bad_file_is_one_clear_line_and_exit_code_1(workspace, trained, name, content):
    if content is not None:
        (workspace / name).write_bytes(content)
    done = imgfast("predict", "--checkpoint", "run", name, "--json")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"imgfast: {name}: ") and "Traceback" not in done.stderr
    assert json.loads(done.stdout)["predictions"] == []
    # Good pictures beside it are still predicted.
    done = imgfast("predict", "--checkpoint", "run", name, "pictures/Bag/01.png")
    assert done.exit_code == 1 and "pictures/Bag/01.png: " in done.stdout


def test_hostile_names_cannot_write_to_the_terminal(workspace, trained):
    name = "\x1b[31mred\nline.png"
    (workspace / name).write_bytes(b"")
    done = imgfast("predict", "--checkpoint", "run", name)
    assert done.exit_code == 1
    assert "\x1b" not in done.stderr
    assert done.stderr.splitlines()[0] == r"imgfast: \x1b[31mred line.png: must not be empty"


def test_errors_are_one_line_with_exit_code_1(workspace, trained):
    (workspace / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + bytes(64))
    for arguments, words in (
        (("predict", "--checkpoint", "pickle.safetensors", "pictures"), "must be a safetensors"),
        (("predict", "--checkpoint", "absent", "pictures"), "absent: cannot be read"),
        (("predict", "--checkpoint", "run", "empty/*.png"), "must hold or match at least one"),
        (("evaluate", "--checkpoint", "run", "--data", "absent"), "must be a folder with one"),
        (("train", "--data", "absent"), "absent: must be a folder with one sub-folder per class"),
        (("train", "--data", "pictures", "--out", "run"), "use --overwrite"),
        (("demo", "--out", "run"), "run: already exists; choose another or use --overwrite"),
    ):
        done = imgfast(*arguments)
        assert done.exit_code == 1, arguments
        assert words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stdout == ""
    assert not (workspace / "runs").exists()


def test_a_wrong_command_line_has_exit_code_2(workspace):
    for arguments in (
        ("train", "--epochs", "none"),
        ("train", "--epochs", "0"),
        ("train", "--model", "huge"),
        ("predict",),
        ("unknown",),
    ):
        assert imgfast(*arguments).exit_code == 2, arguments


def test_exit_codes_reach_the_shell(workspace, trained):
    """At fault and wrong command line, as processes; the training above was one that went well."""
    bad = "pictures/Bag/broken.png"
    arguments = ("predict", "--checkpoint", "run")
    done = spawn(*arguments, bad, cwd=workspace)
    assert done.returncode == 1 and done.stderr.startswith(f"imgfast: {bad}: must be a whole")
    assert spawn(*arguments, cwd=workspace).returncode == 2


def test_info_tells_versions_and_instruction_set(workspace):
    done = imgfast("info", "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    shown = imgfast("info").stdout
    assert facts["imgfast"] in shown and facts["torch"] in shown


def test_an_interrupt_exits_130_and_leaves_a_whole_checkpoint(workspace):
    out = workspace / "interrupted"
    process = subprocess.Popen(
        [sys.executable, "-m", "imgfast", "train", "--epochs", "1000", "--data", "pictures",
         "--image-size", "28", "--batch-size", "96", "--out", str(out)],
        cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A job in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (out / "last.safetensors").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert load_checkpoint(out).training["epoch"] >= 1


def test_demo_does_the_whole_job(workspace, monkeypatch):
    monkeypatch.setattr(engine, "compare", functools.partial(engine.compare, seconds=0.1))
    done = imgfast("demo", "--epochs", 1, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy"] > 0.70  # one epoch of the whole subset
    assert found["checkpoint"] == "runs/demo/last.safetensors"
    with Image.open(workspace / found["picture"]) as image:
        assert image.format == "PNG"
    assert [row["task"] for row in found["comparison"]] == ["inference", "training step"]
    assert all(row["imgfast"] > 0 and row["stock"] > 0 for row in found["comparison"])
