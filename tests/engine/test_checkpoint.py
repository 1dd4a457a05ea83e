"""Checkpoints: what is saved is loaded, anything else is refused, and a kill leaves one whole."""

import ast
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

import imgfast
from imgfast.engine import CheckpointError, checkpoint, load_checkpoint, save_checkpoint
from imgfast.engine.checkpoint import MAX_HEADER_BYTES
from imgfast.models import Classifier, build_classifier, classifier_config

CONFIG = classifier_config("tiny", ("coat", "dress", "shoe"), 1, 28, (0.3,), (0.35,))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build_classifier(CONFIG, seed=7), {"data": "here", "accuracy": 0.5})
    return path


def parts(path):
    """Header and values of a safetensors file."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(path, header, values: bytes):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)


@pytest.mark.parametrize("layers", ["imgfast", "stock"])
def test_saved_is_loaded_bit_for_bit(saved, layers):
    loaded = load_checkpoint(saved, layers)
    expected = build_classifier(CONFIG, seed=7).state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items()
    )
    assert loaded.config == CONFIG
    assert loaded.training == {"data": "here", "accuracy": 0.5}
    assert not loaded.model.training
    assert [file.name for file in saved.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_of_a_network_is_kept(tmp_path, monkeypatch, dtype):
    """Batch norm keeps a count in int64; a network may be of half precision."""

    class Counted(Classifier):
        def __init__(self, config, layers="imgfast"):
            super().__init__(config, layers)
            self.norm = torch.nn.BatchNorm2d(4)
            self.to(dtype)

    monkeypatch.setattr(checkpoint, "Classifier", Counted)
    monkeypatch.setattr(checkpoint, "build_classifier", Counted)
    model = Counted(CONFIG)
    model.norm.num_batches_tracked += 12345678901
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, {})
    loaded = load_checkpoint(path).model.state_dict()
    assert loaded["norm.num_batches_tracked"].item() == 12345678901
    for name, value in model.state_dict().items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)
    header, values = parts(path)
    header["norm.num_batches_tracked"]["dtype"] = "F64"
    rewrite(path, header, values)
    with pytest.raises(CheckpointError, match=r"must be I64 \[\], got F64"):
        load_checkpoint(path)


def test_a_run_folder_means_its_last_checkpoint(saved):
    saved.rename(saved.with_name("last.safetensors"))
    assert load_checkpoint(saved.parent).path == saved.with_name("last.safetensors")
    with pytest.raises(CheckpointError, match=r"last\.safetensors: cannot be read"):
        load_checkpoint(saved.parent / "..")


def test_the_same_model_gives_the_same_bytes(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    loaded = load_checkpoint(saved)
    for _ in range(5):  # safetensors alone writes its texts in random order
        save_checkpoint(again, loaded.model, loaded.training)
        assert again.read_bytes() == saved.read_bytes()


def test_a_renamed_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = tmp_path / "model.safetensors"
    for content in (pickle.dumps(Trap()), pickle.dumps(Trap(), 0)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="must be a safetensors file"):
            load_checkpoint(path)
    torch.save({"model": Trap()}, path)
    with pytest.raises(CheckpointError, match="must be a safetensors file"):
        load_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


def test_nothing_in_the_package_unpickles():
    loaders = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
    files = list(Path(imgfast.__path__[0]).rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not loaders & {name.name.split(".")[0] for name in node.names}, file
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in loaders, file
                names = {name.name for name in node.names}
                assert node.module not in {"torch", "numpy"} or "load" not in names, file
            elif isinstance(node, ast.keyword):
                assert node.arg not in {"allow_pickle", "weights_only"}, file
            elif isinstance(node, ast.Attribute) and node.attr == "load":
                # torch.load and numpy.load; safetensors.torch.load holds no code.
                assert ast.unparse(node.value) not in {"torch", "np", "numpy"}, file


def test_truncation_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    for length in [*range(0, 4096, 64), *range(4096, len(whole), 20_011), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="bytes of values"):
        load_checkpoint(saved)


def test_one_flipped_bit_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    for position in range(0, len(whole), 4999):
        altered = bytearray(whole)
        altered[position] ^= 1
        saved.write_bytes(altered)
        with pytest.raises(CheckpointError):
            load_checkpoint(saved)


def test_swapped_tensors_are_refused(saved):
    # Two tensors of one shape change places; the shapes stay right, the SHA-256 does not.
    wide = dict(CONFIG.to_dict(), widths=[32, 32, 32])
    model = build_classifier(type(CONFIG).from_dict(wide))
    save_checkpoint(saved, model, {})
    header, values = parts(saved)
    first, second = header["stages.conv2.weight"], header["stages.conv3.weight"]
    header["stages.conv2.weight"], header["stages.conv3.weight"] = second, first
    rewrite(saved, header, values)
    with pytest.raises(CheckpointError, match="SHA-256 must be"):
        load_checkpoint(saved)


def test_another_configuration_or_history_is_refused(saved):
    header, values = parts(saved)
    for key, old, new in (("config", "coat", "boat"), ("training", "0.5", "0.9")):
        altered = json.loads(json.dumps(header))
        altered["__metadata__"][key] = header["__metadata__"][key].replace(old, new)
        rewrite(saved, altered, values)
        with pytest.raises(CheckpointError, match="SHA-256 must be"):
            load_checkpoint(saved)


@pytest.mark.parametrize(
    "change, rule",
    [
        (lambda header: header.pop("head.bias"), r"differs in \['head.bias'\]"),
        (lambda header: header.update(extra=header["head.bias"]), r"differs in \['extra'\]"),
        (lambda header: header["head.bias"].update(dtype="F16"), r"must be F32 \[3\], got F16"),
        (lambda header: header["head.bias"].update(shape=[1, 3]), r"got F32 \[1, 3\]"),
        (lambda header: header.update({"head.bias": 5}), "got None None"),
        (lambda header: header.pop("__metadata__"), "it does not say so"),
        (lambda header: header["__metadata__"].update(format="other"), "it does not say so"),
        (lambda header: header["__metadata__"].update(config="{}"), "configuration is not valid"),
        (lambda header: header["__metadata__"].update(config="[" * 9999), "not valid"),
        (lambda header: header["__metadata__"].update(training="[]"), "not valid"),
        (lambda header: header["head.bias"].update(data_offsets=[4, 16]), "safetensors file"),
        (lambda header: header["head.bias"].update(data_offsets=[-4, 8]), "safetensors file"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(saved, change, rule):
    header, values = parts(saved)
    change(header)
    rewrite(saved, header, values)
    with pytest.raises(CheckpointError, match=rule):
        load_checkpoint(saved)


def test_a_huge_header_is_refused_before_it_is_read(saved):
    header, values = parts(saved)
    entry = header["head.bias"]
    rewrite(saved, {**header, **{f"t{n}": entry for n in range(100_000)}}, values)
    with pytest.raises(CheckpointError, match=f"header of at most {MAX_HEADER_BYTES}"):
        load_checkpoint(saved)
    rewrite(saved, {str(n): 0 for n in range(20_000)}, values)
    with pytest.raises(CheckpointError, match="must list 1 to 10000 tensors"):
        load_checkpoint(saved)
    with saved.open("wb") as file:  # says 2^63 bytes, and is sparse
        file.write(struct.pack("<Q", 2**63))
        file.truncate(1 << 40)
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match="must be at most"):
        load_checkpoint(saved)
    assert time.perf_counter() - started < 1


def test_a_configuration_of_terabytes_allocates_nothing(saved):
    header, values = parts(saved)
    large = dict(CONFIG.to_dict(), widths=[8192] * 3, image_size=4096)
    header["__metadata__"]["config"] = json.dumps(large)
    rewrite(saved, header, values)
    with pytest.raises(CheckpointError, match="must be F32"):
        load_checkpoint(saved)


def test_weights_that_are_not_numbers_are_refused(saved):
    model = build_classifier(CONFIG)
    with torch.no_grad():
        model.head.bias[1] = float("nan")
    save_checkpoint(saved, model, {})
    with pytest.raises(CheckpointError, match=r"'head\.bias' must be finite"):
        load_checkpoint(saved)


def test_other_safetensors_files_are_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3), "b": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="must be a checkpoint that imgfast wrote"):
        load_checkpoint(path)


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """A writer is killed with SIGKILL thirty times; each time one of its two models is there."""
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build_classifier(CONFIG), {"round": 0})
    # The writers are forked from one process that has no threads yet: no import per kill.
    script = textwrap.dedent(
        """
        import os, random, signal, sys, time
        import torch
        torch.set_num_threads(1)
        from imgfast.engine import load_checkpoint, save_checkpoint
        path, dice = sys.argv[1], random.Random(0)
        models = [load_checkpoint(path).model, load_checkpoint(path).model]
        with torch.no_grad():
            models[1].head.bias += 1
        rounds = set()
        for _ in range(30):
            writer = os.fork()
            if writer == 0:
                number = load_checkpoint(path).training["round"]
                while True:
                    number += 1
                    save_checkpoint(path, models[number % 2], {"round": number})
            time.sleep(dice.uniform(0.01, 0.12))
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
            found = load_checkpoint(path)
            number = found.training["round"]
            assert torch.equal(found.model.head.bias, models[number % 2].head.bias)
            rounds.add(number)
        print(len(rounds))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10  # the writers did get somewhere


def test_a_failed_write_leaves_the_old_file_and_no_litter(saved, monkeypatch):
    before = hashlib.sha256(saved.read_bytes()).digest()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, build_classifier(CONFIG), {})
    assert hashlib.sha256(saved.read_bytes()).digest() == before
    assert [file.name for file in saved.parent.iterdir()] == ["model.safetensors"]
