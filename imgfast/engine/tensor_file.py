"""Safetensors files with their own SHA-256: written whole or not at all, read with bounds.

Checkpoints and training states are such files, see :mod:`imgfast.data.atomic` for how they are
written. The same tensors and texts give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 10_000
MAX_FILE_BYTES = 4 << 30

# The names that safetensors gives to the dtypes our files may hold.
DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the file, the rule it breaks, the value found."""


def encode(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file of tensors and texts; the key ``sha256`` is added to the texts.

    Args:
        tensors: of any device and strides; a dtype of ``DTYPES``.
        metadata: texts; their order is part of what the sum is of.
    """
    values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    signed = {**metadata, "sha256": digest(metadata, values)}
    content = safetensors.torch.save(values, signed)
    # safetensors writes the texts in a random order: the header is written anew, in ours.
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": signed}
    text = json.dumps(dict(sorted(header.items())), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def digest(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the texts and of every tensor with its name, dtype and shape."""
    total = hashlib.sha256()
    for key, text in metadata.items():
        total.update(json.dumps([key, text]).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_header(file: Any, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of an open file of ``size`` bytes, and where the values start.

    Raises:
        CheckpointError: the file or its header is too large, or is no header.
    """
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


def pop_metadata(
    header: dict[str, Any], keys: tuple[str, ...], format_name: str, path: Path
) -> dict[str, str]:
    """Take the texts out of a header: exactly ``keys`` and ``sha256``, in that order.

    Raises:
        CheckpointError: other texts, or another format.
    """
    metadata = header.pop("__metadata__", None)
    strings = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not strings or set(metadata) != {*keys, "sha256"} or metadata["format"] != format_name:
        raise CheckpointError(
            f"{path}: must be a checkpoint that imgfast wrote ({format_name}), it does not say so"
        )
    return {key: metadata[key] for key in (*keys, "sha256")}


def check_tensors(
    header: dict[str, Any], expected: Mapping[str, torch.Tensor], size: int, path: Path
) -> None:
    """The header lists exactly the expected tensors, and the file holds exactly their values.

    Args:
        header: without its texts.
        expected: tensors of the right names, shapes and dtypes; meta tensors will do.
        size: bytes of the values in the file.

    Raises:
        CheckpointError: another name, shape, dtype or size.
    """
    if set(header) != set(expected):
        different = sorted(set(header) ^ set(expected))[:3]
        raise CheckpointError(
            f"{path}: must hold the tensors {sorted(expected)}, differs in {different}"
        )
    for name, value in expected.items():
        entry = header[name] if isinstance(header[name], dict) else {}
        found = (entry.get("dtype"), entry.get("shape"))
        if found != (DTYPES.get(value.dtype), list(value.shape)):
            raise CheckpointError(
                f"{path}: tensor {name!r} must be {DTYPES.get(value.dtype)} {list(value.shape)}, "
                f"got {found[0]} {str(found[1])[:100]}"
            )
    values = sum(value.numel() * value.element_size() for value in expected.values())
    if values != size:
        raise CheckpointError(f"{path}: must hold {values} bytes of values, got {size}: truncated")


def check_digest(metadata: dict[str, str], tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """What the file says of itself under ``sha256`` is true.

    Raises:
        CheckpointError: it is not.
    """
    texts = {key: text for key, text in metadata.items() if key != "sha256"}
    found = digest(texts, tensors)
    if found != metadata["sha256"]:
        raise CheckpointError(
            f"{path}: SHA-256 must be {metadata['sha256'][:16]}..., got {found[:16]}...: "
            "the file is damaged or was altered"
        )
