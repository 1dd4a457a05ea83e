"""Many files to one array of pictures, in a few threads; bad files are set aside with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imgfast.data.errors import DataError, ImageError
from imgfast.data.picture import Header, decode_picture, to_grey

_MAX_THREADS = 4  # each may hold a picture of 50 million pixels

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoded:
    """The readable ones of a list of files, and the errors of the others.

    Args:
        images: uint8 ``[N, C, size, size]``; ``C`` is 3, or 1 where no picture has a colour.
        kept: their positions in the list, ascending.
        headers: what their files say of them.
        errors: why the others cannot be read, in order.
    """

    images: np.ndarray
    kept: list[int]
    headers: list[Header]
    errors: list[ImageError]


def decode_files(files: Sequence[Path], size: int, on_picture: Progress | None = None) -> Decoded:
    """Decode files as :func:`imgfast.data.load_picture` does; ``images`` has 3 channels.

    Args:
        files: the files.
        size: height and width of the pictures.
        on_picture: called with (read so far, all) after each file.
    """

    def load(path: Path) -> tuple[np.ndarray, Header] | ImageError:
        try:
            return decode_picture(path, size)
        except ImageError as error:
            return error

    # Memory of pictures that turn out to be unreadable is never touched.
    images = np.empty((len(files), 3, size, size), np.uint8)
    kept: list[int] = []
    headers: list[Header] = []
    errors: list[ImageError] = []
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        for index, result in enumerate(pool.map(load, files)):
            if isinstance(result, ImageError):
                errors.append(result)
            else:
                images[len(kept)], header = result
                kept.append(index)
                headers.append(header)
            if on_picture is not None:
                on_picture(index + 1, len(files))
    return Decoded(images[: len(kept)], kept, headers, errors)


def read_pictures(
    files: list[Path], size: int, on_picture: Progress | None = None
) -> tuple[np.ndarray, list[int], list[ImageError]]:
    """Decode files in a few threads.

    Returns:
        uint8 ``[N, 3, size, size]`` of the readable pictures, their positions in ``files``, and
        the errors of the others; each in the order of ``files``.
    """
    decoded = decode_files(files, size, on_picture)
    return decoded.images, decoded.kept, decoded.errors


def with_channels(images: np.ndarray, channels: int | None) -> np.ndarray:
    """uint8 ``[N, 1 or 3, H, W]`` as ``[N, channels, H, W]``; ``None`` drops colour where none is.

    Colour becomes grey by its luma, grey becomes colour with three equal channels.
    """
    if channels is None:
        grey = all(bool((image == image[:1]).all()) for image in images)
        channels = 1 if grey else 3
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    if channels == images.shape[1]:
        return images
    if channels == 3:
        return images.repeat(3, axis=1)
    luma = np.empty((len(images), 1, *images.shape[2:]), np.uint8)
    for index, image in enumerate(images):
        luma[index] = to_grey(image)
    return luma
