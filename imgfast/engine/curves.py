"""Curves of a run as PNG: loss, accuracy and learning rate over the epochs, loss over the rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgfast.engine.figure import new_figure, save_figure


def save_curves(path: str | Path, metrics: Sequence[dict[str, Any]]) -> None:
    """Plot what ``metrics.jsonl`` holds.

    Args:
        path: the PNG file; replaced atomically.
        metrics: ``epoch``, ``loss``, ``accuracy`` and ``lr`` of every epoch.
    """
    figure = new_figure(12, 3.6)
    epochs = [line["epoch"] for line in metrics]
    for axes, (name, title) in zip(
        figure.subplots(1, 3),
        (("loss", "training loss"), ("accuracy", "held-out accuracy"), ("lr", "learning rate")),
        strict=True,
    ):
        axes.plot(epochs, [line[name] for line in metrics], marker=".")
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def save_generator_curves(path: str | Path, metrics: Sequence[dict[str, Any]]) -> None:
    """Plot what ``metrics.jsonl`` of a generator holds.

    Args:
        path: the PNG file; replaced atomically.
        metrics: ``epoch``, ``stage``, ``loss`` and ``lr`` of every epoch, ``psnr`` of those of the
            tokenizer, ``held_out_loss`` of those of the prior.
    """
    figure = new_figure(16, 3.6)
    for axes, (title, stage, names) in zip(
        figure.subplots(1, 4),
        (
            ("tokenizer, training loss", "tokenizer", ("loss",)),
            ("held-out reconstruction, dB", "tokenizer", ("psnr",)),
            ("prior, nats a code", "prior", ("loss", "held_out_loss")),
            ("learning rate", None, ("lr",)),
        ),
        strict=True,
    ):
        lines = [line for line in metrics if stage in (None, line["stage"])]
        epochs = [line["epoch"] for line in lines]
        for name in names:
            label = {"loss": "training", "held_out_loss": "held out"}.get(name, name)
            axes.plot(epochs, [line[name] for line in lines], marker=".", label=label)
        if len(names) > 1:
            axes.legend()
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def save_lr_curve(
    path: str | Path, rates: Sequence[float], losses: Sequence[float], suggestion: float
) -> None:
    """Plot the loss over the learning rate, with the suggested rate marked.

    Args:
        path: the PNG file; replaced atomically.
        rates, losses: of every step.
        suggestion: the rate to mark.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(suggestion, color="tab:red", label=f"suggestion {suggestion:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
