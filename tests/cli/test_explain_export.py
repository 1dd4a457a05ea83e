"""``imgfast explain`` and ``imgfast export`` as a user runs them."""

import builtins
import hashlib
import json

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from imgfast import cli
from imgfast.data import load_data
from imgfast.engine import save_checkpoint
from imgfast.models import build_classifier, classifier_config


def imgfast(*arguments) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A checkpoint, which need not be good at anything, and a folder of pictures, one bad."""
    root = tmp_path_factory.mktemp("explain")
    data = load_data("fashion-mnist")
    config = classifier_config("tiny", data.classes, 1, 28, data.mean, data.std)
    training = {"data": data.name, "seed": 0, "fingerprint": data.fingerprint()}
    save_checkpoint(root / "model.safetensors", build_classifier(config), training)
    (root / "pictures").mkdir()
    for index in range(2):
        Image.fromarray(data.images[index, 0].numpy()).save(root / "pictures" / f"{index}.png")
    (root / "pictures" / "bad.png").write_bytes(b"bad")
    return root


@pytest.fixture(autouse=True)
def in_workspace(workspace, monkeypatch):
    monkeypatch.chdir(workspace)


EXPLAIN = ("explain", "--checkpoint", "model.safetensors", "--out")
EXPORT = ("export", "--checkpoint", "model.safetensors", "--out")


def test_explain_ends_with_one_line_of_json(workspace):
    done = imgfast(*EXPLAIN, "all", "pictures", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(done.stdout.splitlines()) == 1
    assert [item["path"] for item in found["explanations"]] == ["pictures/0.png", "pictures/1.png"]
    assert [item["path"] for item in found["skipped"]] == ["pictures/bad.png"]
    assert "skipped 1 unreadable picture" in done.stderr
    assert set(found["mean"]) == {"grad-cam", "integrated-gradients", "occlusion", "random"}
    for item in found["explanations"]:
        assert (workspace / item["overlay"]).read_bytes().startswith(b"\x89PNG")
        assert item["completeness_error"] < 0.05
        assert all(0 < score["deletion"] < 1 for score in item["scores"].values())

    again = imgfast(*EXPLAIN, "all", "pictures")
    assert again.exit_code == 1 and len(again.stderr.splitlines()) == 1
    assert "all/0.png: already exists" in again.stderr


def test_explain_one_class_by_one_method(workspace):
    arguments = ("--class", "Bag", "--method", "integrated-gradients", "--overwrite")
    done = imgfast(*EXPLAIN, "bag", "pictures/0.png", *arguments)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pictures/0.png: ") and lines[0].endswith(", bag/0.png")
    assert [line.split()[0] for line in lines[1:]] == [
        "integrated-gradients",
        "random",
        "completeness",
    ]
    # A bad picture named by itself makes the exit code 1.
    done = imgfast(*EXPLAIN, "bad", "pictures/bad.png", "--json")
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert json.loads(done.stdout)["explanations"] == []


def test_export_ends_with_one_line_of_json(workspace):
    done = imgfast(*EXPORT, "model.pt2", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    data = (workspace / "model.pt2").read_bytes()
    assert (found["bytes"], found["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert found["checkpoint"] == "model.safetensors" and found["format"] == "torch-export"
    assert found["max_difference"] < 1e-4 and found["agreement"] >= 0.99
    assert found["data"] == "fashion-mnist" and found["pictures"] == 256
    done = imgfast(*EXPORT, "model.pt2")
    assert done.exit_code == 1 and "model.pt2: already exists" in done.stderr
    assert (workspace / "model.pt2").read_bytes() == data


def test_errors_are_one_line(workspace):
    for arguments, words in (
        ((*EXPLAIN, "x", "pictures", "--class", "Hat"), "class must be one of T-shirt/top"),
        ((*EXPLAIN, "x", "absent/*.png"), "must hold or match at least one picture"),
        ((*EXPORT, "model.bin"), "must end in .pt2 or .onnx"),
        ((*EXPORT, "m.pt2", "--batch", "-1"), "batch must be dynamic or 1 to 1024, got '-1'"),
        ((*EXPORT, "m.pt2", "--format", "pickle"), "format must be one of torch-export, onnx"),
    ):
        done = imgfast(*arguments)
        assert done.exit_code == 1, arguments
        assert words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stdout == ""
    assert not (workspace / "x").exists()
    assert imgfast(*EXPLAIN, "x", "pictures", "--method", "saliency").exit_code == 2
    assert imgfast(*EXPORT[:-1]).exit_code == 2


@pytest.mark.parametrize(
    "library, arguments",
    [("captum", (*EXPLAIN, "x", "pictures")), ("onnxruntime", (*EXPORT, "m.onnx"))],
)
def test_a_missing_library_is_named_with_its_remedy(monkeypatch, library, arguments):
    real = builtins.__import__

    def without(name, *rest):
        if name == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    done = imgfast(*arguments)
    assert done.exit_code == 1
    assert f"needs {library}; pip install 'imgfast[ex" in done.stderr
