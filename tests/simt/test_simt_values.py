"""What kernels compute under the emulator, and what a run demands of its arguments."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simt
import torch

KERNELS = simt.load("selftest_values")
LANES = np.arange(32)


def _shuffle_source(kind: str, operand: int, width: int) -> np.ndarray:
    """The lane that each lane reads, by the CUDA C++ Programming Guide."""
    first = LANES // width * width
    source = {
        "index": first + operand % width,
        "xor": LANES ^ operand,
        "down": LANES + operand,
        "up": LANES - operand,
    }[kind]
    inside = source >= first if kind == "up" else source < first + width
    return np.where(inside, source, LANES)


@pytest.mark.parametrize("dtype", ["float", "half", "double"])
@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize(
    ("kind", "operand"),
    [("index", 5), ("index", 13), ("xor", 1), ("xor", 16), ("down", 3), ("up", 3), ("up", 8)],
)
def test_shuffles(kind, operand, width, dtype):
    x = (LANES * 3 + 1).astype({"float": "f4", "half": "f2", "double": "f8"}[dtype])
    y = np.empty_like(x)
    code = ["index", "xor", "down", "up"].index(kind)
    KERNELS.run(f"shuffle_{dtype}", x, simt.out(y), code, operand, width, seed=1)
    np.testing.assert_array_equal(y, x[_shuffle_source(kind, operand, width)])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_votes_and_reductions(seed):
    x = np.random.default_rng(seed).integers(-1000, 1000, 64).astype(np.int32)
    x[32:] = np.abs(x[32:]) + 1  # a warp that agrees beside one that does not
    y = np.empty((9, 64), np.int32)
    KERNELS.run("votes", x, simt.out(y), seed=seed)
    for first in (0, 32):
        warp, lanes = x[first : first + 32], y[:, first : first + 32]
        ballot = sum(1 << i for i in range(32) if warp[i] > 0)
        assert (lanes[0].view(np.uint32) == ballot).all()
        assert (lanes[1] == (warp > 0).any()).all()
        assert (lanes[2] == (warp > 0).all()).all()
        for row, expected in zip(lanes[6:], (warp.sum(), warp.min(), warp.max()), strict=True):
            assert (row == expected).all()
    assert (y[3] == (x > 0).sum()).all()
    assert (y[4] == 1).all()
    assert (y[5] == 0).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atomics(seed):
    x = np.random.default_rng(seed).integers(0, 1 << 20, 64).astype(np.int32)
    y = np.array([0, 0, 1 << 30, 0, -1, 0, 0, 0, 0], np.int32)
    KERNELS.run("atomics", x, simt.inout(y), seed=seed, preempt=4)
    bits = [f.reduce(x) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)]
    expected = [x.sum(), -x.sum(), x.min(), x.max(), *bits, 64 % 10]
    np.testing.assert_array_equal(y[:8], expected)


@pytest.mark.parametrize("bytes_", [4, 8, 16])
@pytest.mark.parametrize("values", [256, 128, 0])
def test_copies_zero_fill_what_is_not_valid(bytes_, values):
    x = np.arange(1, values + 1, dtype=np.float32)  # what is not valid need not exist
    y = np.empty(256, np.float32)
    KERNELS.run("copy", x, simt.out(y), bytes_, values, seed=1)
    np.testing.assert_array_equal(y, np.concatenate([x, np.zeros(256 - values, np.float32)]))


@pytest.mark.parametrize("by_ldmatrix", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mma_in_16_bits(dtype, by_ldmatrix):
    torch.manual_seed(0)
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    c, d = torch.randn(16, 8), torch.empty(16, 8)
    name = "mma_bf16" if dtype is torch.bfloat16 else "mma_f16"
    KERNELS.run(name, a, b, c, simt.out(d), by_ldmatrix, seed=1)
    torch.testing.assert_close(d.double(), c.double() + a.double() @ b.double(), rtol=0, atol=1e-5)


def test_mma_in_tf32():
    torch.manual_seed(0)
    a, b, c, d = torch.randn(16, 8), torch.randn(8, 8), torch.randn(16, 8), torch.empty(16, 8)
    KERNELS.run("mma_tf32", a, b, c, simt.out(d), seed=1)

    def tf32(x: torch.Tensor) -> torch.Tensor:
        """11 bits of significand; random values are never ties."""
        significand, exponent = torch.frexp(x.double())
        return torch.ldexp(torch.round(significand * 2**11) / 2**11, exponent)

    expected = c.double() + tf32(a) @ tf32(b)
    torch.testing.assert_close(d.double(), expected, rtol=0, atol=1e-5)
    assert (d.double() - (c.double() + a.double() @ b.double())).abs().max() > 1e-4


def test_exp2():
    special = [0.0, 1.0, -1.0, 127.5, -126.0, -127.0, 1e-40, -np.inf, np.inf, np.nan]
    x = np.array([*special, *np.linspace(-20, 20, 101)], np.float32)
    y = np.empty_like(x)
    KERNELS.run("exp2_of", x, simt.out(y), x.size)
    expected = np.exp2(x.astype(np.float64))
    expected[5] = 0.0  # subnormal
    np.testing.assert_allclose(y, expected, rtol=2.0**-22)


def test_arithmetic_and_bits():
    x = np.array([0.5, 2.0, -np.inf, np.inf, np.nan, -0.0, 1e-30], np.float32)
    y = np.empty((4, x.size), np.float32)
    KERNELS.run("arithmetic", x, simt.out(y), x.size)
    np.testing.assert_array_equal(y[0], np.fmin(x, 1))  # of a number and NaN, the number
    np.testing.assert_array_equal(y[1], np.fmax(x, 1))
    for value, got in zip(x.view(np.uint32) >> 16, y[2], strict=True):
        text = f"{value:032b}"
        first = len(text) - text.rindex("1") if value else 0
        leading = text.index("1") if value else 32
        assert got == text.count("1") + 100 * leading + 10000 * first
    np.testing.assert_array_equal(y[3], ~np.isnan(x))


# --- the profile --------------------------------------------------------------------------------


def _cost(function: str, *arguments, **fields) -> tuple[int, int]:
    """Units and least units of one selection."""
    rows = KERNELS.run(function, *arguments, profile=True).select(**fields).rows
    assert sum(row.requests for row in rows) == 1
    return rows[0].units, rows[0].least


# 32 floats of 4 bytes fill 4 sectors; every further stride spreads them, up to a sector each.
@pytest.mark.parametrize(("stride", "sectors"), [(0, 1), (1, 4), (2, 8), (4, 16), (8, 32), (9, 32)])
def test_profile_of_strided_reads(stride, sectors):
    x, y = np.zeros(32 * 9, np.float32), np.empty(32, np.float32)
    assert _cost("strided_read", x, simt.out(y), stride, memory="argument 0") == (
        sectors,
        4 if stride else 1,
    )


def test_profile_of_a_misaligned_row():
    x, y = np.zeros(33, np.float32)[1:], np.empty(32, np.float32)
    assert _cost("strided_read", x, simt.out(y), 1, memory="argument 0") == (5, 4)


@pytest.mark.parametrize(("megabytes", "times"), [(3, 1), (5, 2)])
def test_profile_of_a_second_read(megabytes, times):
    """A cache of 4 MB holds what is read again, or it holds nothing by the time it is."""
    x, y = np.zeros(megabytes << 18, np.float32), np.empty(32, np.float32)
    profile = KERNELS.run("read_twice", x, simt.out(y), x.size, profile=True)
    read = profile.select(direction="read")
    assert (read.sectors, read.missed_sectors) == (2 * x.nbytes // 32, times * x.nbytes // 32)
    assert profile.select(direction="write").missed_sectors == 4


def test_profile_of_vectors():
    x, y = np.zeros(128, np.float32), np.empty(128, np.float32)
    profile = KERNELS.run("vector_copy", x, simt.out(y), profile=True)
    assert (profile.sectors, profile.least_sectors, profile.passes) == (32, 32, 0)
    assert [(row.direction, row.bytes, row.requests) for row in profile.rows] == [
        ("read", 16, 1),
        ("write", 16, 1),
    ]
    assert "selftest_values.cpp" in str(profile)


# 32 banks: a stride that shares a factor with 32 folds the warp onto fewer of them.
@pytest.mark.parametrize(("stride", "passes"), [(1, 1), (2, 2), (3, 1), (8, 8), (32, 32), (33, 1)])
def test_profile_of_banks(stride, passes):
    y = np.empty(32, np.float32)
    for direction in ("read", "write"):
        cost = _cost("strided_shared", simt.out(y), stride, space="shared", direction=direction)
        assert cost == (passes, 1)


# 8 rows of 16 bytes a pass: 128 bytes apart they all start in one bank, 144 apart in eight.
@pytest.mark.parametrize(("row_bytes", "passes"), [(16, 4), (128, 32), (144, 4)])
def test_profile_of_ldmatrix(row_bytes, passes):
    y = np.empty(32, np.float32)
    cost = _cost("ldmatrix_rows", simt.out(y), row_bytes, space="shared", bytes=16)
    assert cost == (passes, 4)


# --- a run's arguments --------------------------------------------------------------------------


def test_output_must_be_written():
    x, y = np.zeros(32, np.float32), np.empty(40, np.float32)
    with pytest.raises(simt.Error, match="32 of 160 bytes, the first of them byte 128") as error:
        KERNELS.run("strided_read", x, simt.out(y), 1)
    assert [report.kind for report in error.value.reports] == ["unwritten output"]
    KERNELS.run("strided_read", x, simt.out(y, partial=True), 1)
    assert np.isnan(y[32:]).all()


def test_launch_that_cuda_refuses():
    with pytest.raises(simt.Error) as error:
        KERNELS.run("launch_of_too_many_threads", simt.out(np.empty(32, np.float32)))
    assert [report.kind for report in error.value.reports] == ["invalid launch"]


def test_arguments_that_cannot_be_run():
    x = np.zeros(64, np.float32)
    with pytest.raises(ValueError, match="contiguous"):
        KERNELS.run("strided_read", x[::2], simt.out(np.empty(32, np.float32)), 1)
    with pytest.raises(ValueError, match="overlap"):
        KERNELS.run("strided_read", x, simt.out(x[:32]), 1)
    with pytest.raises(TypeError, match="no option 'sed'"):
        KERNELS.run("strided_read", x, simt.out(np.empty(32, np.float32)), 1, sed=1)


def test_inputs_and_null_pointers():
    x, y = np.ones(32, np.float32), np.empty(32, np.float32)
    with pytest.raises(simt.Error) as error:
        KERNELS.run("strided_read", None, simt.out(y), 1)
    assert error.value.reports[0].kind == "out of bounds"
    KERNELS.run("strided_read", x, simt.out(y), 1)
    np.testing.assert_array_equal(y, x)


def test_other_threads_of_the_host_run_kernels_too():
    """Shared memory is thread-local to the host, so each of its threads has its own."""
    y = np.empty(32, np.float32)
    with ThreadPoolExecutor(1) as pool:
        for run in (lambda call: call(), lambda call: pool.submit(call).result()):
            y[:] = 0
            run(lambda: KERNELS.run("strided_shared", simt.out(y), 3))
            assert (y == 1).all()
