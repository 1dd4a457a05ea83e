"""Which pictures judge a generator: real ones that neither it nor its judge has learned from."""

from __future__ import annotations

from imgfast.data import DataError, ImageSet, load_data, split
from imgfast.data.folder import Progress
from imgfast.engine.checkpoint import Checkpoint, GeneratorCheckpoint
from imgfast.engine.evaluate import evaluation_set


def generator_sets(
    generator: GeneratorCheckpoint,
    judge: Checkpoint,
    name: str | None = None,
    on_picture: Progress | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Held-out pictures to compare with, and what the generator was trained on.

    Args:
        generator, judge: the models and how they were trained.
        name: of the set to compare with, as in :func:`imgfast.engine.evaluate.evaluation_set`.
        on_picture: called with (read so far, all).

    Raises:
        DataError: as there, for either model; the judge was trained on some of these pictures; or
            what the generator was trained on is not known, or has changed.
    """
    held_out = evaluation_set(generator, name, on_picture)
    unseen = set(evaluation_set(judge, held_out.name, on_picture).digests())
    seen = sum(digest not in unseen for digest in held_out.digests())
    seed = int(generator.training.get("seed", 0))
    if seen:
        raise DataError(
            f"{judge.path}: was trained on {seen} of the {len(held_out)} pictures that "
            f"{generator.path} is to be compared with; train a judge with --seed {seed}"
        )
    trained_on = generator.training.get("data")
    if not isinstance(trained_on, str):
        raise DataError(
            f"{generator.path}: does not say what it was trained on, so copies cannot be told"
        )
    config = generator.config
    data = load_data(trained_on, config.image_size, config.channels, config.classes, on_picture)
    if data.fingerprint() != generator.training.get("fingerprint"):
        raise DataError(
            f"{trained_on}: has changed since {generator.path} was trained on it, so copies "
            "cannot be told; train it again"
        )
    return held_out, split(data, seed)[0]
