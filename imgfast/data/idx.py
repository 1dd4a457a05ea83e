"""Read and write IDX, the format of MNIST and Fashion-MNIST, plain or inside gzip or xz.

A header of 4 + 4 * rank bytes (two zero bytes, type, rank, big-endian sizes) stands before the
values. Sizes are checked before anything is allocated, and a compressed file is never expanded
by more than one byte beyond what its header promises.
"""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imgfast.data.errors import DataError

_UINT8 = 0x08
_MAX_RANK = 4
_MAX_BYTES = 1 << 30


def read_idx(path: Path, rank: int) -> np.ndarray:
    """The values of an unsigned-byte IDX file.

    Args:
        path: the file; ``.gz`` and ``.xz`` are expanded on the way.
        rank: number of dimensions it must have: 1 for labels, 3 for grey pictures.

    Returns:
        uint8 array with the sizes of the header.

    Raises:
        DataError: not an IDX file, another type or rank, larger than 1 GiB, or longer or shorter
            than the header says.
    """
    try:
        with _open(path) as file:
            return _read(file, path, rank)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def write_idx_xz(path: Path, values: np.ndarray) -> None:
    """Write a uint8 array as IDX inside xz, the same bytes for the same values."""
    header = struct.pack(">HBB", 0, _UINT8, values.ndim)
    header += struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(lzma.compress(header + values.tobytes(), preset=9 | lzma.PRESET_EXTREME))


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


def _read(file: BinaryIO, path: Path, rank: int) -> np.ndarray:
    prefix = file.read(4)
    if len(prefix) != 4 or prefix[:3] != bytes((0, 0, _UINT8)):
        raise DataError(f"{path}: must start with the IDX prefix 000008, got {prefix.hex()!r}")
    if not prefix[3] == rank <= _MAX_RANK:
        raise DataError(f"{path}: must have {rank} dimensions, got {prefix[3]}")
    sizes = file.read(4 * rank)
    if len(sizes) != 4 * rank:
        raise DataError(f"{path}: ends inside its header")
    shape = struct.unpack(f">{rank}I", sizes)
    count = 1
    for size in shape:  # Python integers: no overflow on the way to the check
        count *= size
    if count > _MAX_BYTES:
        raise DataError(f"{path}: must hold at most {_MAX_BYTES} values, header says {count}")
    values = file.read(count + 1)
    if len(values) != count:
        found = "more" if len(values) > count else str(len(values))
        raise DataError(f"{path}: header says {count} values, the file holds {found}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
