"""One set of pictures of known classes against real ones, as a classifier sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from imgfast.engine.generation.feature_distance import frechet_distance, kernel_distance
from imgfast.engine.generation.feature_neighbours import compare_manifolds
from imgfast.engine.predict import predict_features
from imgfast.engine.report import wilson_interval
from imgfast.models import Classifier


@dataclass(frozen=True)
class SetQuality:
    """One set of pictures beside the held-out half that it is compared with.

    Args:
        kind: what it is, as in :mod:`imgfast.engine.generation.report`.
        guidance, temperature: of a generated set.
        agreement: share of pictures that the judge takes for the class they are meant to be of.
        agreement_interval: 95%, Wilson's score interval.
        class_agreement: for each class.
        frechet: :func:`~imgfast.engine.generation.feature_distance.frechet_distance`.
        frechet_share: of that of the class means, so that the judge's scale drops out.
        kernel, kernel_error: :func:`~imgfast.engine.generation.feature_distance.kernel_distance`.
        precision, recall, density, coverage: see
            :mod:`imgfast.engine.generation.feature_neighbours`.
        within_class: mean distance of pixels between two pictures of a class, over that of the
            real half; the mean over the classes of either.
        nearest, nearest_low: distance to the nearest training picture, the median and the 5%
            quantile, see :mod:`imgfast.engine.generation.nearest_pictures`; ``None`` for means and
            noise.
        novelty: of a generated set, where ``nearest`` lies between that of reconstructions of
            training pictures, 0, and that of the reconstructed held-out ones, 1; ``None`` where
            the second is not 5% above the first.
        not_copying: of a generated set: ``nearest`` is not below that of the reconstructed set by
            more than chance, see :func:`~imgfast.engine.generation.report.no_nearer`.
    """

    kind: str
    guidance: float | None
    temperature: float | None
    agreement: float
    agreement_interval: tuple[float, float]
    class_agreement: tuple[float, ...]
    frechet: float
    frechet_share: float
    kernel: float
    kernel_error: float
    precision: float
    recall: float
    density: float
    coverage: float
    within_class: float
    nearest: float | None = None
    nearest_low: float | None = None
    novelty: float | None = None
    not_copying: bool | None = None

    @property
    def drawn(self) -> str:
        """How a generated set was drawn, in words."""
        return f"guidance {self.guidance:g}, temperature {self.temperature:g}"


class Comparison:
    """The real half that all sets are compared with, and what of it is worked out once.

    The judge's features are averaged over the picture's places before distances are taken, as those
    of Inception are: one number for each filter of the last stage. With a number for each place,
    too, there would be as many of them as pictures, and chance alone would keep real sets apart.

    Args:
        judge: the classifier.
        reference: uint8 ``[N, C, S, S]``, class after class.
        labels: int64 ``[N]``, of these and of every other set.
        number: pictures of a class.
        seed: of the subsets for the kernel distance's error.
    """

    def __init__(
        self,
        judge: Classifier,
        reference: torch.Tensor,
        labels: torch.Tensor,
        number: int,
        seed: int,
    ) -> None:
        self.judge = judge.eval().fold()
        self.labels, self.number, self.seed = labels, number, seed
        self.features, right = self._judged(reference)
        self.accuracy = right.mean().item()
        self.spread = _mean_distance_in_a_class(reference, number)
        self.ceiling = 0.0

    def set_ceiling(self, means: torch.Tensor) -> None:
        """Take the class means' distance for the whole of which others are a share."""
        self.ceiling = frechet_distance(self._judged(means)[0], self.features)

    def quality(
        self,
        kind: str,
        images: torch.Tensor,
        guidance: float | None = None,
        temperature: float | None = None,
        **known: Any,
    ) -> SetQuality:
        """All figures of a set but for those that are known."""
        features, right = self._judged(images)
        frechet = frechet_distance(features, self.features)
        kernel = kernel_distance(features, self.features, self.seed)
        smallest = torch.finfo(torch.float64).tiny
        return SetQuality(
            kind,
            guidance,
            temperature,
            agreement=right.mean().item(),
            agreement_interval=wilson_interval(right.mean().item(), len(right)),
            class_agreement=tuple(right.view(-1, self.number).mean(1).tolist()),
            frechet=frechet,
            frechet_share=frechet / max(self.ceiling, smallest),
            kernel=kernel.value,
            kernel_error=kernel.error,
            **compare_manifolds(self.features, features)._asdict(),
            within_class=_mean_distance_in_a_class(images, self.number)
            / max(self.spread, smallest),
            **known,
        )

    @torch.inference_mode()
    def _judged(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features ``[N, filters]``, and ``[N]`` with 1 where the judge finds the label, else 0;
        float64."""
        features, head = predict_features(self.judge, images), self.judge.head
        logits = head(features.to(head.weight.device, head.weight.dtype))
        right = (logits.argmax(1).cpu() == self.labels).double()
        return features.view(len(images), self.judge.config.widths[-1], -1).double().mean(2), right


def _mean_distance_in_a_class(images: torch.Tensor, number: int) -> float:
    """Over all pairs of a class, then over the classes; pixels scaled to [0, 1]."""
    of_class = [torch.pdist(x.flatten(1).float()).mean() for x in images.split(number)]
    return torch.stack(of_class).double().mean().item() / 255
