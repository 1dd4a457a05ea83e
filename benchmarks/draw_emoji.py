"""Draw a folder of colour JPEGs in classes, of mixed sizes, from an emoji font.

usage: draw_emoji.py FOLDER [--count 2000] [--size 40,300] [--seed 0] [--font FILE]

    FOLDER   is made, with a folder for each class in it; it must not exist
    --count  of pictures in all, as many of each class
    --size   smallest and largest height and width in pixels; 32,32 for one size

Every picture is an emoji of its class, turned by up to 20 degrees, at some place and size on a
background of one colour. The same seed gives the same pictures. The font is Noto Color Emoji (SIL
Open Font License 1.1; Debian: fonts-noto-color-emoji).
"""

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
STRIKE = 109  # pixels, the one size of the bitmaps in that font

CLASSES = {
    "animal": [*range(0x1F400, 0x1F43B)],
    "building": [*range(0x1F3E0, 0x1F3F1)],
    "clock": [*range(0x1F550, 0x1F568)],
    "face": [*range(0x1F600, 0x1F638)],
    "fruit": [*range(0x1F345, 0x1F354), 0x1F95D, 0x1F951, 0x1F965, 0x1F96D],
    "heart": [*range(0x1F493, 0x1F49D), 0x1F5A4, 0x1F90E, 0x1F90D, 0x1F9E1],
    "plant": [*range(0x1F331, 0x1F345)],
    "vehicle": [*range(0x1F680, 0x1F6A5)],
}


def draw(font: ImageFont.FreeTypeFont, code: int, size: tuple[int, int], dice: random.Random):
    """One picture of one emoji, ``size`` pixels wide and high."""
    emoji = Image.new("RGBA", (136, 136))
    ImageDraw.Draw(emoji).text((0, 4), chr(code), font=font, embedded_color=True)
    emoji = emoji.crop(emoji.getbbox())
    emoji = emoji.rotate(dice.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    room = min(size) * dice.uniform(0.75, 1.0) / max(emoji.size)
    emoji = emoji.resize([max(1, round(side * room)) for side in emoji.size], Image.Resampling.BOX)
    picture = Image.new("RGB", size, tuple(dice.randrange(256) for _ in range(3)))
    place = [dice.randint(0, whole - side) for whole, side in zip(size, emoji.size, strict=True)]
    picture.paste(emoji, tuple(place), emoji)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--size", default="40,300")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--font", default=FONT)
    asked = parser.parse_args()
    smallest, largest = map(int, asked.size.split(","))
    font = ImageFont.truetype(asked.font, STRIKE)
    asked.folder.mkdir(parents=True)
    dice = random.Random(asked.seed)
    for name, codes in CLASSES.items():
        (asked.folder / name).mkdir()
        for number in range(asked.count // len(CLASSES)):
            width = dice.randint(smallest, largest)
            height = dice.randint(max(smallest, width // 2), min(largest, 2 * width))
            picture = draw(font, codes[number % len(codes)], (width, height), dice)
            picture.save(asked.folder / name / f"{number:04}.jpg", quality=dice.randint(85, 95))


if __name__ == "__main__":
    main()
