"""IDX files: what is written is read back, and a lying header costs nothing."""

import gzip
import lzma
import struct

import numpy as np
import pytest

from imgfast.data import DataError
from imgfast.data.idx import read_idx, write_idx_xz


def idx_bytes(*shape: int, values: bytes) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values


def test_written_values_are_read_back(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    write_idx_xz(tmp_path / "a.xz", values)
    assert np.array_equal(read_idx(tmp_path / "a.xz", 3), values)


@pytest.mark.parametrize(
    "suffix, pack", [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_plain_gzip_and_xz_hold_the_same(tmp_path, suffix, pack):
    path = tmp_path / f"labels{suffix}"
    path.write_bytes(pack(idx_bytes(4, values=bytes([3, 1, 4, 1]))))
    assert read_idx(path, 1).tolist() == [3, 1, 4, 1]


@pytest.mark.parametrize(
    "content, rule",
    [
        (b"", "prefix"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00\x00\x00\x00", "prefix"),  # float32
        (idx_bytes(2, values=b"ab"), "must have 3 dimensions, got 1"),
        (idx_bytes(2, 2, 2, values=b"")[:9], "ends inside its header"),
        (idx_bytes(2, 2, 2, values=b"1234567"), "holds 7"),
        (idx_bytes(2, 2, 2, values=b"123456789"), "holds more"),
        # 2^96 values: the product must not wrap around, nor be allocated.
        (idx_bytes(2**32 - 1, 2**32 - 1, 2**32 - 1, values=b"x"), "at most"),
    ],
)
def test_malformed_files_are_refused_by_rule(tmp_path, content, rule):
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rule) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_a_bomb_is_expanded_no_further_than_its_header_says(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx_bytes(10, values=bytes(200_000_000)), 9))
    with pytest.raises(DataError, match="holds more"):
        read_idx(path, 1)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_truncated_and_foreign_containers_are_refused(tmp_path, suffix):
    pack = gzip.compress if suffix == ".gz" else lzma.compress
    whole = pack(idx_bytes(1000, values=np.random.default_rng(1).bytes(1000)))
    path = tmp_path / f"labels{suffix}"
    for content in (whole[: len(whole) // 2], b"not packed at all", b""):
        path.write_bytes(content)
        with pytest.raises(DataError):
            read_idx(path, 1)
