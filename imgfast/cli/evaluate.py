"""``imgfast evaluate``: how good a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgfast import engine
from imgfast.cli import console
from imgfast.cli.app import CheckpointOption, JsonOption, MirrorOption, command, empty_folder
from imgfast.cli.evaluate_generator import evaluate_generator
from imgfast.engine.abstention import calibrate, ood_auroc, save_abstention
from imgfast.engine.attack import attack_curve
from imgfast.engine.attack import save_plot as save_attack_plot
from imgfast.engine.checkpoint import GENERATOR, checkpoint_kind
from imgfast.engine.evaluate import evaluation_set, foreign_pictures
from imgfast.engine.report import report, save_report

TOP_K = 3


@command()
def evaluate(
    checkpoint: CheckpointOption,
    data: Annotated[
        str | None, typer.Option(help="Default: what was held out of the training set.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Also count the k most probable. Default: 3.")
    ] = None,
    mirror: MirrorOption = False,
    attack: Annotated[
        list[str] | None, typer.Option(help="fgsm or pgd: accuracy on attacked pictures.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --attack; of a generator's report.")] = 0,
    ood: Annotated[
        str | None, typer.Option(help="A set or folder of other things: are they told apart?")
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(help="Accuracy, 0.99: find the certainty for it, for predict --abstain."),
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Of a generator: the classifier whose features compare.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Of a generator, beside 1. Default: 3.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of a generator. Default: as of generate.")
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(min=4, help="Of a generator: pictures. Default: 200.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="New folder for tables and pictures.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy, precision, recall, F1, confusion and calibration on pictures not trained on.

    With --out: confusion.png and .csv, classes.csv, reliability.png, mistakes.png,
    evaluation.json; with --attack attack.png too. With --abstain: abstention.json beside the
    checkpoint.

    Of a generator: agreement with the label, distance from real pictures, variety, copying,
    reconstruction; with --out: generation.json, samples.png, reconstructions.png, neighbours.png.
    """
    if folder is not None:
        empty_folder(folder)
    kind = checkpoint_kind(checkpoint)
    of_classifiers = {
        "top-k": top_k,
        "mirror": mirror or None,
        "attack": attack,
        "ood": ood,
        "abstain": abstain,
    }
    of_generators = {
        "judge": judge,
        "guidance": guidance,
        "temperature": temperature,
        "per-class": per_class,
    }
    _refuse(of_classifiers if kind == GENERATOR else of_generators, checkpoint, kind)
    if kind == GENERATOR:
        evaluate_generator(
            checkpoint, judge, data, per_class, guidance, temperature, seed, folder, as_json
        )
        return
    if mirror and (attack or ood is not None):
        raise ValueError("evaluate: --mirror goes with neither --attack nor --ood")
    loaded = engine.load_checkpoint(checkpoint)
    model, config = loaded.model, loaded.config
    with console.progress("reading") as on_picture:
        pictures = evaluation_set(loaded, data, on_picture)
    console.report_skipped(pictures.skipped)
    found = report(model, pictures, top_k or TOP_K, mirror)
    curves = []
    for method in attack or ():
        with console.progress(f"attacking, {method}") as on_picture:
            curves.append(attack_curve(model, pictures, method, seed=seed, on_picture=on_picture))
    auroc = None
    if ood is not None:
        with console.progress("reading") as on_picture:
            others = foreign_pictures(config, ood, on_picture)
        auroc = ood_auroc(model, pictures.images, others)
    abstention = None if abstain is None else calibrate(model, pictures, abstain, mirror)
    if abstention is not None:
        save_abstention(loaded.path, abstention)
    if folder is not None:
        save_report(folder, found, pictures)
        if curves:
            save_attack_plot(folder / "attack.png", curves)
    if as_json:
        extra = {
            "checkpoint": str(loaded.path),
            "data": pictures.name,
            "mirror": mirror,
            "skipped": len(pictures.skipped),
            "attacks": [curve.to_dict() for curve in curves],
            "ood_auroc": auroc,
            "abstention": abstention.to_dict() if abstention else None,
            "out": str(folder) if folder else None,
        }
        console.print_json({**found.to_dict(), **extra})
        return
    console.show_evaluation(found.evaluation, confusion=True)
    console.show_report(found)
    for curve in curves:
        console.show_attack(curve)
    if auroc is not None:
        console.line(f"told from {ood} by certainty: AUROC {auroc:.3f}")
    if abstention is not None:
        how = "--mirror --abstain" if mirror else "--abstain"
        console.line(
            f"sure of {abstention.coverage:.1%} of the pictures, of which "
            f"{abstention.accuracy:.2%} are right; predict {how} leaves out the others"
        )
    if folder is not None:
        console.line(f"report {folder}")


def _refuse(options: dict[str, object], checkpoint: Path, kind: str) -> None:
    """Options that have no meaning for a kind of checkpoint."""
    given = [f"--{name}" for name, value in options.items() if value not in (None, [])]
    if given:
        raise ValueError(f"evaluate: {checkpoint} is a {kind}, which takes no {', '.join(given)}")
