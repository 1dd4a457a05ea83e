"""How good a classifier is on labelled pictures: top-1, precision, recall, F1, confusion.

:mod:`imgfast.engine.report` adds what only a test wants to know.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from imgfast.data import (
    DataError,
    ImageSet,
    expand,
    load_data,
    read_pictures,
    split,
    with_channels,
)
from imgfast.data.folder import Progress
from imgfast.data.load import FULL, SUBSET
from imgfast.engine.checkpoint import Checkpoint
from imgfast.engine.predict import predict_probabilities
from imgfast.models import Classifier, ClassifierConfig


@dataclass(frozen=True)
class ClassScore:
    """One class: of what was called so, how much was (precision); of what was, how much was found
    (recall); their harmonic mean (F1); number of pictures. A ratio of 0 to 0 counts as 0."""

    name: str
    precision: float
    recall: float
    f1: float
    pictures: int


@dataclass(frozen=True)
class Evaluation:
    """Scores on a set of pictures; macro means the mean over the classes that have pictures."""

    pictures: int
    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]  # [true class][predicted class]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def evaluate(model: Classifier, data: ImageSet) -> Evaluation:
    """Scores of a classifier on all pictures of a set."""
    predicted = predict_probabilities(model, data.images).argmax(1)
    return score(predicted, data.labels, data.classes)


def score(predicted: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...]) -> Evaluation:
    """Scores of predicted against true labels, both int64 ``[N]``, by torchmetrics.

    Raises:
        ValueError: no picture at all.
    """
    if len(labels) == 0:
        raise ValueError("score: there must be at least one picture, got none")
    # Its import takes seconds, which commands that score nothing should not take.
    from torchmetrics.functional.classification import (
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    count = len(classes)
    confusion = multiclass_confusion_matrix(predicted, labels, count)
    pictures = confusion.sum(1)
    hits = int(confusion.diagonal().sum())  # exact, where the library divides in float32
    precision, recall, f1 = (
        metric(predicted, labels, count, average="none").double()
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    )

    def macro(values: torch.Tensor) -> float:
        return values[pictures > 0].mean().item()

    return Evaluation(
        pictures=len(labels),
        accuracy=hits / len(labels),
        macro_precision=macro(precision),
        macro_recall=macro(recall),
        macro_f1=macro(f1),
        classes=tuple(
            ClassScore(*row)
            for row in zip(
                classes,
                precision.tolist(),
                recall.tolist(),
                f1.tolist(),
                pictures.tolist(),
                strict=True,
            )
        ),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def evaluation_set(
    checkpoint: Checkpoint, name: str | None = None, on_picture: Progress | None = None
) -> ImageSet:
    """The pictures to judge a checkpoint on, none of which it was trained on.

    Args:
        checkpoint: the model and how it was trained.
        name: a data set as in :func:`imgfast.data.load_data`; ``None`` is the training set. Of
            the set it was trained on the held-out part is taken, of any other set everything.

    Raises:
        DataError: no such set, other classes or sizes than the model's, or a set that has
            changed since training, so that what was held out is not known any more.
    """
    config, training = checkpoint.config, checkpoint.training
    trained_on = training.get("data")
    if name is None and not isinstance(trained_on, str):
        raise DataError(f"{checkpoint.path}: does not say what it was trained on; give --data")
    if name == SUBSET and trained_on == FULL:
        raise DataError(f"{name}: is part of what {checkpoint.path} was trained on; use {FULL}")
    data = load_data(
        name or trained_on, config.image_size, config.channels, config.classes, on_picture
    )
    shape = (config.channels, config.image_size, config.image_size)
    if data.classes != config.classes or tuple(data.images.shape[1:]) != shape:
        raise DataError(
            f"{data.name}: pictures and classes must be the model's, {list(shape)} of "
            f"{config.classes}, got {list(data.images.shape[1:])} of {data.classes}"
        )
    same = data.fingerprint() == training.get("fingerprint")
    official = data.official_test is not None
    if same or (official and data.name != trained_on):
        return split(data, int(training.get("seed", 0)))[1]
    if name is None or official:
        raise DataError(
            f"{data.name}: has changed since {checkpoint.path} was trained on it, so what was "
            "held out is not known; give --data to judge on all pictures of a folder"
        )
    return data


def foreign_pictures(
    config: ClassifierConfig, name: str, on_picture: Progress | None = None
) -> torch.Tensor:
    """Pictures of other things, in a model's size: a data set, or a folder of any pictures.

    Returns:
        uint8 ``[N, C, S, S]``; pictures that cannot be read are left out.

    Raises:
        DataError: no such set, or no readable picture.
    """
    if not Path(name).is_dir():
        return load_data(name, config.image_size, config.channels, on_picture=on_picture).images
    files, _ = expand([name])
    images, kept, errors = read_pictures(files, config.image_size, on_picture)
    if not kept:
        raise DataError(
            f"{name}: must hold at least one readable picture; first error: {errors[0]}"
        )
    return torch.from_numpy(with_channels(images, config.channels))


def evaluate_checkpoint(
    checkpoint: Checkpoint, name: str | None = None, on_picture: Progress | None = None
) -> tuple[Evaluation, ImageSet]:
    """Scores of a checkpoint, and the pictures they are of; see :func:`evaluation_set`."""
    data = evaluation_set(checkpoint, name, on_picture)
    return evaluate(checkpoint.model, data), data
