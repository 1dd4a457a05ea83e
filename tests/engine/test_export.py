"""Exported files say what the fused model says, in stock operators, and name no path."""

import dataclasses
import hashlib
import io
import json
import site
import zipfile
from pathlib import Path

import pytest
import torch

import imgfast
from imgfast.data import split
from imgfast.engine import export as exporting
from imgfast.engine import load_checkpoint, predict_probabilities, save_checkpoint
from imgfast.engine.export import (
    ExportError,
    PixelClassifier,
    check_pictures,
    compare_probabilities,
    export_classifier,
)
from imgfast.models import build_classifier


@pytest.fixture(scope="module")
def checkpoint(run):
    return load_checkpoint(run.path)


@pytest.fixture(scope="module")
def images(pictures):
    return split(pictures, seed=0)[1].images[:40]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, checkpoint):
    """A report for each format."""
    folder = tmp_path_factory.mktemp("export")
    return {
        name: export_classifier(checkpoint, folder / f"model{suffix}")
        for name, suffix in exporting.FORMATS.items()
    }


def read(report):
    """Metadata, a function from pixels to logits, and the file's bytes, unpacked."""
    data = Path(report.path).read_bytes()
    if report.format == "onnx":
        import onnx
        import onnxruntime

        proto = onnx.load_from_string(data)
        assert not proto.functions and {node.domain for node in proto.graph.node} == {""}
        metadata = {item.key: item.value for item in proto.metadata_props}
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        assert [item.name for item in session.get_inputs()] == ["pixels"]
        assert session.get_inputs()[0].shape[1:] == [1, 28, 28]

        def run(pixels):
            return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])

        return metadata, run, data
    # torch.export.load fills a table only where it is not empty.
    metadata = {"imgfast.classes": ""}
    program = torch.export.load(io.BytesIO(data), extra_files=metadata)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert len(called) > 3 and all(name.startswith("aten.") for name in called)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        data = b"".join(archive.read(name) for name in archive.namelist())
    return metadata, program.module(), data


@pytest.mark.parametrize("name", [*exporting.FORMATS])
def test_the_file_says_what_the_model_says(exported, checkpoint, images, name):
    report = exported[name]
    metadata, run, content = read(report)
    expected = predict_probabilities(checkpoint.model, images)
    for count in (1, 2, 7, 40):
        logits = run(images[:count].float() / 255)
        assert logits.shape == (count, 10) and not bool(((logits > 0) & (logits < 1)).all())
        torch.testing.assert_close(logits.softmax(1), expected[:count], rtol=0, atol=1e-5)
    assert 0 <= report.max_difference < 1e-5 and report.agreement == 1
    assert (report.pictures, report.batch) == (256, "dynamic")

    values = {key.removeprefix("imgfast."): value for key, value in metadata.items()}
    assert json.loads(values["classes"]) == list(checkpoint.config.classes)
    assert json.loads(values["config"])["widths"] == list(checkpoint.config.widths)
    sha256 = hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    assert values["checkpoint_sha256"] == sha256
    assert values["input"].startswith("float32 [N, 1, 28, 28], grey in [0, 1]")
    assert values["version"] == imgfast.__version__
    for path in (imgfast.__path__[0], torch.__path__[0], *site.getsitepackages()):
        assert path.encode() not in content


@pytest.mark.parametrize("name", [*exporting.FORMATS])
def test_the_report_is_of_the_file(exported, name):
    data = Path(exported[name].path).read_bytes()
    assert exported[name].bytes == len(data)
    assert exported[name].sha256 == hashlib.sha256(data).hexdigest()
    assert json.loads(json.dumps(exported[name].to_dict()))["format"] == name


def test_a_batch_of_fixed_size(checkpoint, tmp_path):
    report = export_classifier(checkpoint, tmp_path / "m", "torch-export", batch="3")
    assert report.batch == "3" and report.max_difference < 1e-5
    run = read(report)[1]
    assert run(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    with pytest.raises(AssertionError, match="Guard failed"):
        run(torch.zeros(4, 1, 28, 28))


def test_a_file_that_disagrees_is_not_written(checkpoint, tmp_path, monkeypatch):
    forward = PixelClassifier.forward

    def wrong(self, pixels):  # forgets the normalisation
        return forward(self, pixels * self.std + self.mean)

    monkeypatch.setattr(PixelClassifier, "forward", wrong)
    with pytest.raises(ExportError, match=r"must be within 0.0001 .* nothing was written"):
        export_classifier(checkpoint, tmp_path / "m.pt2")
    assert not any(tmp_path.iterdir())


def test_differences_are_found_wherever_they_are(checkpoint, images):
    module = PixelClassifier(checkpoint.model)

    def last_is_wrong(pixels):
        logits = module(pixels)
        last = (pixels == images[39] / 255).flatten(1).all(1)
        return torch.where(last[:, None], logits.flip(1), logits)

    with torch.no_grad():
        for size in (None, 3, 40, 64):
            assert compare_probabilities(checkpoint.model, module, images, size)[0] < 1e-5
            difference, agreement = compare_probabilities(
                checkpoint.model, last_is_wrong, images, size
            )
            assert difference > 0.1 and agreement == pytest.approx(39 / 40)
        broken = compare_probabilities(checkpoint.model, lambda x: module(x) * torch.nan, images)
    assert broken[0] != broken[0]


def test_files_stay_unless_asked(exported, checkpoint, monkeypatch):
    path = Path(exported["onnx"].path)
    before = path.read_bytes()
    with pytest.raises(ExportError, match=r"already exists; .* use --overwrite"):
        export_classifier(checkpoint, path)
    monkeypatch.setattr(
        exporting, "_to_onnx", lambda *_: (b"new", PixelClassifier(checkpoint.model))
    )
    with torch.no_grad():
        assert export_classifier(checkpoint, path, overwrite=True).bytes == 3
    assert path.read_bytes() == b"new"
    path.write_bytes(before)


@pytest.mark.parametrize(
    "name, settings, rule",
    [
        ("m.bin", {}, r"must end in \.pt2 or \.onnx, or give --format"),
        ("m.onnx", {"file_format": "tflite"}, "format must be one of torch-export, onnx"),
        ("m.pt2", {"batch": "0"}, "batch must be dynamic or 1 to 1024, got '0'"),
        ("m.pt2", {"batch": "many"}, "got 'many'"),
        ("absent/m.pt2", {}, "its folder must exist"),
    ],
)
def test_mistakes_are_one_line(checkpoint, tmp_path, name, settings, rule):
    with pytest.raises(ExportError, match=rule) as error:
        export_classifier(checkpoint, tmp_path / name, **settings)
    assert "\n" not in str(error.value)


def test_pictures_to_check_on(checkpoint, tmp_path):
    """Held-out ones where they are known, else those of the package in the model's shape."""
    config = dataclasses.replace(
        checkpoint.config, channels=3, image_size=40, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    path = tmp_path / "colour.safetensors"
    save_checkpoint(path, build_classifier(config), {"data": "a folder that is gone"})
    name, images = check_pictures(load_checkpoint(path), count=20)
    assert (name, images.shape, images.dtype) == ("fashion-mnist", (20, 3, 40, 40), torch.uint8)
    assert images.float().std() > 50

    from imgfast.data import load_data

    data = load_data("fashion-mnist")
    save_checkpoint(
        path, checkpoint.model, {"data": data.name, "seed": 1, "fingerprint": data.fingerprint()}
    )
    found = check_pictures(load_checkpoint(path), count=5)[1]
    held_out = split(data, seed=1)[1].images
    assert torch.equal(found[0], held_out[0]) and torch.equal(found[-1], held_out[-1])
