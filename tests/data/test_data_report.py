"""What ``imgfast data`` says of a set, counted by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from imgfast.data import ImageSet, describe, load_folder
from imgfast.data.report import Extent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes: 8 + 6 good pictures, of which some are equal, and 2 bad files."""
    root = tmp_path_factory.mktemp("report") / "set"
    dice = np.random.default_rng(0)

    def save(name, width=10, height=10, grey=False, **options):
        pixels = dice.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert("L" if grey else "RGB")
        image.save(root / name, **options)

    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(5):
            save(f"{name}/{number}.png", width=10 + number, height=20 - number)
    save("cat/5.jpg", 40, 30, quality=90)
    save("dog/5.webp", grey=True, lossless=True)
    for copy in ("cat/same.png", "cat/same too.png"):
        (root / copy).write_bytes((root / "cat/0.png").read_bytes())
    # The same pixels in another container, under the other label.
    Image.open(root / "cat/1.png").save(root / "dog/x.bmp")
    (root / "dog/x.bmp").rename(root / "dog/6.bmp")
    (root / "cat/bad.png").write_bytes(b"")
    (root / "dog/bad.png").write_bytes(b"no picture")
    return root


def test_everything_is_counted(folder):
    report = describe(load_folder(folder, 10), seed=1)
    assert report.classes == {"cat": 8, "dog": 7} and report.pictures == 15
    assert (report.channels, report.image_size) == (3, 10)
    assert report.formats == {"PNG": 12, "JPEG": 1, "WEBP": 1, "BMP": 1}
    # Widths 10..14 twice, two more of 10, one more of 11, 40 and 10; heights 20..16 and so on.
    assert report.width == Extent(10, 11, 40)
    assert report.height == Extent(10, 19, 30)
    assert (report.grey, report.colour) == (1, 14)
    found = report.duplicates
    assert (found.surplus, found.within_class, found.across_classes) == (3, 1, 1)
    assert found.across_parts == 0
    assert found.groups == (
        ("cat/1.png", "dog/6.bmp"),
        ("cat/0.png", "cat/same too.png", "cat/same.png"),
    )
    assert [item["path"] for item in report.skipped] == [
        str(folder / name / "bad.png") for name in ("cat", "dog")
    ]
    assert report.skipped[0]["reason"] == "must not be empty"
    assert sum(report.split.values()) == sum(report.three_way_split.values()) == 15
    assert (report.official, report.split_error) == ((), None)


def image_set(first_pixels: list[int], labels: list[int]) -> ImageSet:
    images = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(first_pixels)
    return ImageSet("test", images, torch.tensor(labels), ("a", "b"), (0.5,), (0.5,))


def test_pictures_that_official_parts_share_are_told():
    data = image_set([1, 2, 3, 4, 5, 1, 1, 6, 7, 7], [0, 1, 0, 1, 0, 0, 0, 1, 0, 0])
    report = describe(dataclasses.replace(data, official_test=5))
    # Two of the five held out are picture 1; both 7 are held out, which is no leak.
    assert report.duplicates.across_parts == 2
    assert report.split == {"training": 5, "held_out": 5} and report.official == ("test",)
    assert report.duplicates.groups[0] == ("test/0", "test/5", "test/6")


def test_a_set_that_cannot_be_split_is_described_all_the_same():
    report = describe(image_set([1, 2, 3, 3], [0, 0, 1, 1]))
    assert report.split == report.three_way_split == {} and report.formats == {}
    assert "class 'b' must have at least 2 distinct pictures" in report.split_error
    # Two distinct pictures are enough for two parts, not for three.
    report = describe(image_set([1, 2, 3, 4], [0, 0, 1, 1]))
    assert report.split == {"training": 2, "held_out": 2} and report.three_way_split == {}
    assert "class 'a' must have at least 3 distinct pictures" in report.split_error
