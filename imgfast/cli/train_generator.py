"""``imgfast train --model generator``: what differs from training a classifier."""

from __future__ import annotations

import dataclasses

from imgfast import engine
from imgfast.cli import console
from imgfast.data import load_data


def show_generator(
    data: str,
    image_size: int | None,
    config: engine.GeneratorTrainConfig,
    run: engine.RunFolder,
    resume: bool,
    as_json: bool,
) -> None:
    """Load and train under progress bars, and tell what came out."""
    with console.progress("reading") as on_picture:
        pictures = load_data(data, image_size, on_picture=on_picture)
    console.report_skipped(pictures.skipped)
    with console.training_progress() as on_step:
        result = engine.train_generator(pictures, config, run, on_step, resume)
    if as_json:
        console.print_json(
            {
                "psnr": result.psnr,
                "held_out_loss": result.held_out_loss,
                "codes_used": result.codes_used,
                "perplexity": result.perplexity,
                "train_seconds": round(result.train_seconds, 3),
                "tokenizer_seconds": round(result.tokenizer_seconds, 3),
                "prior_seconds": round(result.prior_seconds, 3),
                "checkpoint": str(run.last),
                "best_checkpoint": str(run.best),
                "samples": str(run.samples),
                "held_out": len(result.held_out),
                "skipped": len(pictures.skipped),
                **dataclasses.asdict(result.config),
            }
        )
    else:
        console.line(f"held-out pictures through codes: {result.psnr:.2f} dB")
        shown = f"{result.held_out_loss:.3f} nats a code, "
        console.line(f"{shown}{result.codes_used} codes used, perplexity {result.perplexity:.0f}")
        console.line(f"samples {run.samples}")
        console.line(f"{result.train_seconds:.1f} s of training, checkpoint {run.last}")
