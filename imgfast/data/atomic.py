"""Files that are replaced as a whole: readers and crashes see the old bytes or the new ones."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends without an error.

    Temporary file in the same folder, fsync, rename, fsync of the folder. After an error, or if
    the rename fails, ``path`` is as it was and the temporary file is gone.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a file in its file system; ``path`` is whole even after a power cut."""
    _sync(temporary)
    os.replace(temporary, path)
    # The rename itself lives in the folder: without this a power cut could undo it.
    _sync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file as a whole: readers and crashes see the old bytes or the new ones."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
