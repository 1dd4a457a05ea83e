"""Many pictures on one, in rows with a name and in groups with a caption; PNG, pixels alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont

from imgfast.engine.overlay import fitted, rgb

_SMALL, _LARGE = 56, 112  # sides that pictures are enlarged to at least, and reduced to at most
_NAME, _TITLE, _CAPTION, _GAP = 104, 20, 16, 10
_INK, _PALE = (40, 40, 40), (110, 110, 110)


class Group(NamedTuple):
    """Pictures side by side, uint8 ``[n, C, S, S]``, with a line below; empty for none."""

    pictures: torch.Tensor
    caption: str = ""


def draw_sheet(title: str, rows: Sequence[tuple[str, Sequence[Group]]]) -> bytes:
    """The bytes of a PNG.

    Args:
        title: one line above everything.
        rows: a name and groups each; at least one, of as many pictures as the others.
    """
    font = ImageFont.load_default(size=12)
    first = rows[0][1]
    side = _side(first[0].pictures.shape[-1])
    line = _CAPTION if any(group.caption for _, groups in rows for group in groups) else 0
    width = _NAME + sum(len(group.pictures) * (side + 1) + _GAP for group in first)
    height = _TITLE + len(rows) * (side + line + _GAP // 2) + _GAP // 2
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, 3), fitted(title, font, width - 2 * _GAP), _INK, font)
    for number, (name, groups) in enumerate(rows):
        top = _TITLE + number * (side + line + _GAP // 2)
        draw.text((_GAP, top + side // 2 - 8), fitted(name, font, _NAME - _GAP), _INK, font)
        left = _NAME
        for group in groups:
            start = left
            for picture in group.pictures:
                enlarged = Image.fromarray(rgb(picture).copy()).resize(
                    (side, side), Image.Resampling.NEAREST
                )
                canvas.paste(enlarged, (left, top))
                left += side + 1
            caption = fitted(group.caption, font, left - start)
            draw.text((start, top + side), caption, _PALE, font)
            left += _GAP
    encoded = io.BytesIO()
    canvas.save(encoded, "PNG")
    return encoded.getvalue()


def _side(size: int) -> int:
    """Of a picture on the sheet: a whole multiple of a small one's."""
    return min(size * -(-_SMALL // size), _LARGE)
