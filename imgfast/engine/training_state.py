"""``state.safetensors``: everything that a run needs to go on after an epoch, bit for bit.

One file holds it all: weights, moving average, what the optimizers remember, the metrics so far and
the settings. It is written after ``best`` and ``last``, atomically. A run that dies between two of
these writes goes on from the state before, repeats the epoch and writes the same checkpoints anew;
no order of events leaves files that do not belong together. The random numbers of an epoch and its
learning rates follow from the settings and the epoch's number and are not kept.

Read like a checkpoint: bounded, checked against its SHA-256, nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import nn

from imgfast.data.atomic import write_atomically
from imgfast.engine.optimizer import optimizer_tensors, restore_optimizers
from imgfast.engine.tensor_file import (
    CheckpointError,
    check_digest,
    encode,
    pop_metadata,
    read_header,
)

FORMAT = "imgfast-training-state-1"
_KEYS = ("format", "settings")


class Trained(Protocol):
    """What a state keeps of a model in training."""

    model: nn.Module
    average: nn.Module | None
    optimizers: list[torch.optim.Optimizer]


def save_state(
    path: Path,
    step: Trained,
    metrics: list[dict[str, Any]],
    settings: dict[str, Any],
    finished: Mapping[str, nn.Module] | None = None,
) -> None:
    """Write the state after an epoch.

    Args:
        path: the file; replaced atomically.
        step: the model in training.
        metrics: of every epoch so far.
        settings: of the run, as in its ``config.json``.
        finished: models by name that earlier stages of the run have trained.
    """
    tensors = {f"model.{name}": value for name, value in step.model.state_dict().items()}
    if step.average is not None:
        state = step.average.state_dict()
        tensors |= {f"average.{name}": value for name, value in state.items()}
    for name, value in optimizer_tensors(step.optimizers):
        tensors[f"optimizer.{name}"] = value
    for stage, model in (finished or {}).items():
        state = model.state_dict()
        tensors |= {f"finished.{stage}.{name}": value for name, value in state.items()}
    # A tensor, as the header has a bound and a long run has many epochs.
    text = bytearray(json.dumps(metrics).encode())
    tensors["metrics"] = torch.frombuffer(text, dtype=torch.uint8)
    metadata = {"format": FORMAT, "settings": _text(settings)}
    write_atomically(path, encode(tensors, metadata))


def load_state(path: Path, step: Trained, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Put a new model in training into the state of the file.

    Args:
        path: the file.
        step: made with the settings of the run.
        settings: of the run; the file's must be the same.

    Returns:
        The metrics of the epochs that are done; empty where there is no file yet.

    Raises:
        CheckpointError: damaged, altered, or of another run.
    """
    state = read_state(path, settings)
    if state is None:
        return []
    state.restore(step)
    return state.metrics


@dataclass(frozen=True)
class State:
    """A state file that was read: damaged or of another run it is not.

    Args:
        path: the file.
        metrics: of the epochs that are done.
        tensors: everything else.
    """

    path: Path
    metrics: list[dict[str, Any]]
    tensors: dict[str, torch.Tensor]

    def restore(self, step: Trained) -> None:
        """Put a new model in training into this state.

        Raises:
            CheckpointError: the tensors are not those of such a model.
        """
        with self._fitting():
            step.model.load_state_dict(_below("model.", self.tensors))
            if step.average is not None:
                step.average.load_state_dict(_below("average.", self.tensors))
            restore_optimizers(step.optimizers, _below("optimizer.", self.tensors))

    def restore_finished(self, stage: str, model: nn.Module) -> None:
        """Give a model the weights that an earlier stage has trained.

        Raises:
            CheckpointError: the tensors are not those of such a model.
        """
        with self._fitting():
            model.load_state_dict(_below(f"finished.{stage}.", self.tensors))

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{self.path}: does not fit the model: {reason}") from error


def read_state(path: Path, settings: dict[str, Any]) -> State | None:
    """The state of a run with these settings; ``None`` where there is no file yet.

    Raises:
        CheckpointError: damaged, altered, or of another run.
    """
    if not path.exists():
        return None
    tensors, metadata = _read(path)
    if metadata["settings"] != _text(settings):
        raise CheckpointError(
            f"{path}: must be of a run with these settings and pictures, it is of another; "
            "undo what has changed or train anew with --overwrite"
        )
    try:
        metrics = json.loads(tensors["metrics"].numpy().tobytes())
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit the model: {error}") from error
    return State(path, metrics, tensors)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, _ = read_header(file, size, path)
            metadata = pop_metadata(header, _KEYS, FORMAT, path)
            file.seek(0)
            tensors = safetensors.torch.load(file.read(size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: must be a whole safetensors file: {error}") from error
    check_digest(metadata, tensors, path)
    return tensors, metadata


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
