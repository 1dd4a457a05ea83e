"""Class and probability of pictures, from tensors or from files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imgfast.data import ImageError, expand, normalise, read_pictures, with_channels
from imgfast.data.folder import Progress
from imgfast.models import Classifier

if TYPE_CHECKING:  # which needs the logits of this module
    from imgfast.engine.abstention import Abstention

_BATCH = 256


@dataclass(frozen=True)
class Guess:
    """A class and its probability, in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the classifier says about one file.

    Args:
        path: the file, as given or found.
        label: name of the most probable class; ``None`` where the classifier abstains.
        probability: of the most probable class, in [0, 1].
        abstained: that probability is below the threshold.
        top: the most probable classes, best first, whether or not the classifier abstains.
    """

    path: str
    label: str | None
    probability: float
    abstained: bool
    top: tuple[Guess, ...]


def predict_probabilities(
    model: Classifier, images: torch.Tensor, temperature: float = 1.0, mirror: bool = False
) -> torch.Tensor:
    """``softmax(logits / temperature)`` of :func:`predict_logits`.

    Args:
        model: the classifier; it is put in eval mode.
        images: uint8 ``[N, C, S, S]``, on any device.
        temperature: above 0; above 1 the probabilities are less extreme.
        mirror: as in :func:`predict_logits`.

    Returns:
        float32 ``[N, classes]``, on the CPU; every row sums to 1.

    Raises:
        ValueError: as :func:`predict_logits`.
    """
    return (predict_logits(model, images, mirror) / temperature).softmax(1)


def predict_logits(model: Classifier, images: torch.Tensor, mirror: bool = False) -> torch.Tensor:
    """``model(normalised images)``, batch by batch.

    Args:
        model: the classifier; it is put in eval mode.
        images: uint8 ``[N, C, S, S]``, on any device.
        mirror: the mean with ``model(mirrored normalised images)``, left and right exchanged, in
            twice the time: better by what the two make different mistakes, where a picture means
            the same in a mirror and training has flipped pictures, too.

    Returns:
        float32 ``[N, classes]``, on the CPU, all finite.

    Raises:
        ValueError: images of another dtype or shape, or an output that is NaN or infinite.
    """

    def with_mirrored(x: torch.Tensor) -> torch.Tensor:
        return (model(x) + model(x.flip(3))) / 2

    function = with_mirrored if mirror else model
    return _in_batches(model, images, function, len(model.config.classes))


def predict_features(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """``model.features(normalised images)``, batch by batch: what the last layer sees.

    Args:
        model, images: as in :func:`predict_logits`.

    Returns:
        float32 ``[N, head.in_features]``, on the CPU, all finite.

    Raises:
        ValueError: as :func:`predict_logits`.
    """
    return _in_batches(model, images, model.features, model.head.in_features)


def _in_batches(
    model: Classifier,
    images: torch.Tensor,
    function: Callable[[torch.Tensor], torch.Tensor],
    width: int,
) -> torch.Tensor:
    """A function of normalised pictures that gives ``width`` numbers each."""
    config = model.config
    shape = (config.channels, config.image_size, config.image_size)
    if images.dtype != torch.uint8 or images.shape[1:] != shape:
        raise ValueError(
            f"predict: images must be uint8 [N, {', '.join(map(str, shape))}], "
            f"got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )
    model.eval()
    device = next(model.parameters()).device
    rows = [torch.empty(0, width)]
    with torch.inference_mode():
        for batch in images.split(_BATCH):
            x = normalise(batch.to(device), config.mean, config.std)
            found = function(x.contiguous(memory_format=torch.channels_last))
            rows.append(found.float().cpu())
    # Outside inference mode: the caller gets a tensor that it may change and derive by.
    found = torch.cat(rows)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(
            "predict: the model's outputs must be finite, got NaN or infinity; its weights are "
            "not fit for use, train it again with a lower learning rate"
        )
    return found


def predict_files(
    model: Classifier,
    paths: Iterable[str | Path],
    on_picture: Progress | None = None,
    top_k: int = 1,
    abstention: Abstention | None = None,
    mirror: bool = False,
) -> tuple[list[Prediction], list[ImageError], set[str]]:
    """Predict files, folders (all pictures below) and glob patterns.

    Args:
        model: the classifier; batch norm is folded into the convolutions once, in a copy.
        paths: what to predict, in order.
        on_picture: called with (read so far, all) after each picture.
        top_k: how many classes to tell of each picture, from 1 to the model's number.
        abstention: temperature of the probabilities, and the threshold below which the classifier
            says nothing.
        mirror: as in :func:`predict_logits`.

    Returns:
        The predictions in order, the errors of files that could not be read, and which of these
        files had been named one by one rather than found in a folder or by a pattern.

    Raises:
        DataError: a folder or a pattern without a picture.
        ValueError: ``top_k`` outside its range, an abstention calibrated with another ``mirror``,
            or an output that is NaN or infinite.
    """
    config = model.config
    if not 1 <= top_k <= len(config.classes):
        raise ValueError(f"predict: top_k must be 1 to {len(config.classes)}, got {top_k}")
    if abstention and abstention.mirror != mirror:
        raise ValueError(
            f"predict: mirror must be as the abstention was calibrated, {abstention.mirror}, "
            f"got {mirror}"
        )
    model = model.eval().fold()
    temperature = abstention.temperature if abstention else 1.0
    threshold = abstention.threshold if abstention else 0.0
    files, named = expand(paths)
    predictions: list[Prediction] = []
    errors: list[ImageError] = []
    # Chunks: a folder of any size is read in bounded memory.
    for start in range(0, len(files), 4 * _BATCH):
        chunk = files[start : start + 4 * _BATCH]

        def report(done: int, _: int, start: int = start) -> None:
            if on_picture is not None:
                on_picture(start + done, len(files))

        images, kept, skipped = read_pictures(chunk, config.image_size, report)
        errors += skipped
        pixels = torch.from_numpy(with_channels(images, config.channels))
        best = predict_probabilities(model, pixels, temperature, mirror).topk(top_k)
        for index, labels, values in zip(
            kept, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            top = tuple(Guess(config.classes[i], p) for i, p in zip(labels, values, strict=True))
            abstained = top[0].probability < threshold
            label = None if abstained else top[0].label
            predictions.append(
                Prediction(str(chunk[index]), label, top[0].probability, abstained, top)
            )
    # An error carries its path made fit for one line; compare in that form.
    named_lines = {" ".join(str(path).split()) for path in named}
    return predictions, errors, {error.path for error in errors} & named_lines
