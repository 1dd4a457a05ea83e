"""Make the Fashion-MNIST subset that ships in the package from the full set.

``python -m imgfast.data.make_subset [FOLDER]`` reads the official training files, plain or gzip,
from FOLDER (default: where ``fashion-mnist-full`` is found), takes the first 1,400 pictures of
each class in the official order, writes them beside this file and prints the SHA-256 sums that
``fashion_mnist.py`` pins. The result is the same bytes on every machine with the same liblzma.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np

from imgfast.data import fashion_mnist
from imgfast.data.idx import write_idx_xz


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the first ``count`` labels of each class."""
    picked = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(picked))


def main(folder: str | None = None) -> None:
    if folder is not None:
        os.environ[fashion_mnist.FOLDER_VARIABLE] = folder
    full = fashion_mnist.load_full()
    labels = full.labels[: full.official_test].numpy().astype(np.uint8)
    picked = first_of_each_class(labels, fashion_mnist.PICTURES_PER_CLASS)
    images = full.images.numpy()[picked, 0]
    for path, values in (
        (fashion_mnist.SUBSET_IMAGES, images),
        (fashion_mnist.SUBSET_LABELS, labels[picked]),
    ):
        write_idx_xz(Path(path), values)
        digest = hashlib.sha256(np.ascontiguousarray(values)).hexdigest()
        print(f"{path.name}: {values.shape}, {path.stat().st_size} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
