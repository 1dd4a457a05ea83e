"""Overlays on disk: what is drawn, what is refused, and what never reaches the PNG."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imgfast.engine import load_checkpoint, predict_probabilities
from imgfast.engine.attribution import METHODS
from imgfast.engine.explain import Score, explain_files, mean_scores, overlay_paths
from imgfast.engine.overlay import PANEL, draw_overlays, laid_on


@pytest.fixture(scope="module")
def model(run):
    return load_checkpoint(run.path).model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Three pictures, one of them in a sub-folder under a name that is there already, one bad."""
    root = tmp_path_factory.mktemp("explain") / "pictures"
    (root / "more").mkdir(parents=True)
    secret = PngInfo()
    secret.add_text("Comment", "a secret")
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    for name, index in (("a.png", 3), ("b.png", 4), ("more/a.png", 5)):
        image = Image.fromarray(pictures.images[index, 0].numpy())
        image.save(root / name, pnginfo=secret, exif=exif)
    (root / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return root


@pytest.fixture(scope="module")
def explained(model, folder):
    reported = []
    out = folder.parent / "out"
    found, errors, named = explain_files(
        model, [folder], out, on_picture=lambda *counts: reported.append(counts)
    )
    assert reported == [(4, 4)]
    return out, found, errors, named


def test_good_pictures_are_explained_and_the_bad_one_is_listed(explained, folder, model, pictures):
    out, found, errors, named = explained
    assert [item.path for item in found] == [
        str(folder / name) for name in ("a.png", "b.png", "more/a.png")
    ]
    assert [error.path for error in errors] == [str(folder / "bad.png")] and not named
    assert sorted(path.name for path in out.iterdir()) == ["a-2.png", "a.png", "b.png"]
    expected = predict_probabilities(model, pictures.images[3:6])
    for item, row in zip(found, expected, strict=True):
        assert item.label == item.explained == model.config.classes[row.argmax()]
        assert item.probability == item.explained_probability == pytest.approx(row.max().item())
        assert set(item.scores) == set(METHODS)
        assert 0 < item.scores["integrated-gradients"].deletion < item.random.deletion < 1
        assert item.completeness_error < 0.05
    means = mean_scores(found)
    assert set(means) == {*METHODS, "random"}
    assert means["random"].insertion == pytest.approx(
        sum(item.random.insertion for item in found) / 3
    )
    assert mean_scores([]) == {}


def test_overlays_are_pictures_without_metadata(explained, pictures):
    out, found, _, _ = explained
    for item, index in zip(found, (3, 4, 5), strict=True):
        data = (out / item.overlay).read_bytes()
        assert b"secret" not in data and b"tEXt" not in data and b"eXIf" not in data
        with Image.open(io.BytesIO(data)) as image:
            assert not image.info and not image.getexif()
            pixels = np.asarray(image)
        # The picture itself comes first, enlarged by a whole number.
        shown = pixels[28 : 28 + PANEL : PANEL // 28, 8 : 8 + PANEL : PANEL // 28]
        expected = pictures.images[index].permute(1, 2, 0).expand(-1, -1, 3).numpy()
        assert np.array_equal(shown, expected)
        assert (pixels[28:250, 240:] != pixels[28:250, 240:, :1]).any()  # colour beside it


def test_nothing_is_overwritten_unless_asked(explained, model, folder):
    out = explained[0]
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"a\.png: already exists; .* use --overwrite"):
        explain_files(model, [folder], out)
    explain_files(model, [folder], out, overwrite=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before  # deterministic
    # A picture to explain is not replaced even where overlays may be.
    source = (folder / "a.png").read_bytes()
    with pytest.raises(ValueError, match="is a picture to explain"):
        explain_files(model, [folder / "a.png"], folder, overwrite=True)
    assert (folder / "a.png").read_bytes() == source


def test_a_class_of_choice_is_explained(model, folder, tmp_path):
    named = [folder / "a.png", tmp_path / "absent.png"]
    found, errors, bad = explain_files(model, named, tmp_path / "out", ["grad-cam"], "Bag")
    assert (found[0].explained, set(found[0].scores)) == ("Bag", {"grad-cam"})
    assert found[0].completeness_error is None
    assert bad == {str(tmp_path / "absent.png")} == {error.path for error in errors}
    shown = found[0].explained_probability
    assert found[0].label != "Bag" and 0 < shown < found[0].probability


def test_mistakes_are_refused_before_anything_is_written(model, folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"class must be one of T-shirt/top, .*, got 'Hat'"):
        explain_files(model, [folder], out, class_name="Hat")
    with pytest.raises(ValueError, match="method must be one of grad-cam"):
        explain_files(model, [folder], out, ["saliency"])
    assert not out.exists()


def test_names_of_overlays(tmp_path):
    files = [tmp_path / name for name in ("x/a.png", "a-2.jpg", "y/a.bmp", f"{'n' * 200}.png")]
    names = [path.name for path in overlay_paths(files, tmp_path)]
    assert names == ["a.png", "a-2.png", "a-3.png", f"{'n' * 48}.png"]


def test_colours_say_for_and_against():
    picture = torch.full((1, 8, 8), 100, dtype=torch.uint8)
    heat = torch.zeros(8, 8)
    heat[0, 0], heat[7, 7] = 2.0, -1.0
    found = laid_on(picture, heat).astype(int)
    assert found[0, 0, 0] > 150 > found[0, 0, 2] and found[7, 7, 2] > 130 > found[7, 7, 0]
    assert (found[1:7] == 100).all()
    assert (laid_on(picture, torch.zeros(8, 8)) == 100).all()


def test_long_captions_are_cut(pictures):
    panels = [("map", "score", torch.rand(28, 28, generator=torch.Generator().manual_seed(0)))]
    long = draw_overlays(pictures.images[0], "\x1b[31m" + "wide " * 200, panels)
    with Image.open(io.BytesIO(long)) as image:
        pixels = np.asarray(image)
    assert (pixels[:24, -4:] == 255).all()  # the title ends before the border
    assert (pixels[:24] < 255).any()


def test_scores_are_plain_values(explained):
    values = explained[1][0].to_dict()
    assert values["random"] == dataclasses.asdict(explained[1][0].random)
    assert Score(**values["scores"]["occlusion"]) == explained[1][0].scores["occlusion"]
