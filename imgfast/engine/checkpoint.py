"""Checkpoints: one safetensors file that carries its configuration and its own SHA-256.

Writing is atomic, see :mod:`imgfast.data.atomic`. Reading trusts nothing and unpickles
nothing. The header is bounded and checked first: format, configuration, and that the file holds
exactly the tensors (names, shapes, dtypes) that the configuration asks for. Only then are values
read, compared with the SHA-256, and loaded.
"""

from __future__ import annotations

import hashlib
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
from imgfast.models import (
    Classifier,
    ClassifierConfig,
    Generator,
    GeneratorConfig,
    build_classifier,
    build_generator,
)

__all__ = [
    "MAX_HEADER_BYTES",
    "Checkpoint",
    "CheckpointError",
    "GeneratorCheckpoint",
    "checkpoint_file",
    "checkpoint_kind",
    "load_checkpoint",
    "load_generator",
    "save_checkpoint",
]

FORMAT = "imgfast-checkpoint-1"
_KEYS = ("format", "config", "training")
_KIND_KEYS = ("format", "kind", "config", "training")
CLASSIFIER, GENERATOR = "classifier", "generator"  # a file that tells no kind is a classifier's
_COMMANDS = {CLASSIFIER: "predict and evaluate", GENERATOR: "generate"}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file of a classifier holds.

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


@dataclass(frozen=True)
class GeneratorCheckpoint:
    """What a checkpoint file of a generator holds.

    Args:
        model: the generator, in eval mode, on the CPU.
        config: of the generator.
        training: how it was trained, as plain values: data, seed, epochs, ...
        path: the file it came from.
        sha256: of the file's bytes, hexadecimal.
    """

    model: Generator
    config: GeneratorConfig
    training: dict[str, Any]
    path: Path
    sha256: str


def save_checkpoint(
    path: str | Path, model: Classifier | Generator, training: dict[str, Any]
) -> None:
    """Write a model with its configuration and how it was trained, atomically.

    The same weights and settings give the same bytes.
    """
    kind = {"kind": GENERATOR} if isinstance(model, Generator) else {}
    metadata = {
        "format": FORMAT,
        **kind,
        "config": json.dumps(model.config.to_dict(), sort_keys=True),
        "training": json.dumps(training, sort_keys=True),
    }
    write_atomically(Path(path), encode(model.state_dict(), metadata))


def checkpoint_file(path: str | Path) -> Path:
    """The file that is meant: of a run folder its ``last.safetensors``."""
    path = Path(path)
    return path / "last.safetensors" if path.is_dir() else path


def load_checkpoint(path: str | Path, layers: str = "imgfast") -> Checkpoint:
    """Read a classifier's checkpoint.

    Args:
        path: as in :func:`checkpoint_file`.
        layers: kind of layers to build, as in :class:`~imgfast.models.Classifier`.

    Raises:
        CheckpointError: missing, not a checkpoint of ours or of a generator, damaged or altered.
    """
    path = checkpoint_file(path)
    model, training, _ = _load(path, CLASSIFIER, layers)
    return Checkpoint(model, model.config, training, path)


def load_generator(path: str | Path, layers: str = "imgfast") -> GeneratorCheckpoint:
    """Read a generator's checkpoint; arguments and errors as of :func:`load_checkpoint`."""
    path = checkpoint_file(path)
    model, training, sha256 = _load(path, GENERATOR, layers)
    return GeneratorCheckpoint(model, model.config, training, path, sha256)


def checkpoint_kind(path: str | Path) -> str:
    """``classifier`` or ``generator``, as the header of a checkpoint tells.

    Raises:
        CheckpointError: missing, or not a checkpoint of ours.
    """
    path = checkpoint_file(path)
    try:
        with path.open("rb") as file:
            header, _ = read_header(file, os.fstat(file.fileno()).st_size, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _pop_settings(header, path)[0]


def _load(path: Path, kind: str, layers: str) -> tuple[Any, dict[str, Any], str]:
    """The model of a file of this kind, how it was trained, and the SHA-256 of the file."""
    # Looked up at the call: a name of this module may be replaced.
    config_class, model_class, build = {
        CLASSIFIER: (ClassifierConfig, Classifier, build_classifier),
        GENERATOR: (GeneratorConfig, Generator, build_generator),
    }[kind]
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = read_header(file, size, path)
            found, metadata = _pop_settings(header, path)
            if found != kind:
                raise CheckpointError(
                    f"{path}: must be the checkpoint of a {kind}, it is of a {found}; "
                    f"use it with imgfast {_COMMANDS[found]}"
                )
            config, training = _settings(metadata, config_class, path)
            with torch.device("meta"):  # shapes alone: nothing is allocated yet
                expected = model_class(config, layers).state_dict()
            check_tensors(header, expected, size - start, path)
            file.seek(0)
            content = file.read(size)
            tensors = safetensors.torch.load(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: must be a whole safetensors file: {error}") from error
    check_digest(metadata, tensors, path)
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: tensor {name!r} must be finite")
    model = build(config, layers)
    model.load_state_dict(tensors)
    return model.eval(), training, hashlib.sha256(content).hexdigest()


def _pop_settings(header: dict[str, Any], path: Path) -> tuple[str, dict[str, str]]:
    """Take the texts out of a header: the kind of network, and all of them."""
    texts = header.get("__metadata__")
    told = isinstance(texts, dict) and "kind" in texts
    metadata = pop_metadata(header, _KIND_KEYS if told else _KEYS, FORMAT, path)
    kind = metadata.get("kind", CLASSIFIER)
    if kind not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise CheckpointError(f"{path}: kind must be one of {known}, got {kind[:100]!r}")
    return kind, metadata


def _settings(
    metadata: dict[str, str],
    config_class: type[ClassifierConfig] | type[GeneratorConfig],
    path: Path,
) -> tuple[Any, dict[str, Any]]:
    try:
        config = config_class.from_dict(json.loads(metadata["config"]))
        training = json.loads(metadata["training"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: configuration is not valid: {error}") from error
    if not isinstance(training, dict):
        raise CheckpointError(f"{path}: configuration is not valid: training must be a table")
    return config, training
