"""The report of a test: figures by hand, and files that say the same."""

import csv
import dataclasses
import json
import math

import pytest
import torch
from PIL import Image

from imgfast.engine.report import report, report_of, save_report, wilson_interval, worst_mistakes

CLASSES = ("cat", "dog", "cow")
PROBABILITIES = torch.tensor(
    [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.04, 0.9, 0.06], [0.4, 0.35, 0.25]]
)
LABELS = torch.tensor([0, 1, 2, 0, 1])


def test_figures_by_hand():
    found = report_of(PROBABILITIES, LABELS, CLASSES, top_k=2)
    assert found.evaluation.accuracy == 2 / 5
    assert found.top_k_accuracy == pytest.approx(4 / 5)
    losses = [-math.log(p) for p in (0.7, 0.6, 0.3, 0.04, 0.35)]
    assert found.log_loss == pytest.approx(sum(losses) / 5)
    # Every confidence has a bin of its own: 0.7 and 0.6 are right, 0.5, 0.9 and 0.4 are wrong.
    assert found.calibration_error == pytest.approx((0.3 + 0.4 + 0.5 + 0.9 + 0.4) / 5)
    assert worst_mistakes(found) == [3, 2, 4]
    assert worst_mistakes(found, most=1) == [3]


def test_wilson_interval():
    # Newcombe, 1998, table I: 81 of 263.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0.0, 10)[0] == 0
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1)
    assert wilson_interval(1.0, 10)[0] == pytest.approx(0.7225, abs=1e-4)


def test_more_classes_than_there_are_count_as_all():
    assert report_of(PROBABILITIES, LABELS, CLASSES, top_k=9).top_k_accuracy == 1
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        report_of(PROBABILITIES, LABELS, CLASSES, top_k=0)


def test_files_say_what_the_report_says(tmp_path, result):
    found = report(result.model, result.held_out)
    save_report(tmp_path / "report", found, result.held_out)
    values = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert values["accuracy"] == result.evaluation.accuracy
    low, high = values["interval"]
    assert low < values["accuracy"] < high
    with (tmp_path / "report" / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header[1:]) == result.held_out.classes
    counts = tuple(tuple(map(int, row[1:])) for row in rows)
    assert counts == result.evaluation.confusion
    with (tmp_path / "report" / "classes.csv").open(newline="") as file:
        for row, score in zip(csv.DictReader(file), result.evaluation.classes, strict=True):
            assert row["class"] == score.name and float(row["f1"]) == score.f1
    for name in ("confusion", "reliability", "mistakes"):
        with Image.open(tmp_path / "report" / f"{name}.png") as picture:
            assert len(picture.convert("L").getcolors()) > 3  # something is drawn


def test_a_name_may_look_like_a_formula(tmp_path, result):

    names = ("$x", "$\\frac", *result.held_out.classes[2:])
    data = dataclasses.replace(result.held_out, classes=names)
    save_report(tmp_path, report(result.model, data), data)
