"""Explain what a classifier says about picture files: overlays on disk, scores to report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from imgfast.data import ImageError, expand, read_pictures, with_channels
from imgfast.data.atomic import write_atomically
from imgfast.data.folder import Progress
from imgfast.engine.attribution import (
    METHODS,
    Completeness,
    grad_cam,
    integrated_gradients,
    occlusion,
)
from imgfast.engine.faithfulness import faithfulness, pixel_order, random_baseline
from imgfast.engine.overlay import draw_overlays
from imgfast.engine.predict import predict_probabilities
from imgfast.models import Classifier

_CHUNK = 64
_LONGEST_STEM = 48  # characters of an overlay's name, so that every file system takes it


@dataclass(frozen=True)
class Score:
    """Areas under the curves of :mod:`imgfast.engine.faithfulness`, in [0, 1]."""

    deletion: float
    insertion: float


@dataclass(frozen=True)
class Explanation:
    """One picture explained.

    Args:
        path: the file, as given or found.
        overlay: the PNG that was written.
        label: name of the most probable class.
        probability: its probability.
        explained: name of the class that the heat maps are about.
        explained_probability: its probability.
        scores: of each method.
        random: of the pixels in random order.
        completeness_error: of integrated gradients, see
            :class:`imgfast.engine.attribution.Completeness`; ``None`` without that method.
    """

    path: str
    overlay: str
    label: str
    probability: float
    explained: str
    explained_probability: float
    scores: dict[str, Score]
    random: Score
    completeness_error: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def explain_files(
    model: Classifier,
    paths: Iterable[str | Path],
    folder: str | Path,
    methods: Sequence[str] = METHODS,
    class_name: str | None = None,
    overwrite: bool = False,
    on_picture: Progress | None = None,
) -> tuple[list[Explanation], list[ImageError], set[str]]:
    """Explain files, folders (all pictures below) and glob patterns; write one PNG for each.

    Args:
        model: the classifier, in either kind of layers.
        paths: what to explain, in order.
        folder: where the overlays go, ``NAME.png`` for a picture ``NAME.*``; made if it is not
            there. Of equal names the second gets ``-2``, and so on.
        methods: some of ``METHODS``.
        class_name: the class to explain; ``None`` explains each picture's most probable one.
        overwrite: replace overlays that are there. A picture to explain is never replaced.
        on_picture: called with (explained so far, all).

    Returns:
        The explanations in order, the errors of files that could not be read, and which of these
        had been named one by one.

    Raises:
        DataError: a folder or a pattern without a picture.
        ValueError: an unknown method or class, an overlay that exists, or captum not installed.

    Note:
        Deterministic: the same checkpoint and pictures give the same PNG, byte for byte, at a
        fixed number of threads.
    """
    config = model.config
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"explain: method must be one of {', '.join(METHODS)}, got {unknown}")
    if class_name is not None and class_name not in config.classes:
        known = ", ".join(config.classes[:20]) + (", ..." if len(config.classes) > 20 else "")
        raise ValueError(f"explain: class must be one of {known}, got {class_name!r}")
    require_captum()
    files, named = expand(paths)
    folder = Path(folder)
    outputs = overlay_paths(files, folder)
    _check_free(outputs, files, overwrite)
    folder.mkdir(parents=True, exist_ok=True)

    found: list[Explanation] = []
    errors: list[ImageError] = []
    for start in range(0, len(files), _CHUNK):  # a folder of any size in bounded memory
        chunk = files[start : start + _CHUNK]
        pixels, kept, skipped = read_pictures(chunk, config.image_size)
        errors += skipped
        images = torch.from_numpy(with_channels(pixels, config.channels))
        places = [start + index for index in kept]
        found += _explain_images(
            model,
            images,
            [files[place] for place in places],
            [outputs[place] for place in places],
            methods,
            class_name,
        )
        if on_picture is not None:
            on_picture(start + len(chunk), len(files))
    # An error carries its path made fit for one line; compare in that form.
    named_lines = {" ".join(str(path).split()) for path in named}
    return found, errors, {error.path for error in errors} & named_lines


def mean_scores(found: Sequence[Explanation]) -> dict[str, Score]:
    """Mean of each method's scores over all pictures, and of ``random``; empty for none."""
    rows = [{**item.scores, "random": item.random} for item in found]
    return {
        name: Score(
            sum(row[name].deletion for row in rows) / len(rows),
            sum(row[name].insertion for row in rows) / len(rows),
        )
        for name in (rows[0] if rows else ())
    }


def overlay_paths(files: Sequence[Path], folder: Path) -> list[Path]:
    """The PNG of each file: its name, and a number behind it where that name is taken."""
    taken: set[str] = set()
    outputs = []
    for file in files:
        stem, number = file.stem[:_LONGEST_STEM], 2
        name = stem
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name)
        outputs.append(folder / f"{name}.png")
    return outputs


def require_captum() -> None:
    """Say what to install where captum is missing.

    Raises:
        ValueError: it is.
    """
    try:
        import captum  # noqa: F401
    except ImportError as error:
        raise ValueError("explain: needs captum; pip install 'imgfast[explain]'") from error


def _check_free(outputs: Sequence[Path], files: Sequence[Path], overwrite: bool) -> None:
    for output in outputs:
        if output.exists() and not overwrite:
            raise ValueError(f"{output}: already exists; choose another --out or use --overwrite")
    inputs = {file.resolve() for file in files}
    for output in outputs:
        if output.resolve() in inputs:
            raise ValueError(f"{output}: is a picture to explain; choose another --out")


def _explain_images(
    model: Classifier,
    images: torch.Tensor,
    files: Sequence[Path],
    outputs: Sequence[Path],
    methods: Sequence[str],
    class_name: str | None,
) -> list[Explanation]:
    """Explain pictures in memory and write their overlays."""
    classes = model.config.classes
    probabilities = predict_probabilities(model, images)
    best = probabilities.argmax(1)
    target = best if class_name is None else torch.full_like(best, classes.index(class_name))
    heats, completeness = _heat_maps(model, images, target, methods)
    scores = {
        method: faithfulness(model, images, target, pixel_order(heat))
        for method, heat in heats.items()
    }
    random = random_baseline(model, images, target)
    error = None if completeness is None else completeness.error.tolist()

    found = []
    for row, (file, output) in enumerate(zip(files, outputs, strict=True)):

        def of(values: torch.Tensor, row: int = row) -> float:
            return values[row].item()

        item = Explanation(
            path=str(file),
            overlay=str(output),
            label=classes[best[row]],
            probability=of(probabilities.max(1).values),
            explained=classes[target[row]],
            explained_probability=of(probabilities.gather(1, target[:, None])[:, 0]),
            scores={m: Score(of(s.deletion), of(s.insertion)) for m, s in scores.items()},
            random=Score(of(random.deletion), of(random.insertion)),
            completeness_error=None if error is None else error[row],
        )
        panels = [(m, _caption(item.scores[m]), heat[row]) for m, heat in heats.items()]
        write_atomically(output, draw_overlays(images[row], _title(item), panels))
        found.append(item)
    return found


def _heat_maps(
    model: Classifier, images: torch.Tensor, target: torch.Tensor, methods: Sequence[str]
) -> tuple[dict[str, torch.Tensor], Completeness | None]:
    heats, completeness = {}, None
    for method in methods:
        if method == "grad-cam":
            heats[method] = grad_cam(model, images, target)
        elif method == "integrated-gradients":
            heats[method], completeness = integrated_gradients(model, images, target)
        else:
            heats[method] = occlusion(model, images, target)
    return heats, completeness


def _title(item: Explanation) -> str:
    said = f"{item.label} {item.probability:.1%}"
    if item.explained == item.label:
        return said
    return f"why {item.explained} ({item.explained_probability:.1%}); the model says {said}"


def _caption(score: Score) -> str:
    return f"deletion {score.deletion:.2f}, insertion {score.insertion:.2f}"
