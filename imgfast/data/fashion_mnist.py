"""Fashion-MNIST: the subset inside the package, and the full set, installed or downloaded.

The subset is the first 1,400 training pictures of each class, in the official order: 14,000 of
60,000, none of the official 10,000 test pictures. It lies beside this file as two IDX files inside
xz (5.3 MB); ``make_subset.py`` wrote them. What is pinned below are SHA-256 sums of the decoded
arrays, so that any lossless container of the same pictures is accepted and no other picture is.

Source: Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747; MIT licence, ``fashion-mnist-LICENSE``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from imgfast.data.atomic import move_into_place
from imgfast.data.cache import cache_folder
from imgfast.data.decode import Progress
from imgfast.data.download import download
from imgfast.data.errors import DataError
from imgfast.data.idx import read_idx
from imgfast.data.imageset import ImageSet

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MEAN, STD = (0.2860,), (0.3530,)
PICTURES_PER_CLASS = 1400

SUBSET_IMAGES = Path(__file__).with_name("fashion-mnist-subset-images-idx3-ubyte.xz")
SUBSET_LABELS = Path(__file__).with_name("fashion-mnist-subset-labels-idx1-ubyte.xz")

# The full set is looked for in the folder this variable names, else where Debian's package
# dataset-fashion-mnist puts it, else where it is downloaded to.
FOLDER_VARIABLE = "IMGFAST_FASHION_MNIST"
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# The makers' addresses. What arrives is checked by the sums below, so that HTTP does.
_ADDRESSES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
_MAX_DOWNLOAD_BYTES = 64 << 20  # the largest of the four has 26 million bytes

# SHA-256 of the decoded values, without the IDX header.
_SUBSET_IMAGES_SUM = "53109073cce0f1246a1b83802defdeb023d32d186e547fd85dee1cf7439a17fb"
_SUBSET_LABELS_SUM = "7b2b5b86d09a1cdcf445d8b0bf0f37e931956e304e6f36ef07b819e9b8310340"
_FULL = {
    "train-images-idx3-ubyte": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "train-labels-idx1-ubyte": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "t10k-images-idx3-ubyte": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "t10k-labels-idx1-ubyte": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}


def load_subset() -> ImageSet:
    """The 14,000 pictures inside the package.

    Raises:
        DataError: the files are not the ones that were shipped.
    """
    images = _verified(SUBSET_IMAGES, 3, _SUBSET_IMAGES_SUM)
    labels = _verified(SUBSET_LABELS, 1, _SUBSET_LABELS_SUM)
    return _image_set("fashion-mnist", images, labels)


def load_full(fetch: bool = False, on_progress: Progress | None = None) -> ImageSet:
    """The official 60,000 training and then 10,000 test pictures.

    Args:
        fetch: download them, 31 MB, into the cache folder where they are not installed.
        on_progress: called with (bytes, all bytes) of each file on its way.

    Raises:
        DataError: not installed and not to be downloaded, or not the official pictures.
    """
    folder = find_full(fetch, on_progress)
    (images, test_images), (labels, test_labels) = (
        [_verified(_file(folder, name), rank, _FULL[name]) for name in names]
        for rank, names in (
            (3, ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")),
            (1, ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")),
        )
    )
    return _image_set(
        "fashion-mnist-full",
        np.concatenate([images, test_images]),
        np.concatenate([labels, test_labels]),
        official_test=len(images),
    )


def find_full(fetch: bool = False, on_progress: Progress | None = None) -> Path:
    """The folder that holds the four official files, plain or gzip.

    Args:
        fetch, on_progress: as for :func:`load_full`.

    Raises:
        DataError: there is none; the message says how to get it.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    installed = Path(named) if named else _DEBIAN_FOLDER
    if _holds_all(installed):
        return installed
    downloaded = cache_folder() / "fashion-mnist"
    if fetch and not _holds_all(downloaded):
        _download(downloaded, on_progress)
    if _holds_all(downloaded):
        return downloaded
    raise DataError(
        f"fashion-mnist-full: the four official files must lie in {installed}, they do not; "
        "download them with `imgfast data fashion-mnist-full --download`, "
        f"install Debian's dataset-fashion-mnist, set {FOLDER_VARIABLE} to their folder, "
        "or use the subset that ships with imgfast, fashion-mnist"
    )


def _holds_all(folder: Path) -> bool:
    return all(_file(folder, name).is_file() for name in _FULL)


def _download(folder: Path, on_progress: Progress | None) -> None:
    """Fetch what is missing; a file gets its name only after its values were checked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            for name, expected in _FULL.items():
                if _file(folder, name).is_file():
                    continue
                path = Path(temporary, f"{name}.gz")
                rank = 3 if "images" in name else 1
                download(
                    [address + path.name for address in _ADDRESSES],
                    path,
                    _MAX_DOWNLOAD_BYTES,
                    lambda got, rank=rank, expected=expected: _verified(got, rank, expected),
                    on_progress,
                )
                move_into_place(path, folder / path.name)
    except OSError as error:
        raise DataError(f"fashion-mnist-full: cannot be stored in {folder}: {error}") from error


def _file(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() else folder / name


def _verified(path: Path, rank: int, expected: str) -> np.ndarray:
    values = read_idx(path, rank)
    found = hashlib.sha256(values).hexdigest()
    if found != expected:
        raise DataError(f"{path}: SHA-256 of the values must be {expected}, got {found}")
    return values


def _image_set(
    name: str, images: np.ndarray, labels: np.ndarray, official_test: int | None = None
) -> ImageSet:
    return ImageSet(
        name,
        torch.from_numpy(images.copy()).unsqueeze(1),  # [N, 1, 28, 28]
        torch.from_numpy(labels.astype(np.int64)),
        CLASSES,
        MEAN,
        STD,
        official_test=official_test,
    )
