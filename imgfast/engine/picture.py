"""A grid of pictures with the predicted class under each: right in green, wrong in red."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from imgfast.data import ImageSet
from imgfast.data.atomic import write_atomically
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
    probabilities = torch.full((len(data), len(data.classes)), torch.nan)
    probabilities[picked] = predict_probabilities(model, data.images[picked])
    save_grid(path, data, probabilities, picked.tolist(), columns)


def save_grid(
    path: str | Path,
    data: ImageSet,
    probabilities: torch.Tensor,
    positions: list[int],
    columns: int = 8,
) -> None:
    """Write a PNG of some pictures of a set with what was said about them.

    Args:
        path: the PNG file; replaced atomically.
        data: labelled pictures.
        probabilities: float ``[N, classes]``, of the pictures shown at least.
        positions: of the pictures to show; none give an empty row.
        columns: of the grid.
    """
    rows = max(1, math.ceil(len(positions) / columns))
    width = columns * (_CELL + _GAP) + _GAP
    height = rows * (_CELL + _CAPTION + _GAP) + _GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=12)
    for cell, position in enumerate(positions):
        left = _GAP + (cell % columns) * (_CELL + _GAP)
        top = _GAP + (cell // columns) * (_CELL + _CAPTION + _GAP)
        canvas.paste(_to_image(data.images[position]), (left, top))
        probability, predicted = (value.item() for value in probabilities[position].max(0))
        actual = int(data.labels[position])
        said = f"{_short(data.classes[predicted])} {probability:.0%}"
        colour = _RIGHT if predicted == actual else _WRONG
        draw.text((left, top + _CELL + 1), said, colour, font)
        if predicted != actual:
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
