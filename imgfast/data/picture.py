"""Decode one picture of the user's into pixels, trusting nothing in the file.

PNG, JPEG, WebP and BMP only, by content and not by name. The file's size is checked before it is
read, its pixel count before it is decoded, and whatever goes wrong inside a decoder comes out as
one :class:`ImageError`. Only pixels leave this module: no EXIF, no colour profile, no text chunk.
"""

from __future__ import annotations

import contextlib
import io
import stat
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from imgfast.data.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 50_000_000  # below Pillow's own bomb limit, so that ours speaks first

# warnings.catch_warnings is not thread-safe; reading a header takes microseconds.
_HEADER_LOCK = threading.Lock()


class Header(NamedTuple):
    """What a file says of its picture: format and size in pixels, before any rotation."""

    format: str
    width: int
    height: int


def load_picture(path: str | Path, size: int) -> np.ndarray:
    """The picture in a file, cropped to its central square and resized.

    Args:
        path: PNG, JPEG, WebP or BMP; of an animation the first frame counts.
        size: height and width to return. A picture that already has them is not resampled.

    Returns:
        uint8 ``[3, size, size]``, red, green, blue. EXIF rotation is applied; transparent parts
        lie on white; 16-bit samples keep their high byte.

    Raises:
        ImageError: not a regular file, above 64 MiB or 50 million pixels, another format,
            truncated or malformed.
    """
    return decode_picture(path, size)[0]


def decode_picture(path: str | Path, size: int) -> tuple[np.ndarray, Header]:
    """As :func:`load_picture`, with what the file's header says."""
    data = _read_bytes(Path(path))
    try:
        with _open(data, path) as image:
            # A JPEG may call itself by the name of a kind of JPEG, such as MPO.
            kind = image.format if image.format in FORMATS else "JPEG"
            header = Header(kind, *image.size)
            image.load()
            return to_pixels(image, size), header
    except ImageError:
        raise
    # A decoder fed with hostile bytes raises what it likes: OSError, SyntaxError, struct.error,
    # EOFError, ValueError, ... All of them mean the same to the caller.
    except Exception as error:
        raise ImageError(path, f"cannot be decoded: {error or type(error).__name__}") from error


def to_grey(image: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma of uint8 ``[3, H, W]`` as uint8 ``[1, H, W]``; grey pictures stay as is."""
    red, green, blue = image.astype(np.uint32)
    # Pillow's fixed-point weights: they sum to 65536, so equal channels give the same value back.
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(np.uint8)[None]


def to_pixels(image: Image.Image, size: int) -> np.ndarray:
    """Rotate, reduce to 8-bit RGB, crop and resize a decoded picture: uint8 ``[3, size, size]``."""
    with contextlib.suppress(Exception):  # broken EXIF beside good pixels: leave it as it lies
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    elif "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")

    # Crop before resizing: the other way round a 1 x 1,000,000 strip would grow beyond any cap.
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        # Checked before opening: opening a pipe would wait for a writer.
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "must be a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(path, f"cannot be read: {reason}") from error
    if len(data) > MAX_FILE_BYTES:
        found = max(status.st_size, len(data))
        raise ImageError(path, f"must be at most {MAX_FILE_BYTES} bytes, got {found}")
    return data


def _open(data: bytes, path: object) -> Image.Image:
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(path, f"must have at most {MAX_PIXELS} pixels: {error}") from error
    except Image.UnidentifiedImageError as error:
        reason = f"must be a whole PNG, JPEG, WebP or BMP, starts with {data[:8]!r}"
        raise ImageError(path, reason if data else "must not be empty") from error
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(path, f"must have 1 to {MAX_PIXELS} pixels, got {width}x{height}")
    return image
