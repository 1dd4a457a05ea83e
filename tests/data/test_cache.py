"""The cache of a decoded folder: used when nothing changed, and never when anything did."""

import os
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from imgfast.data import ImageError, cache, cache_folder, clear_cache, decode, load_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMGFAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """How many files each call of the decoder was given."""
    calls = []
    decode_files = cache.decode_files

    def counted(files, *arguments):
        calls.append(len(files))
        return decode_files(files, *arguments)

    monkeypatch.setattr(cache, "decode_files", counted)
    return calls


@pytest.fixture
def folder(tmp_path):
    """Two classes of three coloured pictures, 12 x 9, and one file that is none."""
    dice = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(3):
            pixels = dice.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    (tmp_path / "set" / "b" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "set"


def stored() -> list:
    return sorted((cache_folder() / "decoded").iterdir())


def same(one, other) -> bool:
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and list(map(str, one.skipped)) == list(map(str, other.skipped))
        and (one.classes, one.mean, one.std) == (other.classes, other.mean, other.std)
        and one.sources == other.sources
    )


def test_the_second_time_nothing_is_decoded_but_what_was_unreadable(folder, decoded):
    plain = load_folder(folder, 8, cache=False)
    assert not cache_folder().exists()
    first = load_folder(folder, 8)
    calls = []
    second = load_folder(folder, 8, on_picture=lambda *counts: calls.append(counts))
    assert decoded == [7, 1] and calls == [(7, 7)]
    assert same(plain, first) and same(first, second)
    assert second.sources[0] == ("a/0.png", "PNG", 12, 9)
    assert [error.path for error in second.skipped] == [str(folder / "b" / "bad.png")]
    # Other channels and class numbers come from the same file.
    grey = load_folder(folder, 8, channels=1, classes=("c", "b", "a"))
    assert grey.labels.tolist() == [2, 2, 2, 1, 1, 1] and grey.images.shape[1] == 1
    assert decoded == [7, 1, 1]


def test_pictures_are_mapped_and_the_file_is_safe_from_writes(folder):
    load_folder(folder, 8)
    before = stored()[0].read_bytes()
    data = load_folder(folder, 8)
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0] for line in maps if stored()[0].name in line]
    spans = [tuple(int(end, 16) for end in span.split("-")) for span in spans]
    assert any(low <= data.images.data_ptr() < high for low, high in spans)
    data.images.zero_()
    assert stored()[0].read_bytes() == before
    assert int(load_folder(folder, 8).images.max()) > 0


def test_grey_pictures_are_stored_with_one_channel(tmp_path, subset):
    for name, label in (("boot", 9), ("shirt", 6)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in (subset.labels == label).nonzero().flatten()[:2].tolist():
            image = Image.fromarray(subset.images[index, 0].numpy())
            image.save(tmp_path / "set" / name / f"{index}.png")
    load_folder(tmp_path / "set", 28)
    assert safetensors.torch.load_file(stored()[0])["images"].shape == (4, 1, 28, 28)
    for channels in (None, 1, 3):
        data = load_folder(tmp_path / "set", 28, channels)
        assert same(data, load_folder(tmp_path / "set", 28, channels, cache=False))


def set_back(path, change):
    """Change a file so that size and modification time tell nothing."""
    status = path.stat()
    time.sleep(0.02)  # beyond the resolution of the change time
    change(path)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a" / "0.png").rename(root / "a" / "9.png"),
        lambda root: (root / "a" / "0.png").unlink(),
        lambda root: Image.new("RGB", (9, 9), "red").save(root / "a" / "9.png"),
        lambda root: os.utime(root / "a" / "0.png", (1, 1)),
        lambda root: (root / "b" / "1.png").write_bytes((root / "b" / "2.png").read_bytes()),
        lambda root: (root / "b").rename(root / "c"),
        lambda root: set_back(root / "b" / "bad.png", lambda path: path.write_bytes(b"A" * 10)),
    ],
)
def test_any_change_of_the_folder_decodes_anew(folder, decoded, change):
    load_folder(folder, 8)
    change(folder)
    data = load_folder(folder, 8)
    assert len(decoded) == 2 and decoded[1] > 1
    assert same(data, load_folder(folder, 8, cache=False))
    assert len(stored()) == 1  # the new pictures took the old ones' place
    load_folder(folder, 16)
    assert decoded[2] > 1 and len(stored()) == 2  # another size is another file


def test_a_damaged_or_altered_cache_is_made_again(folder, decoded):
    expected = load_folder(folder, 8)
    path = stored()[0]
    whole = path.read_bytes()
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load(whole)
    other = {**tensors, "images": tensors["images"].flip(0).contiguous()}
    short = {**tensors, "images": tensors["images"][:-1].contiguous()}
    typed = {**tensors, "images": tensors["images"].view(torch.int8)}
    deep = {**tensors, "images": tensors["images"].to(torch.bfloat16)}
    lacking = {name: tensors[name] for name in ("images", "kept")}
    wrong = [safetensors.torch.save(t, metadata) for t in (other, short, typed, deep, lacking)]
    wrong += [safetensors.torch.save(tensors), b"", b"\x80\x04\x95 a pickle", whole + b"\0"]
    wrong += [whole[:length] for length in range(0, len(whole), 97)]
    for at in range(8, len(whole), 61):
        wrong.append(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    remade = 0
    for content in wrong:
        decoded.clear()
        path.write_bytes(content)
        assert same(load_folder(folder, 8), expected)
        # A letter of the header's free text is all that may change unnoticed.
        remade += decoded[0] == 7
        if decoded[0] != 7:
            assert content[8:300] != whole[8:300] and len(content) == len(whole)
    assert remade >= len(wrong) - 3


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path, monkeypatch):
    expected = load_folder(folder, 8, cache=False)
    (tmp_path / "file").write_bytes(b"")
    for place in ("/proc/no-such-folder", tmp_path / "file"):
        monkeypatch.setenv("IMGFAST_CACHE", str(place))
        assert same(load_folder(folder, 8), expected)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("IMGFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", full)
    assert same(load_folder(folder, 8), expected)
    assert stored() == []  # no half of a file, no temporary one


def test_a_file_that_was_unreadable_for_a_while_is_found(folder, monkeypatch):
    """As after a network that failed: the file is as before, but can be read."""
    read = decode.decode_picture

    def failing(path, size):
        if path.name == "1.png":
            raise ImageError(path, "cannot be read: Input/output error")
        return read(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode_picture", failing)
        assert len(load_folder(folder, 8)) == 4
    assert same(load_folder(folder, 8), load_folder(folder, 8, cache=False))


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("IMGFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "imgfast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "imgfast"


def test_clearing_deletes_what_was_decoded_and_nothing_else(folder):
    assert clear_cache() == (0, 0)
    load_folder(folder, 8)
    load_folder(folder, 16)
    (cache_folder() / "fashion-mnist").mkdir()
    (cache_folder() / "fashion-mnist" / "kept").write_bytes(b"x")
    (cache_folder() / "decoded" / "notes.txt").write_bytes(b"x")
    (cache_folder() / "decoded" / ".x.safetensors.1.tmp").write_bytes(b"left by a crash")
    count, freed = clear_cache()
    assert count == 3 and freed > 6 * 3 * (8 * 8 + 16 * 16)
    assert [path.name for path in stored()] == ["notes.txt"]
    assert (cache_folder() / "fashion-mnist" / "kept").exists()
