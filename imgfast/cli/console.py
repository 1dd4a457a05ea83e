"""What the command line shows: progress and errors on standard error, results on standard output.

File names come from outside; every line made of them is stripped of control characters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from imgfast.data import ImageError
from imgfast.engine import Comparison, Evaluation
from imgfast.engine.attack import AttackCurve
from imgfast.engine.generation.report import NOT_INCEPTION, GeneratorReport
from imgfast.engine.report import Report
from imgfast.engine.sweep import Trade

_MAX_LISTED = 20
_GENERATOR_FIGURES = (
    ("agreement", "agreement", ".3f"),
    ("Frechet distance", "frechet", ".2f"),
    ("share of means'", "frechet_share", ".4f"),
    ("kernel distance", "kernel", ".4f"),
    ("standard error", "kernel_error", ".4f"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("density", "density", ".3f"),
    ("coverage", "coverage", ".3f"),
    ("within class", "within_class", ".3f"),
    ("nearest, median", "nearest", ".4f"),
    ("nearest, 5%", "nearest_low", ".4f"),
    ("novelty", "novelty", ".3f"),
)
# What a progress bar tells of an epoch, by the stage of a generator's training.
_EPOCH = "epoch {epoch:.0f}, loss {loss:.3f}, "
_FIGURES = {
    None: _EPOCH + "held-out {accuracy:.2%}",
    "features": "features: " + _EPOCH + "held-out {accuracy:.2%}",
    "tokenizer": "tokenizer: " + _EPOCH + "held-out {psnr:.2f} dB",
    "prior": "prior: " + _EPOCH + "held-out {held_out_loss:.3f}",
}

_out = Console()
_err = Console(stderr=True)


def line(text: str) -> None:
    """One line on standard output."""
    print(_printable(text))


def error(text: str) -> None:
    """One line on standard error."""
    print(f"imgfast: {_printable(text)}", file=sys.stderr)


def print_json(values: dict[str, Any]) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(values))


def report_skipped(errors: Sequence[ImageError], count: bool = True) -> None:
    """List pictures that could not be read, then, unless it is plain, their number."""
    for problem in errors[:_MAX_LISTED]:
        error(str(problem))
    if len(errors) > _MAX_LISTED:
        error(f"... and {len(errors) - _MAX_LISTED} more")
    if errors and count:
        error(f"skipped {len(errors)} unreadable picture{'s' * (len(errors) > 1)}")


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a function that reports (done, all)."""
    with _bar(TextColumn("{task.completed:.0f}/{task.total:.0f}")) as bar:
        task = bar.add_task(title, total=0, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


@contextmanager
def training_progress() -> Iterator[Callable[[int, int, dict[str, Any]], None]]:
    """A bar for :func:`imgfast.engine.train` and :func:`imgfast.engine.train_generator`, with the
    figures of the latest epoch.

    Where standard error is a file or a pipe, one line an epoch.
    """
    with _bar(TextColumn("{task.fields[figures]}"), TimeRemainingColumn()) as bar:
        task = bar.add_task("training", total=None, figures="")

        reported = 0.0

        def on_step(step: int, steps: int, figures: dict[str, Any]) -> None:
            nonlocal reported
            shown = ""
            if figures:
                shown = _FIGURES[figures.get("stage")].format(**figures)
                if not _err.is_terminal and figures["epoch"] > reported:
                    reported = figures["epoch"]
                    print(shown, file=sys.stderr, flush=True)
            bar.update(task, completed=step, total=steps, figures=shown)

        yield on_step


def waiting(title: str) -> AbstractContextManager[Any]:
    """A spinner for something that cannot say how far it is."""
    return _err.status(title)


def show_evaluation(evaluation: Evaluation, confusion: bool = False) -> None:
    """Scores per class and in the mean, and the confusion matrix where asked."""
    table = Table("class", *("precision", "recall", "F1", "pictures"), box=None)
    for row in evaluation.classes:
        figures = (f"{value:.3f}" for value in (row.precision, row.recall, row.f1))
        table.add_row(_markup_free(row.name), *figures, str(row.pictures))
    means = (evaluation.macro_precision, evaluation.macro_recall, evaluation.macro_f1)
    table.add_row("macro", *(f"{value:.3f}" for value in means), str(evaluation.pictures))
    _out.print(table)
    if confusion:
        print("\nconfusion, rows true, columns predicted, in the order above")
        width = max(len(str(cell)) for cells in evaluation.confusion for cell in cells)
        for cells in evaluation.confusion:
            print(" ".join(f"{cell:>{width}}" for cell in cells))
    print(f"\naccuracy {evaluation.accuracy:.2%} on {evaluation.pictures} pictures")


def show_report(report: Report) -> None:
    """What a report has beside the scores."""
    low, high = report.interval
    line(f"95% interval {low:.2%} to {high:.2%}")
    line(f"top-{report.top_k} {report.top_k_accuracy:.2%}, log loss {report.log_loss:.4f}")
    line(f"expected calibration error {report.calibration_error:.4f}")


def show_attack(curve: AttackCurve) -> None:
    """Accuracy for each size of an attack, in steps of a pixel's 255."""
    figures = zip(curve.eps, curve.accuracy, strict=True)
    shown = ", ".join(f"{255 * eps:g}/255: {accuracy:.1%}" for eps, accuracy in figures)
    line(f"accuracy under {curve.method}, {curve.pictures} pictures: {shown}")


def show_generator_report(report: GeneratorReport) -> None:
    """Every figure of each set of pictures, agreement by class, copying, reconstruction."""
    short = {"reconstructed": "rebuilt", "class means": "means"}  # six columns in 80 characters
    guided = {1.0: "unguided", None: ""}
    heads = [
        guided.get(one.guidance, f"guided {one.guidance}") or short.get(one.kind, one.kind)
        for one in report.sets
    ]
    table = Table("", *heads, box=None)
    for name, field, form in _GENERATOR_FIGURES:
        values = (getattr(one, field) for one in report.sets)
        table.add_row(name, *("" if value is None else f"{value:{form}}" for value in values))
    _out.print(table)
    by_class = Table("agreement", *heads, box=None)
    for index, name in enumerate(report.classes):
        shares = (f"{one.class_agreement[index]:.2f}" for one in report.sets)
        by_class.add_row(_markup_free(name), *shares)
    _out.print(by_class)
    print(f"\nsets of {report.per_class} x {len(report.classes)} pictures; {NOT_INCEPTION}")
    print(f"judge: accuracy {report.judge_accuracy:.2%}, {report.features} features")
    print(
        f"reconstruction {report.reconstruction_psnr:.2f} dB (PSNR), {report.codes_used} of "
        f"{report.codes} codes used, perplexity {report.code_perplexity:.1f}"
    )
    for one in report.generated:
        print(
            f"{one.drawn}: {'not ' * bool(one.not_copying)}copying; nearest training picture "
            f"{one.nearest:.4f}, of held-out pictures' reconstructions "
            f"{report.reconstructed.nearest:.4f}, of copies {report.copy_nearest:.4f}"
        )


def show_comparison(comparisons: Sequence[Comparison]) -> None:
    """Pictures a second beside the same network in stock PyTorch."""
    table = Table("pictures/s", "imgfast", "stock PyTorch", "ratio", box=None)
    for row in comparisons:
        table.add_row(
            f"{row.task}, batch {row.batch_size}",
            f"{row.imgfast:,.0f} ({row.imgfast_layout})",
            f"{row.stock:,.0f} ({row.stock_layout})",
            f"{row.ratio:.2f}x",
        )
    _out.print(table)


def show_sweep(trades: Sequence[Trade]) -> None:
    """Size, speed and accuracy of the networks of a sweep."""
    columns = ("parameters", "multiply-adds", "pictures/s", "training, s", "accuracy")
    table = Table("network", *columns, box=None)
    for row in trades:
        table.add_row(
            row.name,
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
            f"{row.pictures_a_second:,.0f}",
            f"{row.train_seconds:.1f}",
            f"{row.accuracy:.2%}",
        )
    _out.print(table)


def _bar(*columns: Any) -> Progress:
    described = TextColumn("{task.description}")
    return Progress(
        described,
        BarColumn(),
        *columns,
        console=_err,
        transient=True,
        disable=not _err.is_terminal,
    )


def _markup_free(text: str) -> str:
    return _printable(text).replace("[", r"\[")


def _printable(text: str) -> str:
    """Escape what could move the cursor, colour the terminal, or fail to encode."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
