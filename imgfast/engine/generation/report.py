"""How good a generator is: its pictures against held-out real ones, by a classifier that judges.

As many pictures of every class are taken of each kind, and compared with one half of the held-out
real pictures, on the features before the judge's last layer, averaged over places:

    real           the other half: the floor, what no generator can do better than by chance
    reconstructed  the other half through the codes: the best that a prior over them can do
    generated      for each guidance
    class means    of the training pictures: right in class, without variety
    noise          uniform: neither

Copying is looked for by pixels: how far is the nearest training picture? A generated picture has
been through the decoder, which smooths, and so is to be compared with reconstructions of held-out
pictures. Copies would be as near as the reconstructions of training pictures.
:mod:`imgfast.engine.generation.report_files` writes a report as files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from imgfast.data import ImageSet
from imgfast.data.decode import Progress
from imgfast.engine.generation.nearest_pictures import Nearest, nearest_pictures
from imgfast.engine.generation.set_quality import Comparison, SetQuality
from imgfast.models import GUIDANCE, Classifier, Generator, usual_temperature

NOT_INCEPTION = "distances are on this judge's features, not comparable with Inception FID"
SHOWN, SHOWN_CLOSEST, SHOWN_NEIGHBOURS = 8, 2, 3  # pictures of a class that a report keeps
_LEAST = 4  # pictures of a class in each set
# Of a set in memory: numbers as float64, pixels as bytes.
_MAX_NUMBERS, _MAX_PIXELS = 1 << 25, 1 << 28
_MAX_FEATURES = 8192
_BATCH = 64  # pictures that are generated or added up at a time
_APART = 1.05  # least ratio of distances that makes a scale
_ROUNDING = 1 / 12  # mean squared error of rounding to whole steps: the least that is told apart


@dataclass(frozen=True)
class ReportPictures:
    """What the files of a report show, uint8; ``K`` classes, ``G`` guidances.

    Args:
        generated: ``[G, K, 8, C, S, S]``, the same seeds for every guidance.
        real, reconstructed: ``[K, 8, C, S, S]``.
        closest: ``[K, 2, C, S, S]``, of the last guidance, the nearest to a training picture.
        neighbours: ``[K, 2, 3, C, S, S]``, the training pictures nearest to each of these.
        distances: ``[K, 2, 3]``, to them.
    """

    generated: torch.Tensor
    real: torch.Tensor
    reconstructed: torch.Tensor
    closest: torch.Tensor
    neighbours: torch.Tensor
    distances: torch.Tensor


@dataclass(frozen=True)
class GeneratorReport:
    """Quality of a generator; every set has ``per_class`` pictures of each class.

    Args:
        classes: names, in the order of ``class_agreement``.
        per_class: pictures of a class in each set.
        seed: of the choice of pictures, the noise, and the generated pictures.
        features: of the judge, how many, averaged over places.
        judge_accuracy: on both halves of the real pictures.
        real, reconstructed, class_means, noise: the sets that are not generated.
        generated: one set for each guidance.
        copy_nearest: what ``nearest`` is for reconstructions of training pictures.
        reconstruction_psnr: in dB, ``10 log10(255^2 / mean squared error)`` over all pixels of the
            reconstructed set; at most 58.9, that of rounding to 8 bits.
        codes, codes_used: in the book, and those that the real half needs.
        code_perplexity: ``exp(-sum p log p)`` over the shares ``p`` of the codes in it.
        pictures: what the files show.
    """

    classes: tuple[str, ...]
    per_class: int
    seed: int
    features: int
    judge_accuracy: float
    real: SetQuality
    reconstructed: SetQuality
    generated: tuple[SetQuality, ...]
    class_means: SetQuality
    noise: SetQuality
    copy_nearest: float
    reconstruction_psnr: float
    codes: int
    codes_used: int
    code_perplexity: float
    pictures: ReportPictures

    @property
    def sets(self) -> tuple[SetQuality, ...]:
        """All sets, in the order of the top of this file."""
        return (self.real, self.reconstructed, *self.generated, self.class_means, self.noise)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, without pictures."""
        plain = (field.name for field in fields(self) if field.name != "pictures")
        values = {name: getattr(self, name) for name in plain}
        for name in ("real", "reconstructed", "class_means", "noise"):
            values[name] = asdict(values[name])
        values["generated"] = [asdict(one) for one in self.generated]
        return {**values, "note": NOT_INCEPTION}


def check_judge(generator: Generator, judge: Classifier) -> None:
    """Whether a classifier can judge a generator.

    Raises:
        ValueError: it knows other classes, or pictures of another kind, or has too many features.
    """
    for name in ("classes", "channels", "image_size"):
        wanted, found = getattr(generator.config, name), getattr(judge.config, name)
        if wanted != found:
            raise ValueError(
                f"judge: {name} must be the generator's, {str(wanted)[:200]}, "
                f"got {str(found)[:200]}; train a classifier on the same data"
            )
    if judge.head.in_features > _MAX_FEATURES:
        raise ValueError(
            f"judge: must have at most {_MAX_FEATURES} features before its last layer, "
            f"got {judge.head.in_features}; train one with more stages or narrower ones"
        )


def report_generator(
    generator: Generator,
    judge: Classifier,
    held_out: ImageSet,
    training: ImageSet,
    guidances: Sequence[float] = (1.0, GUIDANCE),
    per_class: int = 200,
    seed: int = 0,
    temperature: float | None = None,
    on_picture: Progress | None = None,
) -> GeneratorReport:
    """Judge a generator; see the top of this file.

    Args:
        generator: the generator.
        judge: a classifier of the same classes and size of pictures; batch norm is folded first.
        held_out: pictures that neither was trained on, at least 8 of each class.
        training: what the generator was trained on.
        guidances: of the generated sets; 1 is none.
        per_class: pictures of a class in each set, at least 4. Fewer are taken where a class has
            not twice as many held-out pictures, or a set would not fit into some 256 MB.
        seed: of the choice of pictures, the noise, and the generated pictures.
        temperature: of the generated sets; without, :func:`imgfast.models.usual_temperature` of
            each. 1, and guidance 1, are the learned distribution.
        on_picture: called with (done so far, all).

    Raises:
        ValueError: a judge, pictures or numbers that break these rules.

    Note:
        The same arguments, device and number of threads give the same report.
    """
    check_judge(generator, judge)
    if not guidances or len(set(guidances)) < len(guidances):
        raise ValueError(f"generator report: guidances must be 1 or more, got {list(guidances)}")
    config = generator.config
    count = len(config.classes)
    number = _pictures_of_a_class(judge, held_out, training, per_class)
    dice = torch.Generator().manual_seed(seed)
    chosen = _choose(held_out, 2 * number, dice).view(count, 2, number)
    reference, other = (held_out.images[chosen[:, half].flatten()] for half in (0, 1))
    labels = torch.arange(count).repeat_interleave(number)
    comparison = Comparison(judge, reference, labels, number, seed)
    done, steps = 0, (6 + 2 * len(guidances)) * len(labels)

    def advance(pictures: int) -> None:
        nonlocal done
        done += pictures
        if on_picture is not None:
            on_picture(done, steps)

    def nearest(images: torch.Tensor, k: int = 1) -> Nearest:
        found = nearest_pictures(images, training.images, k)
        advance(len(images))
        return found

    def judged(kind: str, images: torch.Tensor, **known: Any) -> SetQuality:
        quality = comparison.quality(kind, images, **known)
        advance(len(images))
        return quality

    means = _class_means(training).repeat_interleave(number, 0)
    comparison.set_ceiling(means)
    class_means = judged("class means", means)
    noise = torch.randint(0, 256, reference.shape, generator=dice, dtype=torch.uint8)
    noise_quality = judged("noise", noise)

    codes = generator.encode(other)
    rebuilt = generator.decode(codes)
    away = nearest(rebuilt).distance[:, 0]
    real = judged("real", other, **_distances(nearest(other).distance[:, 0]))
    reconstructed = judged("reconstructed", rebuilt, **_distances(away))
    copied = training.images[_choose(training, number, dice)]
    copies = nearest_pictures(generator.decode(generator.encode(copied)), training.images)
    copy = copies.distance.median().item()

    sets, samples = [], []
    for guidance in guidances:
        heat = usual_temperature(guidance) if temperature is None else temperature
        images = _generate(generator, labels, seed, (guidance, heat), advance)
        closest = nearest_pictures(images, training.images, min(SHOWN_NEIGHBOURS, len(training)))
        distance = closest.distance[:, 0]
        known = {
            "temperature": heat,
            **_distances(distance),
            "novelty": _novelty(distance.median().item(), copy, away.median().item()),
            "not_copying": no_nearer(distance, away),
        }
        sets.append(judged("generated", images, guidance=guidance, **known))
        samples.append(_first(images, count))

    usage = torch.bincount(codes.flatten(), minlength=config.codes).double()
    shares = usage[usage > 0] / usage.sum()
    return GeneratorReport(
        classes=tuple(config.classes),
        per_class=number,
        seed=seed,
        features=judge.config.widths[-1],
        judge_accuracy=(comparison.accuracy + real.agreement) / 2,
        real=real,
        reconstructed=reconstructed,
        generated=tuple(sets),
        class_means=class_means,
        noise=noise_quality,
        copy_nearest=copy,
        reconstruction_psnr=_psnr(other, rebuilt),
        codes=config.codes,
        codes_used=len(shares),
        code_perplexity=(-shares * shares.log()).sum().exp().item(),
        pictures=ReportPictures(
            torch.stack(samples),
            _first(other, count),
            _first(rebuilt, count),
            *_closest(images, closest, training, count),
        ),
    )


def no_nearer(distances: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether the median of ``distances`` is not below that of ``others`` by more than chance.

    Chance: it is compared with the quantile of ``others`` at ``1/2 - 1.96 / sqrt(2 N)``, which of
    two sets of one distribution, N each, the median of one is below in 2.5% of all draws.
    """
    share = max(0.0, 0.5 - 1.96 / math.sqrt(2 * len(others)))
    return bool(distances.median() >= others.quantile(share, interpolation="lower"))


def _pictures_of_a_class(
    judge: Classifier, held_out: ImageSet, training: ImageSet, wanted: int
) -> int:
    """How many each set gets."""
    classes = judge.config.classes
    if wanted < _LEAST:
        raise ValueError(f"generator report: per_class must be at least {_LEAST}, got {wanted}")
    for data, least, kind in ((held_out, 2 * _LEAST, "held-out"), (training, 1, "training")):
        if data.classes != classes:
            raise ValueError(
                f"generator report: the {kind} pictures' classes must be {classes}, "
                f"got {data.classes}"
            )
        counts = torch.bincount(data.labels, minlength=len(classes))
        if int(counts.min()) < least:
            raise ValueError(
                f"generator report: each class must have at least {least} {kind} pictures, "
                f"{classes[int(counts.argmin())]!r} has {int(counts.min())}"
            )
    there = int(torch.bincount(held_out.labels, minlength=len(classes)).min()) // 2
    fit = min(
        _MAX_NUMBERS // judge.head.in_features, _MAX_PIXELS // held_out.images[0].numel()
    ) // len(classes)
    return min(wanted, there, max(_LEAST, fit))


def _choose(data: ImageSet, number: int, dice: torch.Generator) -> torch.Tensor:
    """Positions of ``number`` pictures of each class, or all that there are, class after class."""
    chosen = []
    for label in range(len(data.classes)):
        there = (data.labels == label).nonzero().flatten()
        chosen.append(there[torch.randperm(len(there), generator=dice)[:number]])
    return torch.cat(chosen)


def _generate(
    generator: Generator,
    labels: torch.Tensor,
    seed: int,
    how: tuple[float, float],
    advance: Callable[[int], None],
) -> torch.Tensor:
    """A picture a label, each by a seed of its own; ``how`` is guidance and temperature."""
    images = []
    for start in range(0, len(labels), _BATCH):
        part = labels[start : start + _BATCH]
        first = seed * len(labels) + start
        images.append(generator.generate(part, range(first, first + len(part)), *how))
        advance(len(part))
    return torch.cat(images)


def _class_means(data: ImageSet) -> torch.Tensor:
    """Of each class the mean picture, rounded: uint8 ``[K, C, S, S]``."""
    means = []
    for label in range(len(data.classes)):
        there = (data.labels == label).nonzero().flatten()
        total = sum(data.images[at].sum(0, dtype=torch.int64) for at in there.split(_BATCH))
        means.append(total.double() / len(there))
    return torch.stack(means).round().to(torch.uint8)


def _psnr(images: torch.Tensor, others: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of two sets of uint8 pictures in dB."""
    squares = sum(
        (a.double() - b.double()).square().sum().item()
        for a, b in zip(images.split(_BATCH), others.split(_BATCH), strict=True)
    )
    return 10 * math.log10(255**2 / max(squares / images.numel(), _ROUNDING))


def _novelty(nearest: float, copy: float, new: float) -> float | None:
    """Where a distance lies between those of copies and of new pictures, if these differ."""
    return (nearest - copy) / (new - copy) if new > _APART * copy else None


def _distances(distance: torch.Tensor) -> dict[str, float]:
    return {"nearest": distance.median().item(), "nearest_low": distance.quantile(0.05).item()}


def _first(images: torch.Tensor, count: int) -> torch.Tensor:
    """The first pictures of each class, copied so that the others can go: ``[K, 8, C, S, S]``."""
    return images.view(count, -1, *images.shape[1:])[:, :SHOWN].clone()


def _closest(
    images: torch.Tensor, found: Nearest, training: ImageSet, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each class the pictures that are nearest to a training picture, see ReportPictures."""
    by_class = found.distance[:, 0].view(count, -1)
    place = by_class.topk(SHOWN_CLOSEST, largest=False).indices  # [K, 2]
    place = place + torch.arange(count)[:, None] * by_class.shape[1]
    return images[place], training.images[found.index[place]], found.distance[place]
