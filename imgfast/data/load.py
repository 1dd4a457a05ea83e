"""A data set by the name the user gives it."""

from __future__ import annotations

from imgfast.data.fashion_mnist import load_full, load_subset
from imgfast.data.folder import Progress, load_folder
from imgfast.data.imageset import ImageSet

SUBSET, FULL = "fashion-mnist", "fashion-mnist-full"


def load_data(
    name: str,
    size: int | None = None,
    channels: int | None = None,
    classes: tuple[str, ...] | None = None,
    on_picture: Progress | None = None,
) -> ImageSet:
    """Load a whole data set.

    Args:
        name: ``fashion-mnist`` (the subset in the package), ``fashion-mnist-full`` (the official
            70,000 pictures where they are installed), or a folder with one sub-folder per class.
        size, channels, classes, on_picture: for a folder, as in
            :func:`imgfast.data.folder.load_folder`; ``size`` is 32 where it is not given.

    Raises:
        DataError: the set cannot be found or read.
    """
    if name == SUBSET:
        return load_subset()
    if name == FULL:
        return load_full()
    return load_folder(name, size or 32, channels, classes, on_picture)
