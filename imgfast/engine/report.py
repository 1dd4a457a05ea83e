"""What a test of a classifier reports: scores, calibration, and the files that show them."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgfast.data import ImageSet
from imgfast.data.atomic import write_atomically
from imgfast.engine.evaluate import Evaluation, score
from imgfast.engine.figure import new_figure, save_figure
from imgfast.engine.picture import save_grid
from imgfast.engine.predict import predict_probabilities
from imgfast.models import Classifier

_BINS = 15
_Z = 1.959964  # of 95%, two-sided
_MISTAKES = 40


@dataclass(frozen=True)
class Report:
    """How good a classifier is on labelled pictures, and how far its probabilities can be trusted.

    Args:
        evaluation: top-1, precision, recall, F1, confusion.
        interval: 95% confidence interval of the accuracy, Wilson's score interval (Wilson, 1927).
        top_k, top_k_accuracy: share of pictures whose class is among the k most probable.
        log_loss: mean of ``-log p(true class)``.
        calibration_error: expected calibration error, the mean over pictures of how far the
            confidence of their bin of 15 is from its accuracy (Guo et al., 2017, arXiv:1706.04599).
        probabilities: float32 ``[N, classes]``, in the order of the pictures.
        labels: int64 ``[N]``.
    """

    evaluation: Evaluation
    interval: tuple[float, float]
    top_k: int
    top_k_accuracy: float
    log_loss: float
    calibration_error: float
    probabilities: torch.Tensor
    labels: torch.Tensor

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, without what is of a single picture."""
        return {
            **self.evaluation.to_dict(),
            "interval": list(self.interval),
            "top_k": self.top_k,
            "top_k_accuracy": self.top_k_accuracy,
            "log_loss": self.log_loss,
            "calibration_error": self.calibration_error,
        }


def report(model: Classifier, data: ImageSet, top_k: int = 3, mirror: bool = False) -> Report:
    """Judge a classifier on all pictures of a set.

    Args:
        model: the classifier; batch norm is folded first.
        data: at least one picture.
        top_k: at least 1; of fewer classes than that, all.
        mirror: as in :func:`~imgfast.engine.predict.predict_logits`.
    """
    probabilities = predict_probabilities(model.eval().fold(), data.images, mirror=mirror)
    return report_of(probabilities, data.labels, data.classes, top_k)


def report_of(
    probabilities: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...], top_k: int = 3
) -> Report:
    """The report on probabilities ``[N, classes]`` and the true labels, int64 ``[N]``."""
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
    )

    if top_k < 1:
        raise ValueError(f"report: top_k must be at least 1, got {top_k}")
    count, top_k = len(classes), min(top_k, len(classes))
    evaluation = score(probabilities.argmax(1), labels, classes)
    within = multiclass_accuracy(probabilities, labels, count, average="micro", top_k=top_k)
    error = multiclass_calibration_error(probabilities, labels, count, n_bins=_BINS)
    smallest = torch.finfo(torch.float32).tiny
    loss = torch.nn.functional.nll_loss(probabilities.clamp(min=smallest).log(), labels)
    interval = wilson_interval(evaluation.accuracy, len(labels))
    return Report(
        evaluation, interval, top_k, within.item(), loss.item(), error.item(), probabilities, labels
    )


def wilson_interval(accuracy: float, pictures: int) -> tuple[float, float]:
    """95% confidence interval of a share ``p`` of ``n``:

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` (Wilson, 1927).
    """
    spread = _Z * math.sqrt(accuracy * (1 - accuracy) / pictures + (_Z / (2 * pictures)) ** 2)
    middle, scale = accuracy + _Z**2 / (2 * pictures), 1 + _Z**2 / pictures
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def save_report(folder: Path, report: Report, data: ImageSet) -> None:
    """Write a report as files.

    ``evaluation.json``  every figure
    ``classes.csv``      precision, recall, F1 and pictures of each class
    ``confusion.csv``, ``confusion.png``  rows true, columns predicted
    ``reliability.png``  accuracy over confidence
    ``mistakes.png``     the pictures that were called something else with the highest probability
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = report.evaluation
    text = json.dumps(report.to_dict(), indent=2) + "\n"
    write_atomically(folder / "evaluation.json", text.encode())
    columns = ("class", "precision", "recall", "f1", "pictures")
    rows = [(row.name, row.precision, row.recall, row.f1, row.pictures) for row in scores.classes]
    _save_csv(folder / "classes.csv", [columns, *rows])
    named = zip(data.classes, scores.confusion, strict=True)
    table = [("true \\ predicted", *data.classes), *((name, *cells) for name, cells in named)]
    _save_csv(folder / "confusion.csv", table)
    _save_confusion(folder / "confusion.png", scores, data.classes)
    _save_reliability(folder / "reliability.png", report)
    save_grid(folder / "mistakes.png", data, report.probabilities, worst_mistakes(report))


def worst_mistakes(report: Report, most: int = _MISTAKES) -> list[int]:
    """Positions of wrong answers, the surest first."""
    confidence, predicted = report.probabilities.max(1)
    wrong = (predicted != report.labels).nonzero().flatten()
    order = confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order][:most].tolist()


def _save_csv(path: Path, rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _save_confusion(path: Path, scores: Evaluation, classes: tuple[str, ...]) -> None:
    """Shares of each true class, with the counts where they can be read."""
    counts = np.array(scores.confusion)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    side = min(3 + 0.5 * len(classes), 24)
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 50:
        # A name is text, not a formula between dollar signs.
        names = [name.replace("$", r"\$") for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=7)
    save_figure(figure, path)


def _save_reliability(path: Path, report: Report) -> None:
    """In each bin of confidence: how often it was right; below, how many pictures it holds."""
    confidence, predicted = (values.numpy() for values in report.probabilities.max(1))
    right = predicted == report.labels.numpy()
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    number = np.bincount(bins, minlength=_BINS)
    share = np.bincount(bins, weights=right, minlength=_BINS) / number.clip(min=1)
    centres = (np.arange(_BINS) + 0.5) / _BINS
    figure = new_figure(5, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="grey", linestyle="--", label="calibrated")
    there = number > 0
    upper.bar(centres[there], share[there], 0.9 / _BINS, label="this model")
    title = f"expected calibration error {report.calibration_error:.3f}"
    upper.set(ylabel="accuracy", title=title)
    upper.legend(loc="upper left")
    lower.bar(centres, number, 0.9 / _BINS, color="grey")
    lower.set(xlabel="confidence", ylabel="pictures")
    save_figure(figure, path)
