"""Networks side by side: what size, speed and accuracy each one trades for the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imgfast.data import ImageSet
from imgfast.engine.compare import pictures_a_second
from imgfast.engine.figure import new_figure, save_figure
from imgfast.engine.run_folder import RunFolder
from imgfast.engine.train import TrainConfig, train
from imgfast.models import cost

# One change of tiny at a time: its size in both directions, then its activation.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"widths": (8, 16, 32)},
    {"widths": (16, 32, 64)},
    {"widths": (32, 64, 128)},
    {"widths": (64, 128, 256)},
    {"widths": (32, 64, 128), "convolutions": 2, "norm": "batch"},
    {"widths": (32, 64, 128), "activation": "leaky_relu"},
    {"widths": (32, 64, 128), "activation": "tanh"},
    {"widths": (32, 64, 128), "activation": "gelu"},
    {"widths": (32, 64, 128), "activation": "silu"},
)


@dataclass(frozen=True)
class Trade:
    """One network of a sweep.

    Args:
        name: its settings that differ from the preset's, in short.
        parameters, multiply_adds: see :class:`imgfast.models.Cost`.
        pictures_a_second: of inference, batches of 128, batch norm folded, all threads.
        train_seconds: of its training.
        accuracy: on the held-out pictures, after the last epoch.
    """

    name: str
    parameters: int
    multiply_adds: int
    pictures_a_second: float
    train_seconds: float
    accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def sweep(
    data: ImageSet,
    config: TrainConfig,
    folder: Path,
    variants: Iterable[dict[str, Any]] = VARIANTS,
    on_network: Callable[[Trade], None] | None = None,
) -> list[Trade]:
    """Train every variant of a network alike and measure what it is worth.

    Args:
        data: the pictures; the split is the same for all.
        config: the recipe; each variant changes its network.
        folder: gets a run folder for each variant.
        variants: changes of the preset's network.
        on_network: called with each result as it is there.
    """
    trades = []
    for variant in variants:
        name = describe(variant)
        recipe = dataclasses.replace(config, **variant)
        run = RunFolder(folder / name.replace(" ", "_"))
        result = train(data, recipe, run)
        found = cost(result.model.config)
        trade = Trade(
            name,
            found.parameters,
            found.multiply_adds,
            pictures_a_second(result.model.eval().fold()),
            result.train_seconds,
            result.evaluation.accuracy,
        )
        trades.append(trade)
        if on_network is not None:
            on_network(trade)
    return trades


def describe(variant: dict[str, Any]) -> str:
    """``32-64-128 x2 batch gelu`` for widths, convolutions a stage and what is named."""
    widths = "-".join(map(str, variant.get("widths", ())))
    several = f"x{variant['convolutions']}" if "convolutions" in variant else ""
    named = [str(variant[key]) for key in ("norm", "activation", "pool") if key in variant]
    return " ".join(filter(None, (widths, several, *named)))


def save_plot(path: Path, trades: list[Trade]) -> None:
    """Accuracy over speed as a PNG, a disc for each network with an area by its parameters."""
    figure = new_figure(9, 6)
    axes = figure.add_subplot()
    largest = max(trade.parameters for trade in trades)
    for trade in trades:
        size = 40 + 1000 * trade.parameters / largest
        axes.scatter(trade.pictures_a_second, 100 * trade.accuracy, s=size, alpha=0.5)
        axes.annotate(
            f"{trade.name}\n{trade.parameters:,}",
            (trade.pictures_a_second, 100 * trade.accuracy),
            fontsize=7,
            ha="center",
            va="center",
        )
    axes.set(xscale="log", xlabel="pictures a second, inference", ylabel="held-out accuracy, %")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
