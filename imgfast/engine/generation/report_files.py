"""A generator's report as files: its figures, and pictures to judge by eye."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from imgfast.data.atomic import write_atomically
from imgfast.engine.generation.contact_sheet import Group, draw_sheet
from imgfast.engine.generation.provenance import sheet_png
from imgfast.engine.generation.report import GeneratorReport

_ROWS = 40  # of more classes the first ones are shown


def save_report(
    folder: Path, report: GeneratorReport, texts: Mapping[str, object] | None = None
) -> None:
    """Write a report as files; those of an earlier one are replaced.

    The pictures say that a model made them, see
    :mod:`imgfast.engine.generation.provenance`, with ``texts`` and the report's seed.

    ``generation.json``      every figure
    ``samples.png``          a row a class, and the same seeds for each guidance
    ``reconstructions.png``  held-out pictures, beside each what the codes keep of it
    ``neighbours.png``       of each class the generated pictures that are nearest to a training
    picture, beside each its nearest ones and their distances
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = {**(texts or {}), "Seed": report.seed}
    text = json.dumps(report.to_dict(), indent=2) + "\n"
    write_atomically(folder / "generation.json", text.encode())
    shown = report.pictures
    names = report.classes[:_ROWS]
    rows = [
        (name, [Group(images[row]) for images in shown.generated]) for row, name in enumerate(names)
    ]
    title = "generated, same seeds: " + ", then ".join(one.drawn for one in report.generated)
    _write(folder / "samples.png", title, rows, told)
    pairs = torch.stack([shown.real, shown.reconstructed], 2)  # [K, n, 2, C, S, S]
    rows = [(name, [Group(pair) for pair in pairs[row]]) for row, name in enumerate(names)]
    title = "held-out pictures, each with its reconstruction"
    _write(folder / "reconstructions.png", title, rows, told)
    rows = []
    for row, name in enumerate(names):
        found = zip(shown.closest[row], shown.neighbours[row], shown.distances[row], strict=True)
        groups = [
            Group(torch.cat([one[None], others]), "distance " + _listed(distances))
            for one, others, distances in found
        ]
        rows.append((name, groups))
    drawn = report.generated[-1].drawn
    title = f"{drawn}: the likeliest copies, each with its nearest training pictures"
    _write(folder / "neighbours.png", title, rows, told)


def _write(
    path: Path, title: str, rows: list[tuple[str, list[Group]]], texts: Mapping[str, object]
) -> None:
    write_atomically(path, sheet_png(draw_sheet(title, rows), texts))


def _listed(distances: torch.Tensor) -> str:
    return ", ".join(f"{distance:.3f}" for distance in distances.tolist())
