"""Pictures a second of a classifier beside the same network in stock PyTorch.

Both sides get the same weights and pictures and are checked to give equal outputs and gradients
before anything is timed. Each side runs in NCHW and in channels_last and is judged by its better
layout. Rounds are interleaved and medians taken, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import imgfast.nn
from imgfast.engine.figure import new_figure, save_figure
from imgfast.models import LAYERS, Classifier, ClassifierConfig, build_classifier

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
_SECONDS_PER_TASK = 4.0
_MIN_ROUNDS = 5

Key = TypeVar("Key")


@dataclass(frozen=True)
class Comparison:
    """One task, ``inference`` or ``training step``, on both sides.

    Args:
        task: what was timed.
        batch_size: pictures in one call.
        imgfast, stock: pictures a second, median, in the better layout.
        imgfast_layout, stock_layout: which layout that was.
    """

    task: str
    batch_size: int
    imgfast: float
    stock: float
    imgfast_layout: str
    stock_layout: str

    @property
    def ratio(self) -> float:
        """How many times faster imgfast is; below 1 it is slower."""
        return self.imgfast / self.stock

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**asdict(self), "ratio": self.ratio}


def compare(
    config: ClassifierConfig, batch_size: int = 128, seconds: float = _SECONDS_PER_TASK
) -> list[Comparison]:
    """Time inference and a training step (forward, loss, backward, AdamW) on the CPU.

    Args:
        config: the network.
        batch_size: pictures in one call.
        seconds: about how long each task is timed, all variants together.

    Raises:
        AssertionError: the two sides do not compute the same.
    """
    variants = {
        (layers, layout): _Variant(config, layers, layout, batch_size)
        for layers in LAYERS
        for layout in LAYOUTS
    }
    _check_equal(variants)
    results = []
    for task in ("inference", "training step"):
        calls = {
            key: variant.infer if task == "inference" else variant.step
            for key, variant in variants.items()
        }
        results.append(compare_task(task, calls, batch_size, seconds))
    return results


def compare_task(
    task: str,
    calls: dict[tuple[str, str], Callable[[], object]],
    batch_size: int,
    seconds: float,
) -> Comparison:
    """Time one task, given as a call for each kind of layers and layout of ``LAYOUTS``."""
    medians = interleaved(calls, seconds)
    best = {
        layers: min(LAYOUTS, key=lambda layout, side=layers: medians[side, layout])
        for layers in LAYERS
    }
    ours, stock = (batch_size / medians[layers, best[layers]] for layers in LAYERS)
    return Comparison(task, batch_size, ours, stock, best["imgfast"], best["stock"])


def save_plot(path: Path, comparisons: list[Comparison]) -> None:
    """Pictures a second of both sides as a PNG with bars."""
    figure = new_figure(7, 4)
    for axes, row in zip(figure.subplots(1, len(comparisons)), comparisons, strict=True):
        bars = axes.bar(("imgfast", "stock PyTorch"), (row.imgfast, row.stock))
        axes.bar_label(bars, fmt="{:,.0f}")
        axes.set(title=f"{row.task}, {row.ratio:.2f}x", ylabel="pictures a second")
        axes.margins(y=0.15)
    save_figure(figure, path)


@torch.inference_mode()
def pictures_a_second(model: Classifier, batch_size: int = 128, seconds: float = 1.0) -> float:
    """Median speed of inference on pictures that are in memory, in channels_last."""
    config = model.config
    shape = (batch_size, config.channels, config.image_size, config.image_size)
    model = model.to(memory_format=torch.channels_last)
    x = torch.rand(shape).to(memory_format=torch.channels_last)
    return batch_size / interleaved({"": lambda: model(x)}, seconds)[""]


class _Variant:
    """One network in one kind of layers and one layout, with everything a step needs."""

    def __init__(self, config: ClassifierConfig, layers: str, layout: str, batch: int) -> None:
        self.layers = layers
        memory_format = LAYOUTS[layout]
        generator = torch.Generator().manual_seed(0)
        shape = (batch, config.channels, config.image_size, config.image_size)
        # .to() sets the strides even of one channel, where .contiguous() sees nothing to do and
        # stock would go on in NCHW.
        self.x = torch.randn(shape, generator=generator).to(memory_format=memory_format)
        self.target = torch.randint(0, len(config.classes), (batch,), generator=generator)
        self.model = build_classifier(config, layers).to(memory_format=memory_format)
        library = imgfast.nn if layers == "imgfast" else nn
        self.criterion = library.CrossEntropyLoss(label_smoothing=0.05)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    @functools.cached_property
    def inference_model(self) -> Classifier:
        """The model as it is at the first use; both sides have batch norm folded."""
        frozen = copy.deepcopy(self.model).eval()
        return frozen.fold(self.layers)

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        return self.inference_model(self.x)

    def backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.criterion(self.model(self.x), self.target).backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()


def _check_equal(variants: dict[tuple[str, str], _Variant]) -> None:
    """Every variant gives the logits and gradients of stock NCHW, to the rounding of float32."""
    reference = variants["stock", "NCHW"]
    reference.backward()
    for variant in variants.values():
        variant.backward()
        torch.testing.assert_close(variant.infer(), reference.infer(), rtol=1e-3, atol=1e-3)
        for ours, theirs in zip(
            variant.model.parameters(), reference.model.parameters(), strict=True
        ):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-3)


def interleaved(calls: dict[Key, Callable[[], object]], seconds: float) -> dict[Key, float]:
    """Median seconds of each call, one of each in turn until the time is used."""
    for call in calls.values():  # warm up: allocator, threads, oneDNN's primitives
        call()
        call()
    times: dict[Key, list[float]] = {key: [] for key in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _MIN_ROUNDS or time.perf_counter() < end:
        rounds += 1
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - started)
    return {key: statistics.median(values) for key, values in times.items()}
