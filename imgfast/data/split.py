"""The stratified split into training, validation and test pictures, without a leak between them.

Every distinct picture has a rank, SHA-256 of (seed, its pixels), and the lowest ranks of each
class are held out. Hence equal pictures, under whatever file names or labels, fall on one side;
the split depends on neither file names nor order; and adding pictures moves few of the old ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from imgfast.data.errors import DataError
from imgfast.data.imageset import ImageSet

_Group = tuple[bytes, list[int]]  # rank of a distinct picture, and where it stands


def split(data: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Training and held-out pictures: the official parts where a set has them, else 80/20.

    An official validation part belongs to training; :func:`three_way_split` sets it apart.
    """
    if data.official_test is not None:
        return _between(data, 0, data.official_test), _between(data, data.official_test, len(data))
    train, held_out = stratified_split(data, seed)
    return data.subset(train), data.subset(held_out)


def three_way_split(
    data: ImageSet, seed: int, validation: float = 0.1, test: float = 0.2
) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Training, validation and test pictures, each class in the same proportion.

    Official parts stay as they are. Where only the test part is official, validation is taken
    from the training part. Else the test pictures are those that :func:`stratified_split` holds
    out for the same seed and share, so that a model may be chosen by the validation pictures and
    judged by what :func:`split` holds out.

    Args:
        data: the pictures.
        seed: another seed gives another split.
        validation, test: shares of each class, in (0, 1), less than 1 together; an official
            test part has no share, and validation is then a share of the training part.

    Raises:
        DataError: shares out of range, or a class has fewer distinct pictures than there are
            parts to make.
    """
    if data.official_test is not None:
        test_set = _between(data, data.official_test, len(data))
        if data.official_validation is not None:
            middle = data.official_validation
            return _between(data, 0, middle), _between(data, middle, data.official_test), test_set
        rest = _between(data, 0, data.official_test)
        train, held_out = stratified_split(rest, seed, validation)
        return rest.subset(train), rest.subset(held_out), test_set
    train, test_part, validation_part = _stratified_parts(data, seed, (test, validation))
    return data.subset(train), data.subset(validation_part), data.subset(test_part)


def stratified_split(
    data: ImageSet, seed: int, held_out: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split into training and held-out pictures, each class in the same proportion.

    Args:
        data: the pictures.
        seed: another seed gives another split.
        held_out: share of each class to hold out, in (0, 1); at least one picture of each class
            lands on each side.

    Returns:
        Two ascending int64 index tensors, training and held out.

    Raises:
        DataError: a class has fewer than two distinct pictures.
    """
    train, test = _stratified_parts(data, seed, (held_out,))
    return train, test


def _stratified_parts(data: ImageSet, seed: int, shares: Sequence[float]) -> list[torch.Tensor]:
    """Ascending indices of what is left for training, then of a part for each share."""
    if not all(0 < share < 1 for share in shares) or not sum(shares) < 1:
        raise DataError(
            f"split: held-out shares must lie between 0 and 1, also together, got {list(shares)}"
        )
    part_of = torch.zeros(len(data), dtype=torch.int64)
    for name, groups in zip(data.classes, _distinct_pictures(data, seed), strict=True):
        if len(groups) <= len(shares):
            raise DataError(
                f"{data.name}: class {name!r} must have at least {len(shares) + 1} distinct "
                f"pictures to split, got {len(groups)}; add pictures or remove the class"
            )
        count = sum(len(indices) for _, indices in groups)
        for part, share in enumerate(shares, start=1):
            later = len(shares) - part + 1  # training too
            chosen, groups = _lowest_ranks(groups, max(1, round(share * count)), later)
            part_of[[index for _, indices in chosen for index in indices]] = part
    return [torch.nonzero(part_of == part).flatten() for part in range(len(shares) + 1)]


def _distinct_pictures(data: ImageSet, seed: int) -> list[list[_Group]]:
    """For each class its distinct pictures, sorted by rank."""
    members: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(data.digests()):
        members[digest].append(index)
    labels = data.labels.tolist()
    groups: list[list[_Group]] = [[] for _ in data.classes]
    key = f"imgfast split {seed}:".encode()
    for digest, indices in members.items():
        # Equal pictures under several labels count for the most frequent one, then the lowest.
        votes = Counter(labels[index] for index in indices)
        label = min(votes, key=lambda candidate: (-votes[candidate], candidate))
        groups[label].append((hashlib.sha256(key + digest).digest(), indices))
    return [sorted(found) for found in groups]


def _lowest_ranks(
    groups: list[_Group], target: int, keep: int
) -> tuple[list[_Group], list[_Group]]:
    """The first groups that together have at most ``target`` pictures, and the others.

    At least one is taken, and at least ``keep`` are left.
    """
    chosen: list[_Group] = []
    others: list[_Group] = []
    count = 0
    for group in groups:
        # A group that would overshoot is passed over.
        if len(groups) - len(chosen) > keep and count + len(group[1]) <= target:
            chosen.append(group)
            count += len(group[1])
        else:
            others.append(group)
    if not chosen:  # every group is larger than the share: take the smallest
        chosen = [min(others, key=lambda group: (len(group[1]), group[0]))]
        others.remove(chosen[0])
    return chosen, others


def _between(data: ImageSet, start: int, end: int) -> ImageSet:
    return data.subset(torch.arange(start, end))
