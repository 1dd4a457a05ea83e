"""The shipped subset is the one that is pinned, and the full set is used where it is installed."""

import shutil

import pytest
import torch

from imgfast.data import DataError, fashion_mnist, load_data, split
from imgfast.data.make_subset import first_of_each_class


def test_subset_is_stratified_real_and_small(subset):
    assert subset.images.shape == (14_000, 1, 28, 28)
    assert subset.labels.bincount().tolist() == [1400] * 10
    # The constants of the whole set describe the subset too.
    pixels = subset.images.float() / 255
    assert abs(pixels.mean().item() - 0.2860) < 0.003
    assert abs(pixels.std().item() - 0.3530) < 0.003
    # The first five labels of the official training set, whose order the subset keeps.
    assert subset.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert fashion_mnist.SUBSET_IMAGES.stat().st_size < 6_000_000
    licence = fashion_mnist.SUBSET_IMAGES.with_name("fashion-mnist-LICENSE").read_text()
    assert "Zalando SE" in licence and "MIT License" in licence


def test_one_changed_pixel_is_noticed(tmp_path, monkeypatch):
    images = fashion_mnist.read_idx(fashion_mnist.SUBSET_IMAGES, 3).copy()
    images[777, 14, 14] ^= 1
    altered = tmp_path / "images"
    header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape)
    altered.write_bytes(header + images.tobytes())
    monkeypatch.setattr(fashion_mnist, "SUBSET_IMAGES", altered)
    with pytest.raises(DataError, match="SHA-256 of the values must be"):
        load_data("fashion-mnist")


def test_absent_full_set_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv(fashion_mnist.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"install Debian's dataset-fashion-mnist.*IMGFAST_FASHION"):
        load_data("fashion-mnist-full")


@pytest.fixture(scope="module")
def full_folder():
    try:
        return fashion_mnist.find_full()
    except DataError:
        pytest.skip("the full Fashion-MNIST is not installed here")


def test_full_set_has_the_official_split_and_contains_the_subset(full_folder, subset):
    full = load_data("fashion-mnist-full")
    train, held_out = split(full, seed=5)
    assert (len(train), len(held_out)) == (60_000, 10_000)
    assert held_out.labels.bincount().tolist() == [1000] * 10
    picked = torch.from_numpy(first_of_each_class(train.labels.numpy(), 1400))
    assert torch.equal(train.images[picked], subset.images)
    assert torch.equal(train.labels[picked], subset.labels)


def test_a_wrong_file_in_the_full_set_is_refused(full_folder, tmp_path, monkeypatch):
    for file in full_folder.iterdir():
        shutil.copy(file, tmp_path)
    # Same size and rank, other pictures' labels.
    labels = fashion_mnist.read_idx(fashion_mnist._file(full_folder, "t10k-labels-idx1-ubyte"), 1)
    header = b"\x00\x00\x08\x01" + (10_000).to_bytes(4, "big")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink(missing_ok=True)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(header + labels[::-1].tobytes())
    monkeypatch.setenv(fashion_mnist.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="SHA-256"):
        load_data("fashion-mnist-full")
