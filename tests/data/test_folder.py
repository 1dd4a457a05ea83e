"""A folder of the user's pictures: classes, bad files, greyness, and what paths mean."""

import numpy as np
import pytest
from PIL import Image

from imgfast.data import DataError, expand, load_folder
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
