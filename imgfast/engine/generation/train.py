"""Train a generator: a classifier whose features judge, the tokenizer, the prior over its codes.

The tokenizer learns to give pictures back, in pixels and in the features of a small classifier that
is trained first and thrown away. Then every training picture becomes codes, once, and the prior
learns which codes go together. One seed fixes it all: at a fixed number of threads the same seed
gives the same weights, bit for bit, whether or not the run was interrupted and resumed, in whatever
stage.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from imgfast.data import ImageSet, split
from imgfast.data.atomic import write_atomically
from imgfast.engine import distributed
from imgfast.engine.checkpoint import save_checkpoint
from imgfast.engine.curves import save_generator_curves
from imgfast.engine.evaluate import evaluate
from imgfast.engine.event_log import EventLog
from imgfast.engine.generation.contact_sheet import Group, draw_sheet
from imgfast.engine.generation.perceptual import PerceptualLoss
from imgfast.engine.generation.prior_step import PriorStep, code_loss
from imgfast.engine.generation.tokenizer_step import TokenizerStep
from imgfast.engine.generation.train_config import GeneratorTrainConfig
from imgfast.engine.optimizer import one_cycle, straight_cycle
from imgfast.engine.run_folder import RunFolder
from imgfast.engine.train import OnStep, TrainError, random_state, resolve_device
from imgfast.engine.train_config import TrainConfig
from imgfast.engine.training_state import State, read_state, save_state
from imgfast.engine.training_step import TrainingStep, epoch_seed
from imgfast.models import GUIDANCE, Generator, build_generator, classifier_config, generator_config

FEATURES, TOKENIZER, PRIOR = "features", "tokenizer", "prior"
_FEATURE_WIDTHS = (32, 64, 128)
_JUDGED = 2048  # held-out pictures that judge an epoch
_ROWS, _COLUMNS = 12, 8  # of the sample sheets


@dataclass(frozen=True)
class GeneratorResult:
    """What came out of a run.

    Args:
        model: after the last epoch; with ``ema``, the moving averages.
        config: the recipe, with every default resolved.
        psnr: of held-out pictures that went through codes, in decibels.
        held_out_loss: of the prior, in nats a code of held-out pictures.
        codes_used, perplexity: see :class:`imgfast.models.quantizer.Usage`, of held-out pictures.
        held_out: these pictures.
        train_seconds: wall time of all stages, without data loading and evaluation.
        tokenizer_seconds, prior_seconds: of one stage.
    """

    model: Generator
    config: GeneratorTrainConfig
    psnr: float
    held_out_loss: float
    codes_used: int
    perplexity: float
    held_out: ImageSet
    train_seconds: float
    tokenizer_seconds: float
    prior_seconds: float


class Stage(NamedTuple):
    """A stage of the training, how many epochs it has, and steps in each."""

    name: str
    epochs: int
    steps: int


def train_generator(
    data: ImageSet,
    config: GeneratorTrainConfig,
    run: RunFolder,
    on_step: OnStep | None = None,
    resume: bool = False,
) -> GeneratorResult:
    """Train a generator on a set's training part; the held-out part judges it.

    Args:
        data: the whole set; it is split here, by ``config.seed``.
        config: the recipe.
        run: where checkpoints, metrics and sheets of samples go, after every epoch.
        on_step: called with (step, all steps of all stages, latest figures) after every step.
        resume: go on after the last epoch of which the folder has the state; from the start where
            it has none yet. The result is that of a run that was never interrupted.

    Raises:
        DataError: the set cannot be split.
        ValueError: a device that is not there, pictures of a size that the tokenizer cannot halve,
            or several processes.
        CheckpointError: the state to resume from is damaged or of other settings or pictures.
        TrainError: the loss is not finite any more; checkpoints of earlier epochs stay.
    """
    processes = distributed.current()
    if processes.size > 1:
        raise ValueError(
            f"train: a generator is trained in one process, got {processes.size}; "
            "start it without torchrun"
        )
    device = resolve_device(config.device)
    with random_state(config, device):
        return _Run(data, config, run, device).train(on_step, resume)


class _Run:
    """One run on one set: its stages, their epochs, and what is written after each."""

    def __init__(
        self, data: ImageSet, config: GeneratorTrainConfig, run: RunFolder, device: torch.device
    ) -> None:
        self.run, self.device = run, device
        _, channels, size, _ = data.images.shape
        model_config = generator_config(
            data.classes, channels, size, data.mean, data.std, **config.network
        )
        self.train_set, self.held_out = split(data, config.seed)
        self.config = config = config.resolved(len(self.train_set))
        spread = torch.linspace(0, len(self.held_out) - 1, min(_JUDGED, len(self.held_out)))
        self.judges = self.held_out.subset(spread.long())
        self.in_training, self.judged = (
            build_generator(model_config, config.layers, config.seed).to(
                device, memory_format=torch.channels_last
            )
            for _ in range(2)
        )
        self.finished: dict[str, torch.nn.Module] = {}  # what earlier stages have trained
        judging = config.perceptual > 0 and len(data.classes) > 1
        pictures = len(self.train_set)
        steps, prior_steps = (
            pictures // min(size, pictures) for size in (config.batch_size, config.prior_batch_size)
        )
        self.stages = [
            *([Stage(FEATURES, config.feature_epochs, steps)] if judging else []),
            Stage(TOKENIZER, config.tokenizer_epochs, steps),
            Stage(PRIOR, config.prior_epochs, prior_steps),
        ]
        self.summary = {
            **dataclasses.asdict(config),
            "data": data.name,
            "fingerprint": data.fingerprint(),
        }
        self.settings = {**self.summary, "generator": model_config.to_dict()}
        self.metrics: list[dict[str, Any]] = []  # of every epoch that is done
        self.seconds = 0.0

    def train(self, on_step: OnStep | None, resume: bool) -> GeneratorResult:
        state = read_state(self.run.state, self.settings) if resume else None
        if state is not None:
            self.metrics = state.metrics
            self.seconds = self.metrics[-1]["train_seconds"]
            self.run.write_metrics(self.metrics)  # without what came after the state
        else:
            self.run.start(self.settings)
        events = EventLog(self.run.path, len(self.metrics) + 1)
        try:
            for stage in self.stages:
                self._stage(stage, state, events, on_step)
        finally:
            events.close()
        save_generator_curves(self.run.curves, self.metrics)
        return self._result()

    def _stage(
        self, stage: Stage, state: State | None, events: EventLog, on_step: OnStep | None
    ) -> None:
        """Train, or restore what was trained: the state is of the last stage that was begun."""
        if state is not None:
            begun = [stage.name for stage in self.stages].index(self.metrics[-1]["stage"])
            if self.stages.index(stage) < begun:
                self._restore_finished(stage, state)
                return
        started = time.perf_counter()
        step = self._step(stage)
        self.seconds += time.perf_counter() - started
        if state is not None and self.metrics[-1]["stage"] == stage.name:
            state.restore(step)
        while (epoch := len(self._lines(stage.name)) + 1) <= stage.epochs:
            loss, rate = self._epoch(stage, step, epoch, on_step)
            self._put(stage, step.judged)
            figures = self._figures(stage)
            self.metrics.append(
                {
                    "epoch": len(self.metrics) + 1,
                    "stage": stage.name,
                    "loss": loss,
                    **figures,
                    "lr": rate,
                    "train_seconds": self.seconds,
                }
            )
            self._write(stage, step, events)
        self._put(stage, step.judged)

    def _step(self, stage: Stage) -> TrainingStep | TokenizerStep | PriorStep:
        """A new model in training, made of what the stages before have trained."""
        config, data = self.config, self.train_set
        if stage.name == FEATURES:
            recipe, network = feature_recipe(config, data)
            return TrainingStep(recipe, network, data, self.device, distributed.Processes())
        if stage.name == TOKENIZER:
            features = self.finished.get(FEATURES)
            perceptual = PerceptualLoss(features) if features is not None else None
            return TokenizerStep(config, self.in_training.tokenizer, data, perceptual)
        prior = self.in_training.prior
        prior.start(self.judged.tokenizer.quantizer.book, epoch_seed(config.seed, 0, PRIOR))
        return PriorStep(config, prior, self.judged.encode(data.images), data.labels)

    def _put(self, stage: Stage, model: torch.nn.Module) -> None:
        """Take what a stage has trained so far for finished."""
        self.finished[stage.name] = model
        if stage.name != FEATURES:
            getattr(self.judged, stage.name).load_state_dict(model.state_dict())

    def _restore_finished(self, stage: Stage, state: State) -> None:
        if stage.name == FEATURES:
            model = self._step(stage).judged
        else:
            model = getattr(self.judged, stage.name)
        state.restore_finished(stage.name, model)
        self._put(stage, model)

    def _epoch(
        self, stage: Stage, step: Any, epoch: int, on_step: OnStep | None
    ) -> tuple[float, float]:
        """Train for one epoch of a stage: mean loss, and the last learning rate."""
        recipe = step.config  # the classifier of features has one of its own
        peak = recipe.prior_lr if stage.name == PRIOR else recipe.lr
        cycle = one_cycle if stage.name == FEATURES else straight_cycle
        done, steps = (epoch - 1) * stage.steps, stage.epochs * stage.steps
        before = sum(len(self._lines(other.name)) * other.steps for other in self.stages)
        overall = sum(other.epochs * other.steps for other in self.stages)
        figures = self.metrics[-1] if self.metrics else {}
        started = time.perf_counter()
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(step.begin_epoch(epoch), start=1):
            rate = peak * cycle((done + number - 0.5) / steps, recipe.warmup)
            total += step.run(batch, rate)
            if on_step is not None:
                on_step(before + number, overall, figures)
        loss = total.item() / stage.steps  # waits for the device
        if not math.isfinite(loss):
            option = "--prior-lr" if stage.name == PRIOR else "--lr"
            raise TrainError(
                f"train: loss became {loss} in epoch {epoch} of the {stage.name}; "
                f"use a lower {option}"
            )
        self.seconds += time.perf_counter() - started
        return loss, rate

    def _figures(self, stage: Stage) -> dict[str, float]:
        """What the held-out pictures say of the stage's model."""
        if stage.name == FEATURES:
            return {"accuracy": evaluate(self.finished[FEATURES], self.judges).accuracy}
        codes = self.judged.encode(self.judges.images)
        if stage.name == TOKENIZER:
            used, perplexity = self.judged.tokenizer.quantizer.usage(codes)
            found = self.judged.decode(codes)
            return {
                "psnr": psnr(found, self.judges.images),
                "codes_used": used,
                "perplexity": perplexity,
            }
        return {"held_out_loss": held_out_loss(self.judged, codes, self.judges.labels)}

    def _write(self, stage: Stage, step: Any, events: EventLog) -> None:
        """After an epoch; the state comes last, see :mod:`imgfast.engine.training_state`."""
        latest = self.metrics[-1]
        self.run.log(latest)
        told = {name: value for name, value in latest.items() if name not in ("epoch", "stage")}
        scalars = {f"{stage.name}/{name}": value for name, value in told.items()}
        events.log({"epoch": latest["epoch"], **scalars})
        if stage.name != FEATURES:
            self._write_samples(stage, latest["epoch"])
            # Without the seconds: the same training is to give the same bytes.
            training = {
                **self.summary,
                **{name: value for name, value in latest.items() if name != "train_seconds"},
            }
            lines = self._lines(PRIOR)
            best = min(lines, key=lambda line: line["held_out_loss"], default=None)
            if best is latest:
                save_checkpoint(self.run.best, self.judged, training)
            save_checkpoint(self.run.last, self.judged, training)
        earlier = {name: model for name, model in self.finished.items() if name != stage.name}
        save_state(self.run.state, step, self.metrics, self.settings, earlier)

    def _write_samples(self, stage: Stage, epoch: int) -> None:
        """The tokenizer's: held-out pictures beside what codes keep of them; the prior's: new
        pictures, a row a class, from the same seeds in every epoch."""
        rows = []
        for label, name in enumerate(self.train_set.classes[:_ROWS]):
            if stage.name == TOKENIZER:
                chosen = (self.judges.labels == label).nonzero().flatten()[:_COLUMNS]
                real = self.judges.images[chosen]
                again = self.judged.decode(self.judged.encode(real))
                # White where a class has fewer held-out pictures.
                pairs = real.new_full((_COLUMNS, 2, *real.shape[1:]), 255)
                pairs[: len(real)] = torch.stack([real, again], 1)
                groups = [Group(pair) for pair in pairs]
            else:
                labels = torch.full((_COLUMNS,), label)
                seeds = [label * _COLUMNS + column for column in range(_COLUMNS)]
                groups = [Group(self.judged.generate(labels, seeds, GUIDANCE))]
            rows.append((name, groups))
        title = {
            TOKENIZER: f"epoch {epoch}: held-out pictures, each with its reconstruction",
            PRIOR: f"epoch {epoch}: generated, guidance {GUIDANCE:g}",
        }[stage.name]
        self.run.samples.mkdir(exist_ok=True)
        write_atomically(self.run.samples / f"epoch-{epoch:03}.png", draw_sheet(title, rows))

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The metrics of a stage."""
        return [line for line in self.metrics if line["stage"] == name]

    def _result(self) -> GeneratorResult:
        tokenizer, prior = (self._lines(name)[-1] for name in (TOKENIZER, PRIOR))
        before = [0.0, *(self._lines(stage.name)[-1]["train_seconds"] for stage in self.stages)]
        return GeneratorResult(
            self.judged.eval(),
            self.config,
            tokenizer["psnr"],
            prior["held_out_loss"],
            tokenizer["codes_used"],
            tokenizer["perplexity"],
            self.held_out,
            self.seconds,
            before[-2] - before[-3],
            before[-1] - before[-2],
        )


def psnr(found: torch.Tensor, real: torch.Tensor) -> float:
    """``10 log10(255^2 / mean (found - real)^2)`` over all pixels of uint8 pictures, decibels."""
    total = sum(
        float((a.float() - b.float()).square().sum(dtype=torch.float64))
        for a, b in _parts(found, real)
    )
    return 10 * math.log10(255**2 * real.numel() / max(total, 1e-9))


@torch.inference_mode()
def held_out_loss(model: Generator, codes: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean negative log-likelihood of pictures' codes, int64 ``[N, h, w]``, in nats a code."""
    model.eval()
    device, total = model.prior.place.device, 0.0
    for some, classes in _parts(codes.flatten(1), labels):
        loss = code_loss(model.prior, some.to(device), classes.to(device))
        total += float(loss) * len(some)
    return total / len(codes)


def _parts(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(tensor.split(256) for tensor in tensors), strict=True)


def feature_recipe(config: GeneratorTrainConfig, data: ImageSet) -> tuple[TrainConfig, Any]:
    """How to train the classifier of features, and its network."""
    recipe = TrainConfig(
        widths=_FEATURE_WIDTHS,
        seed=config.seed,
        epochs=config.feature_epochs,
        batch_size=config.batch_size,
        shift=0,
        flip=False,
        amp=config.amp,
        layers=config.layers,
    )
    _, channels, size, _ = data.images.shape
    network = classifier_config(
        recipe.model, data.classes, channels, size, data.mean, data.std, **recipe.network
    )
    return recipe, network
