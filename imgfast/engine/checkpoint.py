"""Checkpoints: one safetensors file that carries its configuration and its own SHA-256.

Writing is atomic, see :mod:`imgfast.data.atomic`. Reading trusts nothing and unpickles
nothing. The header is bounded and checked first: format, configuration, and that the file holds
exactly the tensors (names, shapes, dtypes) that the configuration asks for. Only then are values
read, compared with the SHA-256, and loaded.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from imgfast.data.atomic import write_atomically
from imgfast.engine.tensor_file import (
    MAX_HEADER_BYTES,
    CheckpointError,
    check_digest,
    check_tensors,
    encode,
    pop_metadata,
    read_header,
)
from imgfast.models import Classifier, ClassifierConfig, build_classifier

__all__ = [
    "MAX_HEADER_BYTES",
    "Checkpoint",
    "CheckpointError",
    "checkpoint_file",
    "load_checkpoint",
    "save_checkpoint",
]

FORMAT = "imgfast-checkpoint-1"
_KEYS = ("format", "config", "training")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Args:
        model: the classifier, in eval mode, on the CPU.
        config: of the classifier.
        training: how it was trained, as plain values: data, seed, epochs, accuracy, ...
        path: the file it came from.
    """

    model: Classifier
    config: ClassifierConfig
    training: dict[str, Any]
    path: Path


def save_checkpoint(path: str | Path, model: Classifier, training: dict[str, Any]) -> None:
    """Write a model with its configuration and how it was trained, atomically.

    The same weights and settings give the same bytes.
    """
    metadata = {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict(), sort_keys=True),
        "training": json.dumps(training, sort_keys=True),
    }
    write_atomically(Path(path), encode(model.state_dict(), metadata))


def checkpoint_file(path: str | Path) -> Path:
    """The file that is meant: of a run folder its ``last.safetensors``."""
    path = Path(path)
    return path / "last.safetensors" if path.is_dir() else path


def load_checkpoint(path: str | Path, layers: str = "imgfast") -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: as in :func:`checkpoint_file`.
        layers: kind of layers to build, as in :class:`~imgfast.models.Classifier`.

    Raises:
        CheckpointError: missing, not a checkpoint of ours, damaged or altered.
    """
    path = checkpoint_file(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = read_header(file, size, path)
            metadata = pop_metadata(header, _KEYS, FORMAT, path)
            config, training = _settings(metadata, path)
            with torch.device("meta"):  # shapes alone: nothing is allocated yet
                expected = Classifier(config, layers).state_dict()
            check_tensors(header, expected, size - start, path)
            file.seek(0)
            tensors = safetensors.torch.load(file.read(size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: must be a whole safetensors file: {error}") from error
    check_digest(metadata, tensors, path)
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: tensor {name!r} must be finite")
    model = build_classifier(config, layers)
    model.load_state_dict(tensors)
    return Checkpoint(model.eval(), config, training, path)


def _settings(metadata: dict[str, str], path: Path) -> tuple[ClassifierConfig, dict[str, Any]]:
    try:
        config = ClassifierConfig.from_dict(json.loads(metadata["config"]))
        training = json.loads(metadata["training"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: configuration is not valid: {error}") from error
    if not isinstance(training, dict):
        raise CheckpointError(f"{path}: configuration is not valid: training must be a table")
    return config, training
