"""One PNG a picture: the picture, and beside it each heat map laid on it, with captions.

Red speaks for the class, blue against it, at full strength for the largest hundredth of the map:
one outlier does not make the rest invisible. The PNG is drawn from pixels alone: nothing else of
the input file reaches it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

PANEL, _GAP, _TITLE, _CAPTION = 224, 8, 20, 36
_FOR, _AGAINST = (220, 30, 30), (40, 80, 230)
_STRENGTH = 0.75  # of the colour where the map is largest: the picture stays visible
_INK = (40, 40, 40)


def draw_overlays(
    picture: torch.Tensor, title: str, panels: Sequence[tuple[str, str, torch.Tensor]]
) -> bytes:
    """The bytes of a PNG.

    Args:
        picture: uint8 ``[C, S, S]``.
        title: one line above everything.
        panels: two lines of caption and a heat map ``[S, S]`` each.
    """
    width = (1 + len(panels)) * (PANEL + _GAP) + _GAP
    canvas = Image.new("RGB", (width, _TITLE + PANEL + _CAPTION + 2 * _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    draw.text((_GAP, 4), fitted(title, font, width - 2 * _GAP), _INK, font)
    top = _TITLE + _GAP
    canvas.paste(_enlarged(rgb(picture)), (_GAP, top))
    for number, (first, second, heat) in enumerate(panels, start=1):
        left = _GAP + number * (PANEL + _GAP)
        canvas.paste(_enlarged(laid_on(picture, heat)), (left, top))
        for row, text in enumerate((first, second)):
            place = (left, top + PANEL + 2 + 16 * row)
            draw.text(place, fitted(text, font, PANEL), _INK, font)
    encoded = io.BytesIO()
    canvas.save(encoded, "PNG")
    return encoded.getvalue()


def laid_on(picture: torch.Tensor, heat: torch.Tensor) -> np.ndarray:
    """A heat map on a picture, uint8 ``[S, S, 3]``; the picture is shown in grey.

    Args:
        picture: uint8 ``[C, S, S]``.
        heat: ``[S, S]``; a map of zeros leaves the picture as it is.
    """
    grey = rgb(picture).mean(2, keepdims=True)
    values = heat.numpy()[..., None]
    size = np.abs(values)
    # A map that is zero but for a few pixels has a quantile of 0: its largest value then.
    full = np.quantile(size, 0.99) or size.max() or 1.0
    strength = np.minimum(size / full, 1) * _STRENGTH
    colour = np.where(values > 0, np.array(_FOR), np.array(_AGAINST))
    return (grey * (1 - strength) + colour * strength).round().astype(np.uint8)


def rgb(picture: torch.Tensor) -> np.ndarray:
    """uint8 ``[C, S, S]`` as ``[S, S, 3]``."""
    return picture.permute(1, 2, 0).expand(-1, -1, 3).numpy()


def fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A printable line that is cut where it would leave its place."""
    text = "".join(char if char.isprintable() else "?" for char in text[:500])
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _enlarged(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image.resize((PANEL, PANEL), Image.Resampling.NEAREST)
