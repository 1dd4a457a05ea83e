"""A data set by the name the user gives it."""

from __future__ import annotations

from imgfast.data.decode import Progress
from imgfast.data.fashion_mnist import load_full, load_subset
from imgfast.data.folder import load_folder
from imgfast.data.imageset import ImageSet
from imgfast.data.torchvision_sets import PREFIX, load_torchvision

SUBSET, FULL = "fashion-mnist", "fashion-mnist-full"


def load_data(
    name: str,
    size: int | None = None,
    channels: int | None = None,
    classes: tuple[str, ...] | None = None,
    on_picture: Progress | None = None,
    cache: bool = True,
    download: bool = False,
) -> ImageSet:
    """Load a whole data set.

    Args:
        name: ``fashion-mnist`` (the subset in the package), ``fashion-mnist-full`` (the official
            70,000 pictures, installed or downloaded), ``torchvision:`` and the name of one of its
            sets, or a folder with one sub-folder per class.
        size, channels, classes, on_picture, cache: for a folder, as in
            :func:`imgfast.data.folder.load_folder`; ``size`` is 32 where it is not given. For a
            set of torchvision, as in :func:`imgfast.data.torchvision_sets.load_torchvision`.
        download: fetch what is not there, into the cache folder; nothing is fetched unasked.

    Raises:
        DataError: the set cannot be found or read.
    """
    if name == SUBSET:
        return load_subset()
    if name == FULL:
        return load_full(download, on_picture)
    if name.startswith(PREFIX):
        return load_torchvision(name, size, channels, on_picture, download)
    return load_folder(name, size or 32, channels, classes, on_picture, cache)
