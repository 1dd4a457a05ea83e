"""``imgfast evaluate`` of a generator's checkpoint."""

from __future__ import annotations

from pathlib import Path

from imgfast import engine
from imgfast.cli import console
from imgfast.engine.checkpoint import load_generator
from imgfast.engine.generation.report import check_judge, report_generator
from imgfast.engine.generation.report_files import save_report
from imgfast.engine.generation.sets import generator_sets
from imgfast.models import GUIDANCE

PER_CLASS = 200


def evaluate_generator(
    checkpoint: Path,
    judge: Path | None,
    data: str | None,
    per_class: int | None,
    guidance: float | None,
    temperature: float | None,
    seed: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Judge a generator by a classifier, without and with guidance; arguments as of the command.

    Raises:
        ValueError: no judge, or one that does not fit; see also
            :func:`~imgfast.engine.generation.sets.generator_sets`.
    """
    loaded = load_generator(checkpoint)
    if judge is None:
        raise ValueError(
            f"evaluate: --judge must name a classifier for {loaded.path}, which is a generator; "
            "train one on the same data with imgfast train"
        )
    judging = engine.load_checkpoint(judge)
    check_judge(loaded.model, judging.model)
    guidances = (1.0, GUIDANCE if guidance is None else guidance)
    with console.progress("reading") as on_picture:
        held_out, training = generator_sets(loaded, judging, data, on_picture)
    console.report_skipped(held_out.skipped)
    with console.progress("judging") as on_picture:
        found = report_generator(
            loaded.model,
            judging.model,
            held_out,
            training,
            tuple(dict.fromkeys(guidances)),
            per_class or PER_CLASS,
            seed,
            temperature,
            on_picture,
        )
    if folder is not None:
        save_report(folder, found, {"Checkpoint-SHA256": loaded.sha256})
    if as_json:
        extra = {
            "checkpoint": str(loaded.path),
            "judge": str(judging.path),
            "data": held_out.name,
            "skipped": len(held_out.skipped),
            "out": str(folder) if folder else None,
        }
        console.print_json({**found.to_dict(), **extra})
        return
    console.show_generator_report(found)
    if folder is not None:
        console.line(f"report {folder}")
