"""What a data set holds, before anything is trained on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any

from imgfast.data.errors import DataError
from imgfast.data.imageset import ImageSet
from imgfast.data.split import split, three_way_split


@dataclass(frozen=True)
class Extent:
    """Smallest, median and largest of a side's lengths, in pixels."""

    minimum: int
    median: int
    maximum: int


@dataclass(frozen=True)
class Duplicates:
    """Pictures that are equal pixel by pixel once they are cropped and resized.

    Args:
        surplus: pictures that repeat an earlier one.
        within_class: groups of equal pictures of one class.
        across_classes: groups of equal pictures with different labels, of which one must be wrong.
        across_parts: held-out pictures that the training part holds too; 0 unless the official
            parts of a set share pictures.
        groups: the paths of each group, those across classes first.
    """

    surplus: int
    within_class: int
    across_classes: int
    across_parts: int
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DataReport:
    """What a data set holds.

    Args:
        name: the set.
        pictures: readable pictures.
        image_size, channels: of the pictures in memory, as a network gets them.
        classes: pictures of each class.
        width, height: of the files' own pictures, before they are cropped and resized.
        formats: pictures of each file format; empty where there are no files.
        grey, colour: pictures with and without three equal channels.
        duplicates: exact ones.
        skipped: path and reason of each file that cannot be read.
        seed: of the split below.
        official: the parts that the set's makers made: none, the test part, or validation too.
        split: pictures for training and held out, as ``imgfast train`` takes them; empty where a
            class has too few distinct pictures.
        three_way_split: training, validation and test pictures, likewise.
        split_error: why a split is empty.
    """

    name: str
    pictures: int
    image_size: int
    channels: int
    classes: dict[str, int]
    width: Extent
    height: Extent
    formats: dict[str, int]
    grey: int
    colour: int
    duplicates: Duplicates
    skipped: tuple[dict[str, str], ...]
    seed: int
    official: tuple[str, ...]
    split: dict[str, int]
    three_way_split: dict[str, int]
    split_error: str | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def describe(data: ImageSet, seed: int = 0) -> DataReport:
    """What a data set holds, and how it is split.

    Args:
        data: the whole set, of at least one picture.
        seed: of the split.
    """
    _, channels, height, width = data.images.shape
    counts = data.labels.bincount(minlength=len(data.classes)).tolist()
    grey = sum(bool((image == image[:1]).all()) for image in data.images.numpy())
    official = {"validation": data.official_validation, "test": data.official_test}
    parts, three_parts, reason = {}, {}, None
    try:
        parts = _sizes(("training", "held_out"), split(data, seed))
        three_parts = _sizes(("training", "validation", "test"), three_way_split(data, seed))
    except DataError as error:
        reason = str(error)
    return DataReport(
        data.name,
        len(data),
        height,
        channels,
        dict(zip(data.classes, counts, strict=True)),
        _extent([source.width for source in data.sources] or [width]),
        _extent([source.height for source in data.sources] or [height]),
        dict(Counter(source.format for source in data.sources).most_common()),
        grey,
        len(data) - grey,
        _duplicates(data),
        tuple({"path": error.path, "reason": error.reason} for error in data.skipped),
        seed,
        tuple(name for name, start in official.items() if start is not None),
        parts,
        three_parts,
        reason,
    )


def _sizes(names: tuple[str, ...], parts: tuple[ImageSet, ...]) -> dict[str, int]:
    return {name: len(part) for name, part in zip(names, parts, strict=True)}


def _extent(lengths: list[int]) -> Extent:
    return Extent(min(lengths), median_low(lengths), max(lengths))


def _duplicates(data: ImageSet) -> Duplicates:
    members: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(data.digests()):
        members[digest].append(index)
    labels = data.labels.tolist()
    repeated = [indices for indices in members.values() if len(indices) > 1]
    mixed = [indices for indices in repeated if len({labels[index] for index in indices}) > 1]
    same = [indices for indices in repeated if len({labels[index] for index in indices}) == 1]
    first_test = len(data) if data.official_test is None else data.official_test
    leaks = sum(
        sum(index >= first_test for index in indices)
        for indices in repeated
        if indices[0] < first_test
    )

    def path(index: int) -> str:
        return data.sources[index].path if data.sources else f"{data.name}/{index}"

    return Duplicates(
        surplus=sum(len(indices) - 1 for indices in repeated),
        within_class=len(same),
        across_classes=len(mixed),
        across_parts=leaks,
        groups=tuple(tuple(path(index) for index in indices) for indices in mixed + same),
    )
