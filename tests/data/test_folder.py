"""A folder of the user's pictures: classes, bad files, greyness, and what paths mean."""

import numpy as np
import pytest
from PIL import Image

from imgfast.data import DataError, expand, load_folder, split, three_way_split
from imgfast.data.imageset import channel_statistics


@pytest.fixture
def folder(tmp_path, subset):
    """Two classes of three grey pictures each, taken from the subset, sandals and trousers."""
    for label, name in ((5, "sandal"), (1, "trouser")):
        (tmp_path / name).mkdir()
        for number, index in enumerate((subset.labels == label).nonzero().flatten()[:3].tolist()):
            image = Image.fromarray(subset.images[index, 0].numpy())
            image.save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_classes_are_sub_folders_and_pixels_are_the_files(folder, subset):
    data = load_folder(folder, size=28)
    assert data.classes == ("sandal", "trouser")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.images.shape == (6, 1, 28, 28)  # every file is grey
    assert bool((data.images[:3] == subset.images[subset.labels == 5][:3]).all())
    assert data.mean == pytest.approx([data.images.double().mean().item() / 255], abs=1e-6)


def test_one_coloured_picture_makes_the_set_coloured(folder):
    Image.new("RGB", (40, 40), (255, 0, 0)).save(folder / "sandal" / "red.JPG", "BMP")
    data = load_folder(folder, size=28)
    assert data.images.shape == (7, 3, 28, 28)
    assert data.images[3, :, 5, 5].tolist() == [255, 0, 0]
    assert load_folder(folder, size=28, channels=1).images.shape == (7, 1, 28, 28)


def test_bad_files_are_skipped_listed_and_named(folder):
    (folder / "sandal" / "1.png").write_bytes(b"no picture")
    (folder / "sandal" / "notes.txt").write_text("not even called one")
    (folder / "sandal" / ".hidden.png").write_bytes(b"hidden")
    calls = []
    data = load_folder(folder, size=28, on_picture=lambda *counts: calls.append(counts))
    assert len(data) == 5 and data.labels.tolist() == [0, 0, 1, 1, 1]
    assert [error.path for error in data.skipped] == [str(folder / "sandal" / "1.png")]
    assert calls[-1] == (6, 6)


@pytest.mark.parametrize(
    "change, rule",
    [
        (lambda root: (root / "empty").mkdir(), "empty: must hold at least one readable picture"),
        (lambda root: [f.write_bytes(b"x") for f in (root / "sandal").iterdir()], "first error"),
    ],
)
def test_a_class_without_a_picture_is_an_error(folder, change, rule):
    change(folder)
    with pytest.raises(DataError, match=rule):
        load_folder(folder, size=28)


def test_a_folder_of_another_shape_is_an_error(tmp_path, folder):
    with pytest.raises(DataError, match="must be a folder with one sub-folder per class"):
        load_folder(tmp_path / "absent")
    with pytest.raises(DataError, match="must have 2 to 10000 sub-folders, one per class, got 0"):
        load_folder(folder / "sandal")
    with pytest.raises(DataError, match="at most 4294967296 bytes in memory"):
        load_folder(folder, size=20_000)


def test_classes_of_a_model_keep_their_numbers(folder):
    data = load_folder(folder, size=28, classes=("boot", "trouser", "sandal"))
    assert data.labels.tolist() == [2, 2, 2, 1, 1, 1]
    with pytest.raises(DataError, match="'sandal' must be a class of the model"):
        load_folder(folder, size=28, classes=("trouser", "boot"))


def in_parts(folder, **parts):
    """Move the classes of the folder into parts: the numbers of the pictures of each."""
    for part, picked in parts.items():
        for name in ("sandal", "trouser"):
            (folder / part / name).mkdir(parents=True)
            for number in picked:
                (folder / name / f"{number}.png").rename(folder / part / name / f"{number}.png")
    for name in ("sandal", "trouser"):
        (folder / name).rmdir()


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_a_folder_of_two_parts_is_an_official_split(folder, subset, test):
    expected = load_folder(folder, size=28)
    in_parts(folder, train=(0, 2), **{test: (1,)})
    (folder / "train" / "sandal" / "0.bmp").write_bytes(b"no picture")
    data = load_folder(folder, size=28)
    assert data.classes == ("sandal", "trouser") and data.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert data.images.equal(expected.images[[0, 2, 3, 5, 1, 4]])
    assert (data.official_validation, data.official_test) == (None, 4)
    assert [len(part) for part in split(data, seed=3)] == [4, 2]
    assert data.sources[4].path == f"{test}/sandal/1.png"
    # What training normalises by comes from the training part.
    assert data.mean == pytest.approx([data.images[:4].double().mean().item() / 255], abs=1e-6)


def test_a_folder_of_three_parts(folder):
    in_parts(folder, train=(0,), valid=(1,), test=(2,))
    data = load_folder(folder, size=28)
    assert (data.official_validation, data.official_test) == (2, 4)
    paths = [[source.path for source in part.sources] for part in three_way_split(data, seed=0)]
    assert paths == [
        [f"{part}/{name}/{number}.png" for name in ("sandal", "trouser")]
        for number, part in enumerate(("train", "valid", "test"))
    ]


def test_parts_that_do_not_fit_are_named(folder):
    in_parts(folder, train=(0,), val=(1,), test=(2,))
    (folder / "val").rename(folder / "validation")
    (folder / "test" / "sandal").rename(folder / "test" / "boot")
    with pytest.raises(DataError, match=r"test/boot: must be a class of .*train too"):
        load_folder(folder, size=28)
    for name in ("boot", "trouser"):
        (folder / "test" / name / "2.png").write_bytes(b"no picture")
    (folder / "test" / "boot").rename(folder / "test" / "sandal")
    with pytest.raises(DataError, match="test: must hold at least one readable picture; first"):
        load_folder(folder, size=28)
    (folder / "test").rename(folder / "val")
    with pytest.raises(DataError, match="one validation part, got val and validation"):
        load_folder(folder, size=28)


def test_classes_may_be_called_train_and_test(folder):
    (folder / "sandal").rename(folder / "test")
    (folder / "trouser").rename(folder / "train")
    data = load_folder(folder, size=28)
    assert data.classes == ("test", "train") and data.official_test is None


def test_paths_expand_to_files_once_and_in_order(folder):
    first = folder / "sandal" / "0.png"
    files, named = expand([first, folder / "sandal", str(folder / "*" / "2.png"), first])
    shown = [str(file.relative_to(folder)) for file in files]
    assert shown == ["sandal/0.png", "sandal/1.png", "sandal/2.png", "trouser/2.png"]
    assert named == {first}
    with pytest.raises(DataError, match="must hold or match at least one picture"):
        expand([str(folder / "*.gif")])


def test_statistics_match_float64(subset):
    images = subset.images[:500]
    mean, std = channel_statistics(images)
    pixels = images.numpy().astype(np.float64) / 255
    assert mean == pytest.approx((pixels.mean(),), abs=1e-6)
    assert std == pytest.approx((pixels.std(),), abs=1e-6)
    assert channel_statistics(images * 0)[1] == (1.0,)
