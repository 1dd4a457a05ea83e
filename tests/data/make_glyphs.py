"""Colour JPEGs of mixed sizes in class folders, from the fonts that matplotlib ships.

usage: make_glyphs.py FOLDER [--count N] [--seed S]

Each class is one character, drawn in some font, size, colour, place and rotation on a background
with a gradient and noise; heights and widths lie between 40 and 400 pixels. The fonts are DejaVu
and STIX (free licences).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CLASSES = {
    "ampersand": "&",
    "at": "@",
    "eight": "8",
    "four": "4",
    "heart": "\u2665",
    "k": "K",
    "omega": "\u03a9",
    "question": "?",
    "star": "\u2605",
    "sun": "\u2600",
}


def fonts_with(character: str) -> list[Path]:
    """matplotlib's fonts that can draw a character."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = sorted([*folder.glob("DejaVu*.ttf"), *folder.glob("STIXGeneral*.ttf")])
    return [path for path in found if FT2Font(str(path)).get_char_index(ord(character))]


def glyph(character: str, font: Path, random: np.random.Generator) -> Image.Image:
    """One picture of a character."""
    height, width = random.integers(40, 401, 2)
    corners = random.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    background = Image.fromarray(corners).resize((int(width), int(height)), Image.BICUBIC)
    noise = random.normal(0, 12, (height, width, 3))
    pixels = np.clip(np.asarray(background) + noise, 0, 255).astype(np.uint8)
    background = Image.fromarray(pixels)

    side = int(min(height, width))
    size = int(side * random.uniform(0.5, 0.8))
    mask = Image.new("L", (side, side))
    face = ImageFont.truetype(str(font), size)
    ImageDraw.Draw(mask).text((side / 2, side / 2), character, 255, face, anchor="mm")
    mask = mask.rotate(random.uniform(-25, 25), Image.BICUBIC)
    # A colour that is not the background's.
    mean = pixels.mean((0, 1))
    colour = tuple(int(c) for c in (mean + random.integers(90, 166, 3)) % 256)
    shift = random.uniform(-0.1, 0.1, 2) * side
    left, top = (int(width) - side) // 2 + int(shift[0]), (int(height) - side) // 2 + int(shift[1])
    background.paste(colour, (left, top, left + side, top + side), mask)
    return background


def make_glyphs(folder: Path, count: int = 2000, seed: int = 0) -> None:
    """Write ``count`` JPEGs, as many of each class as of the others."""
    random = np.random.default_rng(seed)
    fonts = {name: fonts_with(character) for name, character in CLASSES.items()}
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = list(CLASSES)
    for number in range(count):
        name = names[number % len(names)]
        font = fonts[name][random.integers(len(fonts[name]))]
        quality = int(random.integers(60, 96))
        picture = glyph(CLASSES[name], font, random)
        picture.save(folder / name / f"{number:05}.jpg", quality=quality)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_glyphs(arguments.folder, arguments.count, arguments.seed)
