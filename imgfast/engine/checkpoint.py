"""Checkpoints: one safetensors file that carries its configuration and its own SHA-256.

Writing is atomic: temporary file in the same folder, fsync, rename, fsync of the folder. Whatever
moment the process dies at, the name holds the old file or the new one, whole.

Reading trusts nothing and unpickles nothing. The header is bounded and checked first: format,
configuration, and that the file holds exactly the tensors (names, shapes, dtypes) that the
configuration asks for. Only then are values read, compared with the SHA-256, and loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from imgfast.data.atomic import write_atomically
from imgfast.models import Classifier, ClassifierConfig, build_classifier

FORMAT = "imgfast-checkpoint-1"
MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 10_000
MAX_FILE_BYTES = 4 << 30
_KEYS = {"format", "config", "training", "sha256"}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the file, the rule it breaks, the value found."""


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
    """Write a model with its configuration and how it was trained, atomically."""
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    metadata = {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict(), sort_keys=True),
        "training": json.dumps(training, sort_keys=True),
    }
    metadata["sha256"] = _digest(metadata, tensors)
    write_atomically(Path(path), safetensors.torch.save(tensors, metadata))


def load_checkpoint(path: str | Path, layers: str = "imgfast") -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: the file, or a run folder, whose ``last.safetensors`` is meant.
        layers: kind of layers to build, as in :class:`~imgfast.models.Classifier`.

    Raises:
        CheckpointError: missing, not a checkpoint of ours, damaged or altered.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "last.safetensors"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _read_header(file, size, path)
            metadata = _metadata(header, path)
            config, training = _settings(metadata, path)
            with torch.device("meta"):  # shapes alone: nothing is allocated yet
                expected = Classifier(config, layers).state_dict()
            _check_tensors(header, expected, size - start, path)
            file.seek(0)
            tensors = safetensors.torch.load(file.read(size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: must be a whole safetensors file: {error}") from error
    found = _digest(metadata, tensors)
    if found != metadata["sha256"]:
        raise CheckpointError(
            f"{path}: SHA-256 must be {metadata['sha256'][:16]}..., got {found[:16]}...: "
            "the file is damaged or was altered"
        )
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: tensor {name!r} must be finite")
    model = build_classifier(config, layers)
    model.load_state_dict(tensors)
    return Checkpoint(model.eval(), config, training, path)


def _digest(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the configuration and of every tensor with its name, dtype and shape."""
    total = hashlib.sha256()
    for key in ("format", "config", "training"):
        total.update(json.dumps([key, metadata[key]]).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _read_header(file: Any, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and the position where the values start."""
    prefix = file.read(8)
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: must be at most {MAX_FILE_BYTES} bytes, got {size}")
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path}: must be a safetensors file with a header of at most {MAX_HEADER_BYTES} "
            f"bytes, got {length} in a file of {size}"
        )
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header must be JSON") from error
    if not isinstance(header, dict) or not 2 <= len(header) <= MAX_TENSORS + 1:
        raise CheckpointError(f"{path}: header must list 1 to {MAX_TENSORS} tensors")
    return header, 8 + length


def _metadata(header: dict[str, Any], path: Path) -> dict[str, str]:
    metadata = header.pop("__metadata__", None)
    strings = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not strings or set(metadata) != _KEYS or metadata["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: must be a checkpoint that imgfast wrote ({FORMAT}), it does not say so"
        )
    return metadata


def _settings(metadata: dict[str, str], path: Path) -> tuple[ClassifierConfig, dict[str, Any]]:
    try:
        config = ClassifierConfig.from_dict(json.loads(metadata["config"]))
        training = json.loads(metadata["training"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: configuration is not valid: {error}") from error
    if not isinstance(training, dict):
        raise CheckpointError(f"{path}: configuration is not valid: training must be a table")
    return config, training


def _check_tensors(
    header: dict[str, Any], expected: dict[str, torch.Tensor], size: int, path: Path
) -> None:
    """The header lists exactly the expected tensors, and the file holds exactly their values."""
    if set(header) != set(expected):
        different = sorted(set(header) ^ set(expected))[:3]
        raise CheckpointError(
            f"{path}: must hold the tensors {sorted(expected)}, differs in {different}"
        )
    for name, value in expected.items():
        entry = header[name] if isinstance(header[name], dict) else {}
        found = (entry.get("dtype"), entry.get("shape"))
        if found != ("F32", list(value.shape)):
            raise CheckpointError(
                f"{path}: tensor {name!r} must be F32 {list(value.shape)}, "
                f"got {found[0]} {str(found[1])[:100]}"
            )
    values = 4 * sum(value.numel() for value in expected.values())
    if values != size:
        raise CheckpointError(f"{path}: must hold {values} bytes of values, got {size}: truncated")
