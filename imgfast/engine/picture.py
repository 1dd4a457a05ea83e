"""A grid of pictures with the predicted class under each: right in green, wrong in red."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from imgfast.data import ImageSet
from imgfast.engine.checkpoint import write_atomically
from imgfast.engine.predict import predict_probabilities
from imgfast.models import Classifier

_CELL, _CAPTION, _GAP = 112, 34, 8
_RIGHT, _WRONG, _INK = (0, 110, 50), (190, 20, 20), (70, 70, 70)


def save_prediction_grid(
    path: str | Path, model: Classifier, data: ImageSet, rows: int = 5, columns: int = 8
) -> None:
    """Write a PNG of pictures spread evenly over a set, with what the model says about them.

    Args:
        path: the PNG file; replaced atomically.
        model: the classifier.
        data: labelled pictures; the set must not be empty.
        rows, columns: of the grid.
    """
    picked = torch.linspace(0, len(data) - 1, min(rows * columns, len(data))).long()
    shown = data.subset(picked)
    best = predict_probabilities(model, shown.images).max(1)
    width = columns * (_CELL + _GAP) + _GAP
    height = rows * (_CELL + _CAPTION + _GAP) + _GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=12)
    for index in range(len(shown)):
        left = _GAP + (index % columns) * (_CELL + _GAP)
        top = _GAP + (index // columns) * (_CELL + _CAPTION + _GAP)
        canvas.paste(_to_image(shown.images[index]), (left, top))
        predicted, actual = int(best.indices[index]), int(shown.labels[index])
        right = predicted == actual
        said = f"{_short(data.classes[predicted])} {best.values[index]:.0%}"
        draw.text((left, top + _CELL + 1), said, _RIGHT if right else _WRONG, font)
        if not right:
            draw.text((left, top + _CELL + 16), f"is {_short(data.classes[actual])}", _INK, font)
    encoded = io.BytesIO()
    canvas.save(encoded, "PNG")
    write_atomically(Path(path), encoded.getvalue())


def _short(name: str) -> str:
    """A class name cut to the width of a cell."""
    return name if len(name) <= 13 else f"{name[:12]}..."


def _to_image(pixels: torch.Tensor) -> Image.Image:
    """uint8 ``[C, S, S]`` as a square of the grid's size."""
    channels_last = np.ascontiguousarray(pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    return Image.fromarray(channels_last).resize((_CELL, _CELL), Image.Resampling.BILINEAR)
