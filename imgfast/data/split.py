"""The stratified split into training and held-out pictures, without a leak between the two.

Every distinct picture has a rank, SHA-256 of (seed, its pixels), and the lowest ranks of each
class are held out. Hence equal pictures, under whatever file names or labels, fall on one side;
the split depends on neither file names nor order; and adding pictures moves few of the old ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import torch

from imgfast.data.errors import DataError
from imgfast.data.imageset import ImageSet


def split(data: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Training and held-out pictures: the official parts where a set has them, else 80/20."""
    if data.official_test is not None:
        everything = torch.arange(len(data))
        return data.subset(everything[: data.official_test]), data.subset(
            everything[data.official_test :]
        )
    train, held_out = stratified_split(data, seed)
    return data.subset(train), data.subset(held_out)


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
    if not 0 < held_out < 1:
        raise DataError(f"split: held_out must lie between 0 and 1, got {held_out}")
    members: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(data.digests()):
        members[digest].append(index)
    labels = data.labels.tolist()
    groups: dict[int, list[tuple[bytes, list[int]]]] = defaultdict(list)
    key = f"imgfast split {seed}:".encode()
    for digest, indices in members.items():
        # Equal pictures under several labels count for the most frequent one, then the lowest.
        votes = Counter(labels[index] for index in indices)
        label = min(votes, key=lambda candidate: (-votes[candidate], candidate))
        groups[label].append((hashlib.sha256(key + digest).digest(), indices))

    test: list[int] = []
    for label, name in enumerate(data.classes):
        if len(groups[label]) < 2:
            raise DataError(
                f"{data.name}: class {name!r} must have at least 2 distinct pictures to split, "
                f"got {len(groups[label])}; add pictures or remove the class"
            )
        test += _lowest_ranks(groups[label], held_out)
    mask = torch.zeros(len(data), dtype=torch.bool)
    mask[torch.tensor(test)] = True
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()


def _lowest_ranks(groups: list[tuple[bytes, list[int]]], held_out: float) -> list[int]:
    """Indices of the groups to hold out: by rank, as many as fit into the share."""
    groups = sorted(groups)
    target = max(1, round(held_out * sum(len(indices) for _, indices in groups)))
    chosen: list[int] = []
    left = len(groups)
    for _, indices in groups:
        # A group that would overshoot is passed over, and one group always stays for training.
        if left > 1 and len(chosen) + len(indices) <= target:
            chosen += indices
            left -= 1
    if not chosen:  # every group is larger than the share: hold out the smallest
        chosen = min(groups, key=lambda group: (len(group[1]), group[0]))[1]
    return chosen
