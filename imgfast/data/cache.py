"""The pictures of a folder, decoded once: a memory-mapped file with a checksum.

Where: ``$IMGFAST_CACHE``, else ``$XDG_CACHE_HOME/imgfast``, else ``~/.cache/imgfast``. Decoded
folders are ``decoded/*.safetensors`` in there, one for each folder and picture size, which a later
state of the same folder replaces. The file is trusted only where its key, the state of the folder,
and its SHA-256 fit; whatever is wrong with it, the folder is decoded as if there were none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
import safetensors
import safetensors.torch
import torch

from imgfast.data.atomic import replacing
from imgfast.data.decode import Decoded, Progress, decode_files, with_channels
from imgfast.data.errors import DataError
from imgfast.data.picture import FORMATS, Header

FOLDER_VARIABLE = "IMGFAST_CACHE"
_FORMAT = "imgfast-decoded-1"
_DTYPES = {"images": torch.uint8, "kept": torch.int64, "headers": torch.int64}


def cache_folder() -> Path:
    """Where imgfast keeps what it decoded or downloaded; it need not exist.

    Raises:
        DataError: the user has no home folder, and no variable names another.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification has a relative path ignored.
        return Path(base if os.path.isabs(base) else Path.home() / ".cache", "imgfast")
    except RuntimeError as error:
        raise DataError(f"cache: the user has no home folder; set {FOLDER_VARIABLE}") from error


def decode_cached(
    root: Path, files: Sequence[Path], size: int, on_picture: Progress | None = None
) -> Decoded:
    """As :func:`imgfast.data.decode.decode_files`, from the cache where it holds these files.

    Args:
        root: the folder that all files lie in.
        files: the files, in an order that depends on the folder alone.
        size: height and width of the pictures.
        on_picture: as for ``decode_files``; of cached pictures it is called once.

    Returns:
        The pictures. From the cache they are a private mapping of its file: memory is taken as
        they are read, and writing to them changes no file.

    Note:
        Files that could not be read are tried again every time, in case that has passed.
    """
    try:
        path = _path(root, size)
    except DataError:
        return decode_files(files, size, on_picture)
    key = _key(root, files, size)  # before decoding: a file that changes meanwhile is noticed
    found = _load(path, key, files, size)
    if found is not None:
        if on_picture is not None:
            on_picture(len(files), len(files))
        return found
    decoded = decode_files(files, size, on_picture)
    decoded = Decoded(
        with_channels(decoded.images, None), decoded.kept, decoded.headers, decoded.errors
    )
    # A disk that is full or read-only: the pictures are there all the same.
    with contextlib.suppress(OSError, safetensors.SafetensorError):
        _store(path, key, decoded)
    return decoded


def clear_cache() -> tuple[int, int]:
    """Delete all decoded folders. Data sets that were downloaded stay.

    Returns:
        Number of files deleted and their size in bytes.

    Raises:
        OSError: a file cannot be deleted.
    """
    files = [
        path
        for pattern in ("*.safetensors", ".*.safetensors.*.tmp")  # also what a crash left
        for path in (cache_folder() / "decoded").glob(pattern)
    ]
    freed = 0
    for path in files:
        freed += path.stat().st_size
        path.unlink()
    return len(files), freed


def _path(root: Path, size: int) -> Path:
    name = hashlib.sha256(json.dumps([os.fsdecode(root.resolve()), size]).encode()).hexdigest()
    return cache_folder() / "decoded" / f"{name[:32]}.safetensors"


def _key(root: Path, files: Sequence[Path], size: int) -> str:
    """SHA-256 over everything the decoded pictures depend on."""
    total = hashlib.sha256(json.dumps([_FORMAT, PIL.__version__, size]).encode())
    for path in files:
        try:
            status = path.stat()
            # The change time tells of an edit after which the modification time was set back.
            state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError:
            state = ()
        total.update(json.dumps([os.fsdecode(path.relative_to(root)), *state]).encode())
    return total.hexdigest()


def _store(path: Path, key: str, decoded: Decoded) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures may be private
    headers = [(FORMATS.index(kind), *size) for kind, *size in decoded.headers]
    tensors = {
        "images": torch.from_numpy(np.ascontiguousarray(decoded.images)),  # [N, 1 or 3, S, S]
        "kept": torch.tensor(decoded.kept, dtype=torch.int64),  # [N]
        "headers": torch.tensor(headers, dtype=torch.int64).view(-1, 3),  # format, width, height
    }
    metadata = {"format": _FORMAT, "key": key, "sha256": _digest(key, tensors)}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)


def _load(path: Path, key: str, files: Sequence[Path], size: int) -> Decoded | None:
    """What the file holds, or None where it is not there, outdated, damaged or altered."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in _DTYPES}
    except (OSError, safetensors.SafetensorError):
        return None
    if {name: value.dtype for name, value in tensors.items()} != _DTYPES:
        return None
    if metadata.get("sha256") != _digest(key, tensors):
        return None
    # From here on the file is one that _store wrote for exactly these files.
    kept = tensors["kept"].tolist()
    others = [files[index] for index in sorted(set(range(len(files))) - set(kept))]
    again = decode_files(others, size)
    if again.kept:
        return None
    headers = [Header(FORMATS[kind], *shape) for kind, *shape in tensors["headers"].tolist()]
    return Decoded(tensors["images"].numpy(), kept, headers, again.errors)


def _digest(key: str, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the key and of every tensor with its name, dtype and shape."""
    total = hashlib.sha256(key.encode())
    for name, value in sorted(tensors.items()):
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(value.numpy())
    return total.hexdigest()
