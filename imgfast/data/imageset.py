"""Labelled pictures in memory: one uint8 tensor, one label tensor, the names of the classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch

from imgfast.data.errors import DataError, ImageError

MAX_BYTES = 4 << 30  # of a set's pictures in memory
_CHUNK = 1024  # pictures


class Source(NamedTuple):
    """Where a picture comes from: its path in the set, format, and size before it was resized."""

    path: str
    format: str
    width: int
    height: int


@dataclass(frozen=True)
class ImageSet:
    """Labelled pictures of one size.

    Args:
        name: what the user called it: ``fashion-mnist`` or the path of a folder.
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``, in ``[0, len(classes))``.
        classes: name of each class.
        mean, std: per channel, of pixels scaled to [0, 1]; what training normalises by.
        skipped: pictures that could not be read, in order.
        official_test: position where the official test pictures start, in a set that has such.
        official_validation: position where the official validation pictures start, which stand
            between the training and the test pictures, in a set that has all three.
        sources: of each picture, or empty where nothing is known of any.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[ImageError, ...] = ()
    official_test: int | None = None
    official_validation: int | None = None
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise DataError(
                f"{self.name}: images must be uint8 [N, C, H, W], "
                f"got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{self.name}: labels must be int64 [{len(self.images)}], "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(
            self.classes
        ):
            raise DataError(f"{self.name}: labels must lie in [0, {len(self.classes)})")
        if self.sources and len(self.sources) != len(self.images):
            raise DataError(
                f"{self.name}: sources must be none or {len(self.images)}, got {len(self.sources)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: torch.Tensor) -> ImageSet:
        """The pictures at ``indices`` (int64), in that order."""
        return ImageSet(
            self.name,
            self.images[indices],
            self.labels[indices],
            self.classes,
            self.mean,
            self.std,
            sources=tuple(self.sources[i] for i in indices.tolist()) if self.sources else (),
        )

    def digests(self) -> list[bytes]:
        """SHA-256 of each picture's pixels: equal pictures have equal digests."""
        rows = self.images.contiguous().flatten(1).numpy()
        return [hashlib.sha256(row.data).digest() for row in rows]

    def fingerprint(self) -> str:
        """SHA-256 of pixels, labels, official parts, sizes and class names.

        The order of the pictures in a part has no say.
        """
        total = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        first_test = len(self) if self.official_test is None else self.official_test
        in_test = (index >= first_test for index in range(len(self)))
        for digest, label, test in sorted(
            zip(self.digests(), self.labels.tolist(), in_test, strict=True)
        ):
            total.update(digest + label.to_bytes(8, "little") + bytes(test))
        return total.hexdigest()


def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 ``[N, C, H, W]`` scaled to [0, 1].

    From the 256-bin histogram of each channel: exact, and no float copy of the pictures. A
    constant channel gets a deviation of 1, so that it normalises to zeros.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for chunk in images.split(_CHUNK):  # bincount takes no uint8: convert a little at a time
        for channel, pixels in enumerate(chunk.unbind(1)):
            counts[channel] += torch.bincount(pixels.flatten().int(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for weights in counts.double():
        weights = weights / weights.sum()
        mean = (weights * values).sum()
        deviation = (weights * (values - mean) ** 2).sum().sqrt()
        means.append(round(mean.item(), 6))
        deviations.append(round(deviation.item(), 6) or 1.0)
    return tuple(means), tuple(deviations)
