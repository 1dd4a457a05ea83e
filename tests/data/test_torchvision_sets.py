"""Sets of torchvision: its own files become the same pictures, labels and official parts."""

import sys

import numpy as np
import pytest
from PIL import Image

from imgfast.data import DataError, load_data, load_picture, torchvision_sets

datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(torchvision_sets.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def mnist_files(root, subset):
    """Pictures of the subset as the raw files of torchvision's FashionMNIST: 30 and 12."""
    (root / "FashionMNIST" / "raw").mkdir(parents=True)
    for part, start, end in (("train", 0, 30), ("t10k", 30, 42)):
        for kind, values in (
            ("images-idx3", subset.images[start:end, 0].numpy()),
            ("labels-idx1", subset.labels[start:end].numpy().astype(np.uint8)),
        ):
            header = bytes((0, 0, 8, values.ndim))
            header += b"".join(side.to_bytes(4, "big") for side in values.shape)
            path = root / "FashionMNIST" / "raw" / f"{part}-{kind}-ubyte"
            path.write_bytes(header + values.tobytes())


def test_pictures_labels_classes_and_official_parts(mnist_files, subset):
    calls = []
    data = load_data("torchvision:FashionMNIST", on_picture=lambda *counts: calls.append(counts))
    assert data.images.equal(subset.images[:42]) and data.labels.equal(subset.labels[:42])
    assert data.classes == subset.classes and data.official_test == 30
    assert data.mean == pytest.approx([subset.images[:30].double().mean().item() / 255], abs=1e-6)
    assert calls[-1] == (42, 42)
    assert load_data("torchvision:FashionMNIST", 14, 3).images.shape == (42, 3, 14, 14)


def test_a_set_of_one_part_without_files(monkeypatch):
    """FakeData: coloured noise, wider than high, whose labels torchvision draws."""
    options = {"size": 20, "image_size": (3, 20, 26), "num_classes": 4}
    monkeypatch.setitem(torchvision_sets._SETS, "FakeData", (options,))
    data = load_data("torchvision:FakeData", 20)
    made = datasets.FakeData(**options)
    for index in (0, 19):
        image, label = made[index]
        pixels = np.asarray(image).transpose(2, 0, 1)[:, :, 3:23]  # the central square
        assert np.array_equal(data.images[index], pixels) and data.labels[index] == label
    assert data.official_test is None
    assert data.classes == tuple(str(label) for label in range(int(data.labels.max()) + 1))
    assert (data.sources[0].width, data.sources[0].height) == (26, 20)
    assert load_data("torchvision:FakeData").images.shape == (20, 3, 32, 32)


def test_files_are_resized_as_the_users_own_and_a_bad_one_is_skipped(root):
    """EuroSAT: a folder of files, of which torchvision hands over what Pillow decodes."""
    dice = np.random.default_rng(0)
    for name in ("Forest", "River"):
        folder = root / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for number in range(3):
            pixels = dice.integers(0, 256, (40, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (root / "eurosat" / "2750" / "River" / "1.png").write_bytes(b"no picture")
    data = load_data("torchvision:EuroSAT", 24)
    assert data.classes == ("Forest", "River") and data.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(data.images[4], load_picture(folder / "2.png", 24))
    assert len(data.skipped) == 1 and "torchvision:EuroSAT/0/4: cannot be" in str(data.skipped[0])


@pytest.mark.parametrize(
    "name, rule",
    [
        ("torchvision:CIFAR10", "not found.*`imgfast data torchvision:CIFAR10 --download`"),
        ("torchvision:Food101", "not found.*`imgfast data torchvision:Food101 --download`"),
        ("torchvision:CocoDetection", "must be torchvision: and one of CIFAR10, "),
        ("torchvision:", "must be torchvision: and one of CIFAR10, "),
    ],
)
def test_what_is_not_there_is_one_line(name, rule):
    with pytest.raises(DataError, match=rule) as caught:
        load_data(name)
    assert "\n" not in str(caught.value)


def test_without_torchvision_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"needs torchvision.*run `pip install torchvision`"):
        load_data("torchvision:CIFAR10")


def test_download_is_passed_on_only_if_asked(root, monkeypatch):
    asked = []

    class Cifar(datasets.CIFAR10):
        def download(self):
            asked.append((self.root, self.train))
            raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR10", Cifar)
    for download in (False, True):
        with pytest.raises(DataError, match="no route to host" if download else "not found"):
            load_data("torchvision:CIFAR10", download=download)
    assert asked == [(root, True)]


def test_too_many_pixels_are_refused_before_any_is_made(mnist_files):
    with pytest.raises(DataError, match="42 of 3x10000x10000 do not"):
        load_data("torchvision:FashionMNIST", 10_000)


def test_every_name_is_a_set_with_those_parts():
    for name, parts in torchvision_sets._SETS.items():
        made = getattr(datasets, name)
        parameters = made.__init__.__code__.co_varnames[: made.__init__.__code__.co_argcount]
        for part in parts:
            known = set(parameters) | ({"train"} if name == "EMNIST" else set())
            assert set(part) <= known, name
