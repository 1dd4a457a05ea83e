"""Train a classifier: one learning-rate cycle, random shifts and flips, label smoothing.

Pictures stay in memory as uint8 and every batch is gathered, augmented and normalised at once.
One seed fixes the split, the initial weights, the order and the augmentation, so that at a fixed
number of threads the same seed gives the same weights, bit for bit, whether or not the run was
interrupted and resumed in between. Under ``torchrun`` every process takes its share of a batch.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from imgfast.data import ImageSet, split
from imgfast.engine import distributed
from imgfast.engine.checkpoint import save_checkpoint
from imgfast.engine.curves import save_curves
from imgfast.engine.evaluate import Evaluation
from imgfast.engine.event_log import EventLog
from imgfast.engine.generation.train_config import GeneratorTrainConfig
from imgfast.engine.optimizer import one_cycle
from imgfast.engine.run_folder import RunFolder
from imgfast.engine.train_config import TrainConfig
from imgfast.engine.training_state import load_state, save_state
from imgfast.engine.training_step import TrainingStep
from imgfast.models import Classifier, classifier_config


class TrainError(RuntimeError):
    """Training that cannot go on: what happened, and the remedy."""


OnStep = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    Args:
        model: after the last epoch; with ``ema``, the moving average.
        config: the recipe, with every default resolved.
        evaluation: of that model on the held-out pictures.
        held_out: these pictures.
        train_seconds: wall time of the training steps, without data loading and evaluation.
        best_accuracy: of the best epoch; chosen on the held-out pictures, hence flattering.
    """

    model: Classifier
    config: TrainConfig
    evaluation: Evaluation
    held_out: ImageSet
    train_seconds: float
    best_accuracy: float


def train(
    data: ImageSet,
    config: TrainConfig,
    run: RunFolder,
    on_step: OnStep | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a classifier on a set's training part and judge it on the held-out part.

    Args:
        data: the whole set; it is split here, by ``config.seed``.
        config: the recipe.
        run: where checkpoints and metrics go; ``last`` is written after every epoch. Of several
            processes the first writes.
        on_step: called with (step, all steps, latest figures) after every step.
        resume: go on after the last epoch of which the folder has the state; from the start where
            it has none yet. The result is that of a run that was never interrupted.

    Raises:
        DataError: the set cannot be split.
        ValueError: a device that is not there, or pictures that do not fit the model.
        CheckpointError: the state to resume from is damaged or of other settings or pictures.
        TrainError: the loss is not finite any more; checkpoints of earlier epochs stay.

    Note:
        The same bits in every run hold for one device and number of threads; on CUDA with
        ``config.deterministic``. Several processes give the losses of one to the rounding of sums.
    """
    device = distributed.local_device(resolve_device(config.device))
    with random_state(config, device), distributed.process_group(device) as processes:
        return _Run(data, config, run, device, processes).train(on_step, resume)


class _Run:
    """One run on one set: its epochs, what is written after each, and when to stop."""

    def __init__(
        self,
        data: ImageSet,
        config: TrainConfig,
        run: RunFolder,
        device: torch.device,
        processes: distributed.Processes,
    ) -> None:
        self.run, self.device, self.processes = run, device, processes
        shape = data.images.shape
        model_config = classifier_config(
            config.model, data.classes, shape[1], shape[2], data.mean, data.std, **config.network
        )
        train_set, self.held_out = split(data, config.seed)
        self.step = TrainingStep(config, model_config, train_set, device, processes)
        self.config = config = self.step.config  # with every default resolved
        self.summary = {
            **dataclasses.asdict(config),
            "data": data.name,
            "fingerprint": data.fingerprint(),
        }
        self.settings = {**self.summary, "classifier": model_config.to_dict()}
        self.metrics: list[dict[str, Any]] = []  # of every epoch that is done

    def train(self, on_step: OnStep | None, resume: bool) -> TrainResult:
        if resume:
            self.metrics = load_state(self.run.state, self.step, self.settings)
        writes = self.processes.is_first
        events = None
        if writes:
            if self.metrics:
                self.run.write_metrics(self.metrics)  # without what came after the state
            else:
                self.run.start(self.settings)
            events = EventLog(self.run.path, len(self.metrics) + 1)
        evaluation = None
        try:
            while not self._is_done():
                loss, seconds, rate = self._epoch(on_step)
                self.processes.copy_buffers(self.step.judged)
                evaluation = self.processes.evaluate(self.step.judged, self.held_out)
                self.metrics.append(
                    {
                        "epoch": len(self.metrics) + 1,
                        "loss": loss,
                        "accuracy": evaluation.accuracy,
                        "macro_recall": evaluation.macro_recall,
                        "lr": rate,
                        "train_seconds": self._seconds() + seconds,
                    }
                )
                if events is not None:
                    self._write(events)
        finally:
            if events is not None:
                events.close()
        if writes:
            save_curves(self.run.curves, self.metrics)
        if evaluation is None:  # resumed when all was done
            evaluation = self.processes.evaluate(self.step.judged, self.held_out)
        best = max(line["accuracy"] for line in self.metrics)
        return TrainResult(
            self.step.judged, self.config, evaluation, self.held_out, self._seconds(), best
        )

    def _epoch(self, on_step: OnStep | None) -> tuple[float, float, float]:
        """Train for one epoch: mean loss, seconds, and the last learning rate."""
        config, step = self.config, self.step
        epoch = len(self.metrics) + 1
        figures = {}
        if self.metrics:
            figures = {name: self.metrics[-1][name] for name in ("epoch", "loss", "accuracy")}
        done, steps = len(self.metrics) * step.batches, config.epochs * step.batches
        started = time.perf_counter()
        total = torch.zeros((), device=self.device)
        for batch in step.begin_epoch(epoch):
            rate = config.lr * one_cycle((done + 0.5) / steps, config.warmup)
            total += step.run(batch, rate)
            done += 1
            if on_step is not None:
                on_step(done, steps, figures)
        loss = self.processes.mean(total).item() / step.batches  # waits for the device
        if not math.isfinite(loss):
            raise TrainError(f"train: loss became {loss} in epoch {epoch}; use a lower --lr")
        return loss, time.perf_counter() - started, rate

    def _write(self, events: EventLog) -> None:
        """After an epoch; the state comes last, see :mod:`imgfast.engine.training_state`."""
        latest = self.metrics[-1]
        self.run.log(latest)
        events.log(latest)
        # Without the seconds: the same training is to give the same bytes.
        told = ("epoch", "loss", "accuracy", "macro_recall")
        training = {**self.summary, **{name: latest[name] for name in told}}
        if self._best_epoch() == latest["epoch"]:
            save_checkpoint(self.run.best, self.step.judged, training)
        save_checkpoint(self.run.last, self.step.judged, training)
        save_state(self.run.state, self.step, self.metrics, self.settings)

    def _best_epoch(self) -> int:
        """The first epoch with the highest accuracy."""
        return max(self.metrics, key=lambda line: (line["accuracy"], -line["epoch"]))["epoch"]

    def _is_done(self) -> bool:
        epoch, patience = len(self.metrics), self.config.patience
        waited = epoch - self._best_epoch() if patience and self.metrics else 0
        return epoch == self.config.epochs or (patience > 0 and waited >= patience)

    def _seconds(self) -> float:
        return self.metrics[-1]["train_seconds"] if self.metrics else 0.0


@contextmanager
def random_state(
    config: TrainConfig | GeneratorTrainConfig, device: torch.device
) -> Iterator[None]:
    """Leave torch's random state as it was, and where asked use deterministic algorithms only."""
    before = torch.are_deterministic_algorithms_enabled()
    if config.deterministic:
        # cuBLAS reads it at its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where torch sees a device, else the CPU."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device cuda: torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if name != "cpu" and available else "cpu")
