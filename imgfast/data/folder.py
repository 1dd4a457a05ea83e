"""Pictures of the user's: a folder with one sub-folder per class, or any list of files."""

from __future__ import annotations

import bisect
import glob
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from imgfast.data.cache import decode_cached
from imgfast.data.decode import Progress, decode_files, with_channels
from imgfast.data.errors import DataError, ImageError
from imgfast.data.imageset import MAX_BYTES, ImageSet, Source, channel_statistics
from imgfast.data.picture import SUFFIXES

_MAX_CLASSES = 10_000

# Names of the parts of a set that its makers have split.
_TRAIN, _VALIDATION, _TEST = "train", ("val", "valid", "validation"), "test"


def load_folder(
    folder: str | Path,
    size: int = 32,
    channels: int | None = None,
    classes: tuple[str, ...] | None = None,
    on_picture: Progress | None = None,
    cache: bool = True,
) -> ImageSet:
    """Every picture below a folder that has one sub-folder per class.

    A folder that has nothing but the sub-folders ``train`` and ``test`` or ``val`` (``valid``,
    ``validation``), or all three, with class folders in each, is split already: the set keeps
    that split. Of only two parts the second counts as test.

    Args:
        folder: its sub-folders, sorted by name, are the classes; hidden ones are passed over.
        size: height and width of the pictures in the set.
        channels: 3, 1 (luma), or ``None``: 1 if every picture is grey, else 3.
        classes: classes of a model; sub-folders must be among them. Default: the sub-folders.
        on_picture: called with (read so far, all) after each picture.
        cache: keep the decoded pictures, and use those kept earlier. They take ``3 size^2`` bytes
            a picture, a third of it where all are grey, 4 GiB at most; a changed folder replaces
            its own earlier ones, and nothing else deletes them but
            :func:`imgfast.data.cache.clear_cache` (``imgfast data --clear-cache``).

    Returns:
        The set. Pictures that cannot be read are left out and listed in ``skipped``. From the
        cache, the pictures are mapped from its file, not copied, unless ``channels`` asks for
        others than were stored.

    Raises:
        DataError: no such folder, no sub-folder, a class without a readable picture, a class the
            model does not know, or pictures that would take more than 4 GiB.
    """
    root = Path(folder)
    parts = _parts(root)
    names = _sub_folders(parts[0])
    if classes is not None and not set(names) <= set(classes):
        unknown = sorted(set(names) - set(classes))[0]
        raise DataError(f"{root}: sub-folder {unknown!r} must be a class of the model: {classes}")
    classes = classes or names

    files: list[Path] = []
    labels: list[int] = []
    starts: list[int] = []  # of each part in the list of files
    for part in parts:
        starts.append(len(files))
        for name in _sub_folders(part):
            if name not in names:
                raise DataError(f"{part / name}: must be a class of {parts[0]} too: {names}")
            found = find_pictures(part / name)
            files += found
            labels += [classes.index(name)] * len(found)
    if len(files) * 3 * size * size > MAX_BYTES:
        raise DataError(
            f"{root}: pictures must take at most {MAX_BYTES} bytes in memory, {len(files)} "
            f"of 3x{size}x{size} do not; choose a smaller picture size"
        )
    if cache:
        decoded = decode_cached(root, files, size, on_picture)
    else:
        decoded = decode_files(files, size, on_picture)
    kept = decoded.kept
    starts = [bisect.bisect_left(kept, start) for start in starts]  # among the readable ones
    kept_labels = torch.tensor([labels[index] for index in kept], dtype=torch.int64)
    _check_complete(parts, starts, names, classes, kept_labels, decoded.errors)

    tensor = torch.from_numpy(with_channels(decoded.images, channels))
    official_test = starts[-1] if len(parts) > 1 else None
    return ImageSet(
        str(folder),
        tensor,
        kept_labels,
        classes,
        *channel_statistics(tensor[:official_test]),
        tuple(decoded.errors),
        official_test,
        starts[1] if len(parts) == 3 else None,
        tuple(
            Source(files[index].relative_to(root).as_posix(), *header)
            for index, header in zip(kept, decoded.headers, strict=True)
        ),
    )


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


def _parts(root: Path) -> list[Path]:
    """The official parts of a set, training first and test last, or the folder as a whole."""
    if not root.is_dir():
        raise DataError(f"{root}: must be a folder with one sub-folder per class")
    found = {path.name.lower(): path for path in _visible_folders(root)}
    validation = [name for name in _VALIDATION if name in found]
    names = [name for name in (_TRAIN, *validation, _TEST) if name in found]
    # Folders that hold pictures themselves are classes, whatever they are called.
    whole = _TRAIN not in found or len(names) < 2 or len(names) < len(found)
    if whole or not all(_visible_folders(found[name]) for name in names):
        return [root]
    if len(validation) > 1:
        raise DataError(f"{root}: must have one validation part, got {' and '.join(validation)}")
    return [found[name] for name in names]


def _sub_folders(root: Path) -> tuple[str, ...]:
    names = tuple(path.name for path in _visible_folders(root))
    if not 2 <= len(names) <= _MAX_CLASSES:
        raise DataError(
            f"{root}: must have 2 to {_MAX_CLASSES} sub-folders, one per class, got {len(names)}"
        )
    return names


def _visible_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _check_complete(
    parts: list[Path],
    starts: list[int],
    names: tuple[str, ...],
    classes: tuple[str, ...],
    labels: torch.Tensor,
    errors: list[ImageError],
) -> None:
    """Every class can be trained, and every part holds something."""
    hint = f"; first error: {errors[0]}" if errors else ""
    ends = [*starts[1:], len(labels)]
    present = set(labels[: ends[0]].tolist())
    for name in names:
        if classes.index(name) not in present:
            raise DataError(f"{parts[0] / name}: must hold at least one readable picture{hint}")
    for part, start, end in zip(parts, starts, ends, strict=True):
        if start == end:
            raise DataError(f"{part}: must hold at least one readable picture{hint}")
