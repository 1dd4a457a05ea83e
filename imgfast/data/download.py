"""Fetch a file over HTTP: bounded in size and time, checked, from the first address that works."""

from __future__ import annotations

import http.client
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from imgfast.data.decode import Progress
from imgfast.data.errors import DataError, one_line

_CHUNK_BYTES = 1 << 16
SILENCE_SECONDS = 20.0  # the longest wait for an answer or for the next bytes
TOTAL_SECONDS = 600.0  # for one file from one address


def download(
    addresses: Sequence[str],
    path: Path,
    max_bytes: int,
    check: Callable[[Path], object],
    on_progress: Progress | None = None,
) -> None:
    """Fetch a file from the first address that gives it whole and right.

    Args:
        addresses: HTTP or HTTPS, tried in turn.
        path: the file to write, in a folder of the caller's own; after an error it is not there.
        max_bytes: a longer file is refused, and not read to its end.
        check: called with ``path``; raises DataError to refuse what came.
        on_progress: called with (bytes so far, all bytes) where the server says how many.

    Raises:
        DataError: no address gave the file; one line says why, for each.
        OSError: the file cannot be written.
    """
    reasons = []
    for address in addresses:
        try:
            with path.open("wb") as file:
                for chunk in _chunks(address, max_bytes, on_progress):
                    file.write(chunk)
            check(path)
            return
        except DataError as error:
            path.unlink(missing_ok=True)
            reasons.append(str(error))
    raise DataError(f"{path.name}: cannot be downloaded: {'; '.join(reasons)}")


def _chunks(address: str, max_bytes: int, on_progress: Progress | None) -> Iterator[bytes]:
    """The bytes of one address, as they come."""
    if not address.startswith(("http://", "https://")):  # urllib would open local files too
        raise DataError(f"{address}: must be an HTTP or HTTPS address")
    deadline = time.monotonic() + TOTAL_SECONDS
    done = 0
    try:
        with urllib.request.urlopen(address, timeout=SILENCE_SECONDS) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            # read1 returns what is there: read would wait for a full chunk, however slow.
            while chunk := answer.read1(_CHUNK_BYTES):
                done += len(chunk)
                if max(done, total) > max_bytes:
                    raise DataError(f"{address}: must have at most {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise DataError(f"{address}: must arrive within {TOTAL_SECONDS:.0f} s")
                if on_progress is not None and total:
                    on_progress(done, total)
                yield chunk
    # A server may say anything; none of it is more than a reason to try the next address.
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{address}: {one_line(error) or type(error).__name__}") from error
    if total and done != total:
        raise DataError(f"{address}: must send {total} bytes, sent {done}")
