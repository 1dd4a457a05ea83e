"""``imgfast data``: what a data set holds, before anything is trained on it."""

from __future__ import annotations

from typing import Annotated

import typer

from imgfast.cli import console
from imgfast.cli.app import JsonOption, command
from imgfast.data import cache_folder, clear_cache, load_data
from imgfast.data.load import FULL, SUBSET
from imgfast.data.report import DataReport, Extent, describe
from imgfast.data.torchvision_sets import PREFIX

_LISTED_GROUPS = 10


@command()
def data(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME_OR_FOLDER",
            help=f"{SUBSET}, {FULL}, {PREFIX}NAME such as {PREFIX}CIFAR10, or a folder of class "
            "folders, also below train and test.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Of the pictures in memory, pixels. Default: as train."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    download: Annotated[
        bool, typer.Option("--download", help=f"Fetch {FULL} or {PREFIX}NAME if it is not here.")
    ] = False,
    cache: Annotated[
        bool, typer.Option(help="Keep a folder's decoded pictures for the next command.")
    ] = True,
    clear: Annotated[
        bool, typer.Option("--clear-cache", help="Delete all decoded pictures that were kept.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a data set holds: classes, sizes, formats, duplicates, bad files, the split."""
    if name is None and not clear:
        raise typer.BadParameter("give a data set, or --clear-cache")
    if clear:
        count, freed = clear_cache()
        if name is None and as_json:
            console.print_json({"cache": str(cache_folder()), "files": count, "bytes": freed})
        elif not as_json:
            console.line(f"{cache_folder()}: deleted {count} decoded folders, {freed:,} bytes")
    if name is None:
        return
    with console.progress("reading") as on_picture:
        pictures = load_data(
            name, image_size, on_picture=on_picture, cache=cache, download=download
        )
    with console.waiting("comparing"):
        report = describe(pictures, seed)
    console.report_skipped(pictures.skipped)
    if as_json:
        console.print_json(report.to_dict())
    else:
        _show(report)


def _show(report: DataReport) -> None:
    colours = "grey" if report.channels == 1 else "colour"
    size = f"{report.channels}x{report.image_size}x{report.image_size}"
    console.line(f"{report.name}: {report.pictures:,} pictures, {size} in memory ({colours})")
    width = max(map(len, report.classes))
    for name, count in report.classes.items():
        console.line(f"  {name:<{width}}  {count:>9,}")
    console.line(f"width      {_extent(report.width)}")
    console.line(f"height     {_extent(report.height)}")
    if report.formats:
        formats = ", ".join(f"{kind} {count:,}" for kind, count in report.formats.items())
        console.line(f"formats    {formats}")
    console.line(f"colour     {report.grey:,} grey, {report.colour:,} coloured")
    console.line(f"unreadable {len(report.skipped):,}")
    _show_duplicates(report)
    if report.split_error is not None:
        console.line(f"split      none: {report.split_error}")
    for parts in (report.split, report.three_way_split):
        if parts:
            sizes = ", ".join(
                f"{count:,} {part.replace('_', ' ')}" for part, count in parts.items()
            )
            # Of two parts one official start leaves nothing to draw, of three parts two do.
            drawn = len(report.official) < len(parts) - 1
            origin = [f"official {' and '.join(report.official)}"] if report.official else []
            origin += [f"seed {report.seed}"] if drawn else []
            console.line(f"split      {sizes} ({', '.join(origin)})")


def _show_duplicates(report: DataReport) -> None:
    found = report.duplicates
    console.line(
        f"duplicates {found.surplus:,}; groups of equal pictures: {found.within_class:,} within a "
        f"class, {found.across_classes:,} across classes"
    )
    if found.across_parts:
        console.line(f"           {found.across_parts:,} held out and in training too")
    for group in found.groups[:_LISTED_GROUPS]:
        console.line(f"           {' = '.join(group)}")
    if len(found.groups) > _LISTED_GROUPS:
        console.line(f"           ... and {len(found.groups) - _LISTED_GROUPS:,} more groups")


def _extent(extent: Extent) -> str:
    return f"{extent.minimum} to {extent.maximum} pixels, median {extent.median}"
