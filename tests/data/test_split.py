"""The split: stratified, reproducible, and equal pictures never on both sides."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfast.data import DataError, ImageSet, split, stratified_split, three_way_split


def image_set(labels: list[int], pictures: list[int], classes: int = 2) -> ImageSet:
    """One 4x4 picture for each number: equal numbers, equal pictures."""
    images = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(pictures) % 256
    images[:, 0, 0, 1] = torch.tensor(pictures) // 256
    names = tuple(f"class {index}" for index in range(classes))
    return ImageSet("test", images, torch.tensor(labels), names, (0.5,), (0.5,))


def test_shipped_subset_splits_80_to_20_in_every_class_without_a_leak(subset):
    train, held_out = split(subset, seed=0)
    assert train.labels.bincount().tolist() == [1120] * 10
    assert held_out.labels.bincount().tolist() == [280] * 10
    assert not set(train.digests()) & set(held_out.digests())


def test_seed_decides_and_file_order_does_not(subset):
    data = subset.subset(torch.arange(2000))
    first = set(split(data, seed=1)[1].digests())
    shuffled = data.subset(torch.randperm(2000, generator=torch.Generator().manual_seed(3)))
    assert set(split(shuffled, seed=1)[1].digests()) == first
    other = set(split(data, seed=2)[1].digests())
    # Two independent fifths overlap in a fifth of a fifth.
    assert len(first & other) < 0.4 * len(first)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_duplicates_stay_on_one_side_whatever_their_labels(data):
    count = data.draw(st.integers(10, 120))
    labels = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    pictures = data.draw(st.lists(st.integers(0, count), min_size=count, max_size=count))
    # Two pictures of their own keep each class splittable.
    labels += [0, 0, 1, 1]
    pictures += [1000, 1001, 1002, 1003]
    images = image_set(labels, pictures)
    train, held_out = stratified_split(images, seed=data.draw(st.integers(0, 99)))
    assert sorted(train.tolist() + held_out.tolist()) == list(range(len(labels)))
    of_picture = torch.tensor(pictures)
    assert not set(of_picture[train].tolist()) & set(of_picture[held_out].tolist())


def test_a_class_of_one_large_group_still_has_both_sides():
    # Nine copies of picture 1 and one other: the copies exceed the share, the other is held out.
    labels = [0] * 10 + [1] * 10
    pictures = [1] * 9 + [2] + list(range(10, 20))
    _, held_out = stratified_split(image_set(labels, pictures), seed=0)
    assert held_out.tolist().count(9) == 1
    assert [index for index in held_out.tolist() if index < 9] == []


def test_a_class_that_cannot_be_split_is_named():
    with pytest.raises(DataError, match="class 'class 1' must have at least 2 distinct pictures"):
        split(image_set([0, 0, 1, 1], [1, 2, 3, 3]), seed=0)


def numbers(data: ImageSet) -> list[int]:
    """Which pictures of :func:`image_set` these are."""
    return (data.images[:, 0, 0, 0].int() + 256 * data.images[:, 0, 0, 1].int()).tolist()


def test_three_parts_of_the_subset(subset):
    parts = three_way_split(subset, seed=3)
    assert [part.labels.bincount().tolist() for part in parts] == [
        [980] * 10,
        [140] * 10,
        [280] * 10,
    ]
    digests = [set(part.digests()) for part in parts]
    assert len(set.union(*digests)) == sum(map(len, digests)) == 14_000
    # A model chosen by the validation part may be judged by what split holds out.
    assert digests[2] == set(split(subset, seed=3)[1].digests())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_duplicates_stay_in_one_of_three_parts(data):
    count = data.draw(st.integers(10, 120))
    labels = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    pictures = data.draw(st.lists(st.integers(0, count), min_size=count, max_size=count))
    # Three pictures of their own keep each class splittable.
    labels += [0, 0, 0, 1, 1, 1]
    pictures += [1000, 1001, 1002, 1003, 1004, 1005]
    parts = three_way_split(image_set(labels, pictures), seed=data.draw(st.integers(0, 99)))
    found = [numbers(part) for part in parts]
    assert sorted(itertools.chain(*found)) == sorted(pictures)
    assert sum(len(set(part)) for part in found) == len(set(pictures))
    assert all(found)


def test_official_parts_stay_as_they_are():
    plain = image_set([0, 1] * 20, list(range(40)))
    both = dataclasses.replace(plain, official_validation=24, official_test=30)
    assert [len(part) for part in split(both, seed=0)] == [30, 10]
    assert [numbers(part) for part in three_way_split(both, seed=1)] == [
        list(range(24)), list(range(24, 30)), list(range(30, 40))
    ]  # fmt: skip
    test_only = dataclasses.replace(plain, official_test=30)
    train, validation, test = three_way_split(test_only, seed=1, validation=0.2)
    assert numbers(test) == list(range(30, 40))
    assert validation.labels.bincount().tolist() == [3, 3]
    assert sorted(numbers(train) + numbers(validation)) == list(range(30))


def test_shares_and_classes_that_cannot_be_split_in_three_are_named():
    data = image_set([0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 5])
    with pytest.raises(DataError, match="'class 1' must have at least 3 distinct pictures"):
        three_way_split(data, seed=0)
    for shares in ((0.5, 0.5), (0.0, 0.2), (0.1, 1.0)):
        with pytest.raises(DataError, match="must lie between 0 and 1, also together"):
            three_way_split(data, 0, *shares)
