"""Pictures of the user's: a folder with one sub-folder per class, or any list of files."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from imgfast.data.errors import DataError, ImageError
from imgfast.data.imageset import ImageSet, channel_statistics
from imgfast.data.picture import SUFFIXES, load_picture, to_grey

_MAX_STORE_BYTES = 4 << 30
_MAX_CLASSES = 10_000
_MAX_THREADS = 4  # each may hold a picture of 50 million pixels

Progress = Callable[[int, int], None]


def load_folder(
    folder: str | Path,
    size: int = 32,
    channels: int | None = None,
    classes: tuple[str, ...] | None = None,
    on_picture: Progress | None = None,
) -> ImageSet:
    """Every picture below a folder that has one sub-folder per class.

    Args:
        folder: its sub-folders, sorted by name, are the classes; hidden ones are passed over.
        size: height and width of the pictures in the set.
        channels: 3, 1 (luma), or ``None``: 1 if every picture is grey, else 3.
        classes: classes of a model; sub-folders must be among them. Default: the sub-folders.
        on_picture: called with (read so far, all) after each picture.

    Returns:
        The set. Pictures that cannot be read are left out and listed in ``skipped``.

    Raises:
        DataError: no such folder, no sub-folder, a class without a readable picture, a class the
            model does not know, or pictures that would take more than 4 GiB.
    """
    root = Path(folder)
    names = _sub_folders(root)
    if classes is not None and not set(names) <= set(classes):
        unknown = sorted(set(names) - set(classes))[0]
        raise DataError(f"{root}: sub-folder {unknown!r} must be a class of the model: {classes}")
    classes = classes or names
    files, labels = [], []
    for name in names:
        found = find_pictures(root / name)
        files += found
        labels += [classes.index(name)] * len(found)
    if len(files) * 3 * size * size > _MAX_STORE_BYTES:
        raise DataError(
            f"{root}: pictures must take at most {_MAX_STORE_BYTES} bytes in memory, {len(files)} "
            f"of 3x{size}x{size} do not; choose a smaller picture size"
        )
    images, kept, skipped = read_pictures(files, size, on_picture)
    kept_labels = torch.tensor([labels[index] for index in kept], dtype=torch.int64)
    for name in names:
        if not bool((kept_labels == classes.index(name)).any()):
            hint = f"; first error: {skipped[0]}" if skipped else ""
            raise DataError(f"{root / name}: must hold at least one readable picture{hint}")
    tensor = torch.from_numpy(with_channels(images, channels))
    return ImageSet(
        str(folder), tensor, kept_labels, classes, *channel_statistics(tensor), tuple(skipped)
    )


def read_pictures(
    files: list[Path], size: int, on_picture: Progress | None = None
) -> tuple[np.ndarray, list[int], list[ImageError]]:
    """Decode files in a few threads.

    Returns:
        uint8 ``[N, 3, size, size]`` of the readable pictures, their positions in ``files``, and
        the errors of the others; each in the order of ``files``.
    """

    def load(path: Path) -> np.ndarray | ImageError:
        try:
            return load_picture(path, size)
        except ImageError as error:
            return error

    images: list[np.ndarray] = []
    kept: list[int] = []
    errors: list[ImageError] = []
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        for index, result in enumerate(pool.map(load, files)):
            if isinstance(result, ImageError):
                errors.append(result)
            else:
                images.append(result)
                kept.append(index)
            if on_picture is not None:
                on_picture(index + 1, len(files))
    stacked = np.stack(images) if images else np.empty((0, 3, size, size), np.uint8)
    return stacked, kept, errors


def with_channels(images: np.ndarray, channels: int | None) -> np.ndarray:
    """uint8 ``[N, 3, H, W]`` as ``[N, channels, H, W]``; ``None`` drops colour where none is."""
    if channels is None:
        grey = bool((images == images[:, :1]).all())
        channels = 1 if grey else 3
    if channels == 3:
        return images
    if channels == 1:
        return np.stack([to_grey(image) for image in images]) if len(images) else images[:, :1]
    raise DataError(f"channels must be 1 or 3, got {channels}")


def find_pictures(folder: Path) -> list[Path]:
    """Files below a folder whose names end as a picture's, sorted; hidden ones are passed over."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(found)


def expand(paths: Iterable[str | Path]) -> tuple[list[Path], set[Path]]:
    """The files that a list of files, folders and glob patterns means, each once.

    Returns:
        The files in order, and those among them that were named one by one.

    Raises:
        DataError: a folder or a pattern that holds no picture.
    """
    files: dict[Path, None] = {}
    named: set[Path] = set()
    for item in paths:
        path = Path(item)
        if path.is_dir():
            found = find_pictures(path)
        elif not path.exists() and glob.has_magic(str(item)):
            found = sorted(
                Path(match)
                for match in glob.glob(str(item), recursive=True)
                if Path(match).is_file()
            )
        else:
            found = [path]
            named.add(path)
        if not found:
            raise DataError(f"{item}: must hold or match at least one picture")
        files.update(dict.fromkeys(found))
    return list(files), named


def _sub_folders(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise DataError(f"{root}: must be a folder with one sub-folder per class")
    names = tuple(
        sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
    )
    if not 2 <= len(names) <= _MAX_CLASSES:
        raise DataError(
            f"{root}: must have 2 to {_MAX_CLASSES} sub-folders, one per class, got {len(names)}"
        )
    return names
