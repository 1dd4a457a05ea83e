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
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from imgfast.data.atomic import write_atomically
from imgfast.engine.optimizer import optimizer_tensors, restore_optimizers
from imgfast.engine.tensor_file import (
    CheckpointError,
    check_digest,
    encode,
    pop_metadata,
    read_header,
)
from imgfast.engine.training_step import TrainingStep

FORMAT = "imgfast-training-state-1"
_KEYS = ("format", "settings")


def save_state(
    path: Path, step: TrainingStep, metrics: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """Write the state after an epoch.

    Args:
        path: the file; replaced atomically.
        step: the model in training.
        metrics: of every epoch so far.
        settings: of the run, as in its ``config.json``.
    """
    tensors = {f"model.{name}": value for name, value in step.model.state_dict().items()}
    if step.average is not None:
        state = step.average.state_dict()
        tensors |= {f"average.{name}": value for name, value in state.items()}
    for name, value in optimizer_tensors(step.optimizers):
        tensors[f"optimizer.{name}"] = value
    # A tensor, as the header has a bound and a long run has many epochs.
    text = bytearray(json.dumps(metrics).encode())
    tensors["metrics"] = torch.frombuffer(text, dtype=torch.uint8)
    metadata = {"format": FORMAT, "settings": _text(settings)}
    write_atomically(path, encode(tensors, metadata))


def load_state(path: Path, step: TrainingStep, settings: dict[str, Any]) -> list[dict[str, Any]]:
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
    if not path.exists():
        return []
    tensors, metadata = _read(path)
    if metadata["settings"] != _text(settings):
        raise CheckpointError(
            f"{path}: must be of a run with these settings and pictures, it is of another; "
            "undo what has changed or train anew with --overwrite"
        )
    try:
        step.model.load_state_dict(_below("model.", tensors))
        if step.average is not None:
            step.average.load_state_dict(_below("average.", tensors))
        restore_optimizers(step.optimizers, _below("optimizer.", tensors))
        return json.loads(tensors["metrics"].numpy().tobytes())
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not fit the model: {reason}") from error


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
