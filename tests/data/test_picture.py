"""One file in, pixels or one clear error out: good pictures of every kind, and hostile ones."""

import io
import os
import random
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from imgfast.data import ImageError, load_picture
from imgfast.data.picture import MAX_FILE_BYTES, to_grey


@pytest.fixture(scope="module")
def shoe(subset) -> np.ndarray:
    """A real picture: the first of the subset, an ankle boot, uint8 [28, 28]."""
    return subset.images[0, 0].numpy()


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write(path, content: bytes):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_files_give_the_pixels_exactly(tmp_path, shoe, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    path = write(tmp_path / "shoe", encode(Image.fromarray(shoe).convert("RGB"), kind, **options))
    assert np.array_equal(load_picture(path, 28), np.stack([shoe] * 3))


def test_jpeg_is_close(tmp_path, shoe):
    path = write(tmp_path / "shoe.jpg", encode(Image.fromarray(shoe), "JPEG", quality=95))
    difference = load_picture(path, 28).astype(int) - shoe
    assert np.abs(difference).mean() < 2


def test_palette_bilevel_cmyk_and_alpha(tmp_path, shoe):
    grey = Image.fromarray(shoe)
    rgb = np.stack([shoe] * 3)
    cases = {
        "palette": (encode(grey.convert("P"), "PNG"), rgb),
        "bilevel": (encode(grey.convert("1", dither=0), "PNG"), np.where(rgb > 127, 255, 0)),
        "cmyk": (encode(grey.convert("RGB").convert("CMYK"), "JPEG", quality=100), rgb),
        # Half of it transparent: that half shows the white it lies on.
        "alpha": (
            encode(Image.fromarray(np.dstack([shoe] * 3 + [np.repeat([[0], [255]], 14, 0)
                   .repeat(28, 1).astype(np.uint8)])), "PNG"),
            np.where(np.arange(28)[:, None] < 14, 255, rgb),
        ),
        "grey alpha": (
            encode(Image.merge("LA", (grey, Image.new("L", grey.size, 255))), "PNG"),
            rgb,
        ),
    }  # fmt: skip
    for name, (content, expected) in cases.items():
        found = load_picture(write(tmp_path / name, content), 28).astype(int)
        assert np.abs(found - expected).max() <= (8 if name == "cmyk" else 0), name


def test_16_bit_grey_keeps_its_high_byte(tmp_path, shoe):
    deep = Image.fromarray(shoe.astype(np.uint16) * 256 + 77)
    path = write(tmp_path / "deep.png", encode(deep, "PNG"))
    assert np.array_equal(load_picture(path, 28)[0], shoe)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(tmp_path, shoe, kind):
    first, second = Image.fromarray(shoe).convert("RGB"), Image.new("RGB", (28, 28), "red")
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(first, kind, save_all=True, append_images=[second], **options)
    assert np.array_equal(load_picture(write(tmp_path / "moving", content), 28)[0], shoe)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_rotation_is_applied_and_broken_exif_is_harmless(tmp_path, shoe):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    content = encode(Image.fromarray(shoe), "PNG", exif=exif)
    found = load_picture(write(tmp_path / "turned.png", content), 28)[0]
    assert np.array_equal(found, np.rot90(shoe, -1))
    broken = encode(Image.fromarray(shoe), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert np.array_equal(load_picture(write(tmp_path / "broken.png", broken), 28)[0], shoe)


def test_the_centre_is_cropped_and_a_strip_does_not_explode(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the central square
    path = write(tmp_path / "wide.png", encode(Image.fromarray(wide), "PNG"))
    assert np.array_equal(load_picture(path, 20), np.full((3, 20, 20), 200))
    strip = write(tmp_path / "strip.png", encode(Image.new("L", (1_000_000, 1), 90), "PNG"))
    assert np.array_equal(load_picture(strip, 64), np.full((3, 64, 64), 90))


def test_grey_is_pillows_luma_and_leaves_grey_alone(shoe):
    colour = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colour.transpose(1, 2, 0)).convert("L"))
    assert np.array_equal(to_grey(colour)[0], expected)
    assert np.array_equal(to_grey(np.stack([shoe] * 3))[0], shoe)


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "GIF", "PPM", "ICO", "TGA", "PDF"])
def test_other_formats_are_refused_whatever_they_are_called(tmp_path, shoe, kind):
    path = write(tmp_path / "picture.png", encode(Image.fromarray(shoe), kind))
    with pytest.raises(ImageError, match="must be a whole PNG, JPEG, WebP or BMP"):
        load_picture(path, 28)


@pytest.mark.parametrize("content", [b"", b"\x00" * 4096, b"SIMPLE  =  T" + b" " * 3000, b"<svg/>"])
def test_no_picture_at_all(tmp_path, content):
    with pytest.raises(ImageError, match=r"must"):
        load_picture(write(tmp_path / "a.png", content), 28)


def forged_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (8_000, 8_000), (2**31 - 1, 1), (0, 5)])
def test_a_forged_header_costs_neither_time_nor_memory(tmp_path, size):
    path = write(tmp_path / "huge.png", forged_png(*size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(ImageError, match=r"pixels|decoded|must be a whole"):
        load_picture(path, 28)
    assert time.perf_counter() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_forged_bmp_header_is_refused(tmp_path):
    content = bytearray(encode(Image.new("RGB", (4, 4)), "BMP"))
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    with pytest.raises(ImageError, match="50000000 pixels"):
        load_picture(write(tmp_path / "huge.bmp", bytes(content)), 28)


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "WEBP", "animated WEBP"])
def test_a_forged_jpeg_or_webp_header_costs_neither_time_nor_memory(tmp_path, shoe, kind):
    picture = Image.fromarray(shoe).convert("RGB")
    if kind.endswith("JPEG"):
        progressive = kind.startswith("progressive")
        content = bytearray(encode(picture, "JPEG", progressive=progressive))
        frame = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")  # precision, H, W
        content[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    else:
        moving = {"save_all": True, "append_images": [picture.rotate(90)]}
        options = (
            moving if kind.startswith("animated") else {"exif": b"Exif\0\0II*\0\x08" + bytes(9)}
        )
        content = bytearray(encode(picture, "WEBP", **options))
        canvas = content.index(b"VP8X") + 12  # two numbers of 24 bits, less 1
        content[canvas : canvas + 6] = (60_000 - 1).to_bytes(3, "little") * 2
    path = write(tmp_path / "huge", bytes(content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(ImageError, match="50000000 pixels"):
        load_picture(path, 28)
    assert time.perf_counter() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_fits_picture_is_refused_whatever_it_is_called(tmp_path, shoe):
    cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 28", "NAXIS2  = 28", "END")
    header = "".join(f"{card:80}" for card in cards).encode().ljust(2880)
    path = write(tmp_path / "picture.png", header + shoe.tobytes().ljust(2880, b"\0"))
    with Image.open(path) as image:  # a good one, which Pillow would read if it might
        assert (image.format, image.size) == ("FITS", (28, 28))
        image.load()
    with pytest.raises(ImageError, match="must be a whole PNG, JPEG, WebP or BMP"):
        load_picture(path, 28)


def test_a_file_above_the_byte_cap_is_not_decoded(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(ImageError, match=f"must be at most {MAX_FILE_BYTES} bytes"):
        load_picture(path, 28)


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, rule in (
        (tmp_path / "pipe.png", "regular file"),
        (tmp_path, "regular file"),
        ("/dev/zero", "regular file"),
        (tmp_path / "absent.png", "No such file"),
        ("a\0b.png", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=rule):
            load_picture(path, 28)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncation_anywhere_is_an_error_or_the_same_picture(tmp_path, shoe, kind):
    whole = encode(Image.fromarray(shoe).resize((96, 96)).convert("RGB"), kind)
    expected = load_picture(write(tmp_path / "whole", whole), 28)
    refused = 0
    for length in [*range(0, len(whole), 64), len(whole) - 1]:
        path = write(tmp_path / "cut", whole[:length])
        try:
            # Only what follows the last pixel may be missing.
            assert np.array_equal(load_picture(path, 28), expected), length
        except ImageError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused >= len(range(0, len(whole), 64)) - 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_flipped_bytes_give_an_image_error_or_a_picture(tmp_path, shoe, kind):
    whole = encode(Image.fromarray(shoe).convert("RGB"), kind)
    dice = random.Random(0)
    started = time.perf_counter()
    for _ in range(600):  # of each format
        altered = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2, 8))):
            altered[dice.randrange(len(altered))] = dice.randrange(256)
        path = write(tmp_path / "altered", bytes(altered))
        try:
            found = load_picture(path, 28)
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            assert found.shape == (3, 28, 28) and found.dtype == np.uint8
    assert time.perf_counter() - started < 60
