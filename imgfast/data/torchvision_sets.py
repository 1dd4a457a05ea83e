"""The classification sets of torchvision by name, such as ``torchvision:CIFAR10``.

They lie below ``$IMGFAST_TORCHVISION``, else below ``torchvision`` in the cache folder, in the
layout that torchvision gives them. torchvision checks and reads its own files; the pictures that
it hands over are cropped and resized by the code that reads the user's own.
"""

from __future__ import annotations

import inspect
import operator
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imgfast.data.cache import cache_folder
from imgfast.data.decode import Progress, with_channels
from imgfast.data.errors import DataError, ImageError, one_line
from imgfast.data.imageset import MAX_BYTES, ImageSet, Source, channel_statistics
from imgfast.data.picture import to_pixels

PREFIX = "torchvision:"
FOLDER_VARIABLE = "IMGFAST_TORCHVISION"
_DEFAULT_SIZE = 32


def _splits(*names: str) -> tuple[dict[str, Any], ...]:
    return tuple({"split": name} for name in names)


# The arguments that make each part: training first, test last, validation between them.
_WHOLE: tuple[dict[str, Any], ...] = ({},)
_FLAG: tuple[dict[str, Any], ...] = ({"train": True}, {"train": False})
_SETS = {
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "FakeData", "SEMEION"), _WHOLE),
    "SUN397": _WHOLE,
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST"), _FLAG),
    "USPS": _FLAG,
    "EMNIST": tuple({"split": "balanced", **part} for part in _FLAG),
    **dict.fromkeys(("FER2013", "Food101", "GTSRB", "STL10", "SVHN"), _splits("train", "test")),
    "StanfordCars": _splits("train", "test"),
    "OxfordIIITPet": _splits("trainval", "test"),
    **dict.fromkeys(("CLEVRClassification", "ImageNet", "Imagenette"), _splits("train", "val")),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102"), _splits("train", "val", "test")),
    **dict.fromkeys(("PCAM", "RenderedSST2"), _splits("train", "val", "test")),
    "Country211": _splits("train", "valid", "test"),
}


def load_torchvision(
    name: str,
    size: int | None = None,
    channels: int | None = None,
    on_picture: Progress | None = None,
    download: bool = False,
) -> ImageSet:
    """A classification set of torchvision, with its official parts.

    Args:
        name: ``torchvision:`` and the name of a class of ``torchvision.datasets``. Of two parts
            the second counts as test.
        size: height and width of the pictures in the set. Default: their own where the set holds
            them as one array, such as 32 of CIFAR and 28 of MNIST, else 32.
        channels: 3, 1 (luma), or ``None``: 1 if every picture is grey, else 3.
        on_picture: called with (read so far, all) after each picture.
        download: let torchvision download the set where it is not there.

    Returns:
        The set. Pictures that cannot be read are left out and listed in ``skipped``.

    Raises:
        DataError: torchvision is missing, the set is none of those known here, its files are not
            there, or the pictures would take more than 4 GiB.
    """
    parts = _open_parts(name, download)
    total = sum(map(len, parts))
    size = size or _own_size(parts[0])
    if total * 3 * size * size > MAX_BYTES:
        raise DataError(
            f"{name}: pictures must take at most {MAX_BYTES} bytes in memory, {total} "
            f"of 3x{size}x{size} do not; choose a smaller picture size"
        )
    images = np.empty((total, 3, size, size), np.uint8)
    labels: list[int] = []
    sources: list[Source] = []
    skipped: list[ImageError] = []
    starts: list[int] = []
    for number, part in enumerate(parts):
        starts.append(len(labels))
        for index in range(len(part)):
            path = f"{name}/{number}/{index}"
            try:
                image, label = _item(part, index, path)
                images[len(labels)] = to_pixels(image, size)
            except ImageError as error:
                skipped.append(error)
            else:
                labels.append(label)
                sources.append(Source(path, "torchvision", *image.size))
            if on_picture is not None:
                on_picture(len(labels) + len(skipped), total)
    tensor = torch.from_numpy(with_channels(images[: len(labels)], channels))
    official_test = starts[-1] if len(parts) > 1 else None
    return ImageSet(
        name,
        tensor,
        torch.tensor(labels, dtype=torch.int64),
        _classes(parts[0], max(labels, default=-1) + 1),
        *channel_statistics(tensor[:official_test]),
        tuple(skipped),
        official_test,
        starts[1] if len(parts) == 3 else None,
        tuple(sources),
    )


def _open_parts(name: str, download: bool) -> list[Any]:
    """The parts as torchvision's own objects, training first and test last."""
    kind = name.removeprefix(PREFIX)
    if kind not in _SETS:
        raise DataError(f"{name}: must be {PREFIX} and one of {', '.join(sorted(_SETS))}")
    try:
        from torchvision import datasets  # slow to import, and not everyone has it
    # A torchvision that was made for another torch fails with a RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"{name}: needs torchvision, which cannot be imported ({one_line(error)}); "
            "run `pip install torchvision`"
        ) from error
    make = getattr(datasets, kind, None)
    if make is None:
        raise DataError(f"{name}: needs a newer torchvision; run `pip install -U torchvision`")
    parameters = inspect.signature(make).parameters
    arguments: dict[str, Any] = {}
    if "root" in parameters:
        named = os.environ.get(FOLDER_VARIABLE)
        arguments["root"] = Path(named) if named else cache_folder() / "torchvision"
    if "download" in parameters or issubclass(make, datasets.MNIST):
        arguments["download"] = download
    try:
        if download and "root" in arguments:
            arguments["root"].mkdir(parents=True, exist_ok=True)
        return [make(**arguments, **part) for part in _SETS[kind]]
    # RuntimeError: files not found or corrupted. OSError: no connection, no such file.
    # ImportError: a library that the set needs, such as scipy.
    except (RuntimeError, OSError, ImportError) as error:
        where = f" in {arguments['root']}" if "root" in arguments else ""
        remedy = ""
        if isinstance(error, RuntimeError) and arguments.get("download") is False:
            remedy = f"; download it with `imgfast data {name} --download`"
        raise DataError(f"{name}: cannot be read{where}: {one_line(error)}{remedy}") from error


def _item(part: Any, index: int, path: str) -> tuple[Image.Image, int]:
    try:
        image, label = part[index]
        label = operator.index(label)
    except Exception as error:  # a decoder raises what it likes
        raise ImageError(path, f"cannot be read: {error or type(error).__name__}") from error
    return image, label


def _own_size(part: Any) -> int:
    """Side of the pictures, where the set holds them as one array."""
    if getattr(part, "data", None) is not None and len(part):
        return min(part[0][0].size)
    return _DEFAULT_SIZE


def _classes(part: Any, count: int) -> tuple[str, ...]:
    """Names of the classes, which sets call differently; numbers where they have none."""
    names = getattr(part, "classes", None) or getattr(part, "categories", None) or []
    if len(names) < count:
        return tuple(str(label) for label in range(count))
    # ImageNet has several names for a class, and two classes of the name crane.
    joined = [name if isinstance(name, str) else ", ".join(name) for name in names]
    often = Counter(joined)
    return tuple(
        name if often[name] == 1 else f"{name} ({label})" for label, name in enumerate(joined)
    )
