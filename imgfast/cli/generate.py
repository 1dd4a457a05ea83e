"""``imgfast generate``: new pictures from a checkpoint."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import CheckpointOption, JsonOption, command
from imgfast.data import load_picture, with_channels
from imgfast.data.atomic import write_atomically
from imgfast.engine.generation.contact_sheet import Group, draw_sheet
from imgfast.engine.generation.provenance import picture_png, sheet_png
from imgfast.models import GUIDANCE, Generator, usual_temperature

_MAX_PICTURES = 100_000  # of one call
_MAX_SHEET = 4096  # pictures on a sheet
_CHUNK = 64  # pictures generated before they are written
_COLUMNS = 16  # of a sheet


class Planned(NamedTuple):
    """A picture to come: file name without suffix, row on a sheet, text chunks, class and seed;
    of an interpolation neither of these."""

    stem: str
    row: str
    texts: dict[str, object]
    label: int | None = None
    seed: int | None = None


@command()
def generate(
    checkpoint: CheckpointOption,
    class_names: Annotated[
        list[str] | None,
        typer.Option("--class", help="Of the pictures; may be repeated. Default: every class."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="A picture of each class for each: 0-63, or 0,5,7-9.")
    ] = "0-7",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures, a PNG each: CLASS-SEED.png.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="PNG of all pictures, in rows by class.")
    ] = None,
    guidance: Annotated[
        float,
        typer.Option(
            help="1 is none; more is truer to the class and less varied, at twice the time."
        ),
    ] = GUIDANCE,
    temperature: Annotated[
        float | None,
        typer.Option(help="Below 1 safer, above 1 wilder. Default: 1, without guidance 0.9."),
    ] = None,
    interpolate: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two picture files; draw the way from the first to the second instead."),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, max=1000, help="With --interpolate: pictures.")] = 8,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw new pictures of classes; the same seed gives the same picture.

    Each PNG says in text chunks that it was generated, by which weights, and from which seed.
    """
    if out is None and grid is None:
        raise typer.BadParameter("--out or --grid must say where the pictures go")
    if interpolate and class_names:
        raise typer.BadParameter("--interpolate takes no --class")
    if temperature is None:
        temperature = usual_temperature(guidance)
    numbers = parse_seeds(seeds)
    loaded = engine.load_generator(checkpoint)
    model, classes = loaded.model, loaded.config.classes
    if interpolate:
        planned = [
            Planned(f"interpolation-{step:03}", "", {"Step": f"{step} of {steps}"})
            for step in range(1, steps + 1)
        ]
    else:
        labels = _labels(classes, class_names)
        if len(labels) * len(numbers) > _MAX_PICTURES:
            raise ValueError(
                f"generate: at most {_MAX_PICTURES} pictures at once, "
                f"got {len(labels) * len(numbers)}; ask for fewer classes or seeds"
            )
        planned = _planned(classes, labels, numbers, guidance, temperature)
    if grid and len(planned) > _MAX_SHEET:
        raise ValueError(f"generate: at most {_MAX_SHEET} pictures on a grid, got {len(planned)}")
    files = [out / f"{one.stem}.png" for one in planned] if out else []
    _refuse_used([*files, *([grid] if grid else [])], overwrite)
    ends = [_read(path, model) for path in interpolate] if interpolate else []
    for folder in (out, grid.parent if grid else None):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    weights = {"Checkpoint-SHA256": loaded.sha256}
    kept: list[torch.Tensor] = []
    started = time.perf_counter()
    with console.progress("generating") as on_picture:
        if ends:
            chunks: Iterator[torch.Tensor] = iter([model.interpolate(*ends, steps)])
        else:
            chunks = _generated(model, planned, guidance, temperature)
        done = 0
        for pictures in chunks:
            if out:
                for one, file, pixels in zip(planned[done:], files[done:], pictures, strict=False):
                    write_atomically(file, picture_png(pixels, weights | one.texts))
            if grid:
                kept += [pictures]
            done += len(pictures)
            on_picture(done, len(planned))
    seconds = time.perf_counter() - started
    if grid:
        write_atomically(grid, _sheet(planned, torch.cat(kept), weights, loaded.path))
    if as_json:
        console.print_json(
            {
                "pictures": [
                    {
                        "path": str(file),
                        "class": None if one.label is None else classes[one.label],
                        "seed": one.seed,
                    }
                    for one, file in zip(planned, files, strict=False)
                ],
                "grid": str(grid) if grid else None,
                "count": len(planned),
                "checkpoint": str(loaded.path),
                "sha256": loaded.sha256,
                "guidance": guidance,
                "temperature": temperature,
                "seconds": round(seconds, 3),
            }
        )
    else:
        for place in (out, grid):
            if place is not None:
                console.line(f"{len(planned)} pictures in {place}")
        console.error(f"{len(planned)} pictures in {seconds:.2f} s")


def parse_seeds(text: str) -> list[int]:
    """``0-63`` or ``0,5,7-9`` as numbers, in that order, each once.

    Raises:
        ValueError: another form, a falling range, too large a number, or too many.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", part.strip())
        if match is None:
            raise ValueError(f"generate: seeds must be like 0-63 or 0,5,7-9, got {text[:100]!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"generate: seeds must rise, got {part.strip()!r}")
        if last >= 2**63:
            raise ValueError(f"generate: seeds must be below 2^63, got {last}")
        if last - first >= _MAX_PICTURES or len(found) > _MAX_PICTURES:
            raise ValueError(f"generate: at most {_MAX_PICTURES} seeds at once, got {text[:100]!r}")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def _labels(classes: tuple[str, ...], names: Sequence[str] | None) -> list[int]:
    """Numbers of the classes that are asked for, all of them without names."""
    for name in names or ():
        if name not in classes:
            known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise ValueError(f"generate: class must be one of {known}, got {name!r}")
    return [*dict.fromkeys(map(classes.index, names or classes))]


def _planned(
    classes: tuple[str, ...],
    labels: Sequence[int],
    seeds: Sequence[int],
    guidance: float,
    temperature: float,
) -> list[Planned]:
    stems = [re.sub(r"[^\w-]+", "-", name)[:100].strip("-_") or "class" for name in classes]
    folded = [stem.casefold() for stem in stems]  # some file systems know no case
    stems = [
        stem if folded.count(stem.casefold()) == 1 else f"{stem}-{label}"
        for label, stem in enumerate(stems)
    ]
    figures = {"Guidance": f"{guidance:g}", "Temperature": f"{temperature:g}"}
    return [
        Planned(
            f"{stems[label]}-{seed}",
            classes[label],
            {"Class": classes[label], "Seed": seed, **figures},
            label,
            seed,
        )
        for label in labels
        for seed in seeds
    ]


def _refuse_used(files: Sequence[Path], overwrite: bool) -> None:
    """No file that is there already is touched unless asked, and two results need two files."""
    if len(set(files)) < len(files):
        raise ValueError("generate: --grid must be another file than the pictures in --out")
    for file in () if overwrite else files:
        if file.exists() or file.is_symlink():
            raise ValueError(f"{file}: already exists; choose another place or use --overwrite")


def _read(path: Path, model: Generator) -> torch.Tensor:
    """A picture file as uint8 ``[C, S, S]``, cropped and resized for the model."""
    pixels = load_picture(path, model.config.image_size)
    return torch.from_numpy(with_channels(pixels[None], model.config.channels)[0])


def _generated(
    model: Generator, planned: Sequence[Planned], guidance: float, temperature: float
) -> Iterator[torch.Tensor]:
    """The pictures in order, some at a time."""
    for start in range(0, len(planned), _CHUNK):
        chunk = planned[start : start + _CHUNK]
        labels = torch.tensor([one.label for one in chunk])
        yield model.generate(labels, [one.seed for one in chunk], guidance, temperature)


def _sheet(
    planned: Sequence[Planned], pictures: torch.Tensor, weights: dict[str, str], path: Path
) -> bytes:
    """All pictures as one PNG, in rows of one class each."""
    rows: list[tuple[str, list[Group]]] = []
    runs = itertools.groupby(planned, key=lambda one: one.row)
    counts = [(name, len(list(members))) for name, members in runs]
    columns, done = min(_COLUMNS, max(count for _, count in counts)), 0
    for name, count in counts:
        for part in pictures[done : done + count].split(columns):
            full = part.new_full((columns, *part.shape[1:]), 255)  # white where there is none
            full[: len(part)] = part
            rows.append((name, [Group(full)]))
        done += count
    first = {name: value for name, value in planned[0].texts.items() if name not in _OWN}
    title = ", ".join(f"{name.lower()} {value}" for name, value in first.items())
    return sheet_png(draw_sheet(title or "interpolation", rows), weights | first)


_OWN = ("Class", "Seed", "Step")  # texts of one picture, not of a sheet
