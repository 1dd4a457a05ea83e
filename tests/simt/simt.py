"""Runs CUDA kernels on the CPU, thread by thread, and raises what is wrong with them.

::

    module = simt.load("cuda_probe")                  # tests/simt/bindings/cuda_probe.cpp
    module.run("cuda_probe", x, simt.out(y), n, 4, 256, seed=1)

README.md tells how kernels and bindings are written, what is found and how the reports read.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os
import re
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simt_build

# Files that only pass an access on: a report names the line that called them.
WRAPPERS = ("platform.cuh", "ptx.cuh")
LEFT_OUT = "SIMT_LEFT_OUT"  # of the environment: the number of a mutant, see simt_mutate.py


@dataclass(frozen=True)
class Report:
    kind: str  # "data race", "out of bounds", ...: README.md lists them
    file: str  # without folders
    line: int
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{self.kind} at {place}: {self.text}"


class Error(AssertionError):
    """Kernels did what they must not; .reports says what and where."""

    def __init__(self, reports: Sequence[Report]):
        super().__init__("\n".join(map(str, reports)))
        self.reports = list(reports)


# --- arguments ------------------------------------------------------------------------------------


class Role(enum.IntEnum):
    """As simt_add_buffer numbers them."""

    IN = 0
    OUT = 1
    INOUT = 2


@dataclass(frozen=True)
class _Buffer:
    array: Any  # torch tensor on the CPU or numpy array
    role: Role
    partial: bool = False

    def span(self) -> tuple[int, int]:
        """Address and bytes."""
        if hasattr(self.array, "data_ptr"):
            if not _is_dense(self.array) or self.array.device.type != "cpu":
                raise ValueError("simt: tensors must be contiguous (memory_of) and on the CPU")
            return self.array.data_ptr(), self.array.numel() * self.array.element_size()
        if not self.array.flags.c_contiguous:
            raise ValueError("simt: arrays must be contiguous")
        return self.array.ctypes.data, self.array.nbytes

    def offset(self) -> int:
        """Bytes from the start of the memory that this is a view of."""
        if hasattr(self.array, "data_ptr"):
            return self.array.storage_offset() * self.array.element_size()
        base = self.array.base
        return self.array.ctypes.data - base.ctypes.data if hasattr(base, "ctypes") else 0


def _is_dense(tensor: Any) -> bool:
    import torch

    if tensor.is_contiguous():
        return True
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


class _DeviceMemory:
    """Copies of the buffers of a run, far from each other, aligned as the device's allocations are.

    A stray access so ends in no buffer, and alignment does not depend on the host's allocator.
    """

    ALIGNMENT = 256
    GUARD = 1 << 16  # never touched, so it costs addresses only

    def __init__(self, buffers: Sequence[_Buffer]):
        self._buffers = buffers
        offsets = []
        end = self.GUARD
        for buffer in buffers:
            start = -(-end // self.ALIGNMENT) * self.ALIGNMENT + buffer.offset() % self.ALIGNMENT
            offsets.append(start)
            end = start + buffer.span()[1] + self.GUARD
        self._map = mmap.mmap(-1, end)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.addresses = [base + offset for offset in offsets]
        for buffer, address in zip(buffers, self.addresses, strict=True):
            host, size = buffer.span()
            if buffer.role is Role.OUT:
                ctypes.memset(address, 0xFF, size)  # NaN in every floating-point type
            else:
                ctypes.memmove(address, host, size)

    def copy_back(self) -> None:
        for buffer, address in zip(self._buffers, self.addresses, strict=True):
            if buffer.role is not Role.IN:
                ctypes.memmove(buffer.span()[0], address, buffer.span()[1])


def out(array: Any, partial: bool = False) -> _Buffer:
    """An output: holds nothing at first, and every byte must be written unless ``partial``."""
    return _Buffer(array, Role.OUT, partial)


def inout(array: Any) -> _Buffer:
    """Read and written; what it holds is kept."""
    return _Buffer(array, Role.INOUT)


def memory_of(tensor: Any) -> Any:
    """What a torch tensor of any strides lies in, from its first element to its last, as one
    dimension: a kernel takes the strides beside it."""
    reach = [(size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided((sum(reach) + 1 if tensor.numel() else 0,), (1,))


def _as_buffer(argument: Any) -> _Buffer | None:
    if isinstance(argument, _Buffer):
        return argument
    is_array = hasattr(argument, "data_ptr") or hasattr(argument, "ctypes")  # torch, numpy
    return _Buffer(argument, Role.IN) if is_array else None


def _refuse_overlap(buffers: Sequence[_Buffer]) -> None:
    """Copies cannot stand for two buffers of the same memory, one of which is written."""
    spans = [buffer.span() for buffer in buffers]
    for i, buffer in enumerate(buffers):
        address, size = spans[i]
        for other, (start, other_size) in zip(buffers[:i], spans, strict=False):
            written = Role.IN not in (buffer.role, other.role) or buffer.role is not other.role
            if written and address < start + other_size and start < address + size:
                raise ValueError("simt: arguments overlap; pass one buffer, by inout")


def _c_value(argument: Any) -> Any:
    """Integers go in registers of 64 bits, whatever their type in the binding."""
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if argument is None:
        return ctypes.c_void_p(None)
    return ctypes.c_int64(int(argument))


# --- modules --------------------------------------------------------------------------------------


class Module:
    """A binding's library. One run at a time: the emulated machine is one."""

    _stacks: int | None = None  # of the threads, the same for all modules
    _one_at_a_time = threading.Lock()

    def __init__(self, path: Path):
        self.path = path
        self._library = ctypes.CDLL(str(path))
        for name in ("simt_reports", "simt_unwritten", "simt_profile"):
            getattr(self._library, name).restype = ctypes.c_char_p
        for name in ("simt_access_count", "simt_thread_count"):
            getattr(self._library, name).restype = ctypes.c_uint64
        self._library.simt_share_stacks.restype = ctypes.c_void_p
        with Module._one_at_a_time:
            Module._stacks = self._library.simt_share_stacks(ctypes.c_void_p(Module._stacks))
        self._places: dict[str, tuple[str, int]] = {}
        self.left_out = int(os.environ.get(LEFT_OUT, 0))  # a synchronisation point of a mutant

    def run(self, function: str, *arguments: Any, profile: bool = False, **options: int) -> Profile:
        """Calls a binding and raises Error if its kernels did anything wrong.

        Args:
            function: name of a function marked SIMT_EXPORT.
            arguments: tensors and arrays (read-only unless wrapped by out or inout), integers,
                floats (``float`` in the binding), None for a null pointer.
            profile: count sectors and bank passes.
            options: ``seed``: 0 runs blocks and threads in order, others in an order drawn from
                it; ``preempt``: switch threads also at one access in so many; ``limit``: accesses
                of a launch after which it is taken for endless.
        Returns:
            The profile, without rows if it was not asked for.
        """
        library = self._library
        library.simt_reset()
        options |= {"profile": int(profile), "left_out": self.left_out}
        for name, value in options.items():
            if not library.simt_set_option(name.encode(), ctypes.c_longlong(value)):
                raise TypeError(f"simt: there is no option {name!r}")
        buffers = {i: b for i, a in enumerate(arguments) if (b := _as_buffer(a)) is not None}
        _refuse_overlap(list(buffers.values()))
        memory = _DeviceMemory(list(buffers.values()))
        values = [None if i in buffers else _c_value(a) for i, a in enumerate(arguments)]
        for (i, buffer), address in zip(buffers.items(), memory.addresses, strict=True):
            name, size = f"argument {i}".encode(), ctypes.c_size_t(buffer.span()[1])
            values[i] = ctypes.c_void_p(address)
            library.simt_add_buffer(name, values[i], size, int(buffer.role))
        status = getattr(library, function)(*values)

        memory.copy_back()
        partial = {i for i, buffer in buffers.items() if buffer.partial}
        reports = self._reports() or self._unwritten(partial)
        library.simt_clear_buffers()
        if reports:
            raise Error(reports)
        if status != 0:
            raise RuntimeError(f"simt: {function} returned {status}")
        return Profile(self._profile_rows() if profile else ())

    @property
    def accesses(self) -> int:
        """Accesses to memory in the last run, each of them checked."""
        return self._library.simt_access_count()

    @property
    def threads(self) -> int:
        return self._library.simt_thread_count()

    # --- places in the source ---

    def _locate(self, text: str) -> None:
        """Looks up all sites in a text at once."""
        sites = sorted(set(re.findall(r"<pc:([0-9a-f]+)>", text)) - self._places.keys())
        if not sites:
            return
        # A return address belongs to the line of the call before it.
        addresses = [f"{int(site, 16) - 1:x}" for site in sites]
        command = ["addr2line", "-a", "-i", "-e", str(self.path), *addresses]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        frames = re.split(r"^0x[0-9a-f]+\n", done.stdout, flags=re.MULTILINE)[1:]
        for site, inlined in zip(sites, frames, strict=True):
            self._places[site] = _kernel_line(inlined.splitlines())

    def _place(self, text: str) -> tuple[str, int]:
        """A report's place: a site, ``file:line``, or a word."""
        if site := re.fullmatch(r"<pc:([0-9a-f]+)>", text):
            return self._places[site.group(1)]
        file, _, line = text.partition(":")
        return file, int(line or 0)

    def _readable(self, text: str) -> str:
        return re.sub(
            r"<pc:([0-9a-f]+)>", lambda site: "{}:{}".format(*self._places[site[1]]), text
        )

    # --- results ---

    def _reports(self) -> list[Report]:
        text = self._library.simt_reports().decode()
        self._locate(text)
        lines = [line.split("\t") for line in text.splitlines()]
        return [Report(kind, *self._place(at), self._readable(what)) for kind, at, what in lines]

    def _unwritten(self, partial: set[int]) -> list[Report]:
        reports = []
        for line in self._library.simt_unwritten().decode().splitlines():
            name, _, missing = line.partition(": ")
            if int(name.split()[1]) not in partial:
                reports.append(Report("unwritten output", name, 0, missing))
        return reports

    def _profile_rows(self) -> list[Row]:
        text = self._library.simt_profile().decode()
        self._locate(text)
        rows: dict[tuple, Row] = {}
        for line in text.splitlines():
            at, memory, space, direction, size, *counts = line.split("\t")
            row = Row(*self._place(at), memory, space, direction, int(size), *map(int, counts))
            key = (row.file, row.line, memory, direction, row.bytes)
            rows[key] = rows[key].plus(row) if key in rows else row
        return [row for _, row in sorted(rows.items())]


def _kernel_line(frames: Sequence[str]) -> tuple[str, int]:
    """The innermost frame, the first one, that is not a wrapper's."""
    place = ("?", 0)
    for frame in frames:
        path, _, line = frame.split(" ")[0].rpartition(":")
        file = Path(path)
        place = (file.name, int(line) if line.isdigit() else 0)
        wrapper = file.name in WRAPPERS or file.name.startswith("cuda_")
        emulator = simt_build.INCLUDE in file.resolve().parents
        if not (emulator or ((wrapper and file.suffix in (".h", ".hpp")) or file.name in WRAPPERS)):
            break
    return place


def load(binding: str, defines: Sequence[str] = ()) -> Module:
    """The module of tests/simt/bindings/<binding>.cpp; skips the test where it cannot be built."""
    import pytest

    try:
        source = simt_build.BINDINGS / f"{binding}.cpp"
        return Module(simt_build.build(source, defines))
    except simt_build.Unavailable as reason:
        pytest.skip(str(reason), allow_module_level=True)


# --- profile --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Requests of warps from one line to one memory; a model, not a measurement."""

    file: str
    line: int
    memory: str  # "argument 0", "shared 'tile'", "dynamic shared memory"
    space: str  # "global" or "shared"
    direction: str  # "read" or "write"
    bytes: int  # of one lane's access
    requests: int
    lanes: int  # summed over the requests
    units: int  # sectors of 32 bytes in global memory, passes over the banks in shared memory
    least: int  # what the same bytes need at least
    missed: int  # units that a cache of 4 MB did not hold; 0 in shared memory

    def plus(self, other: Row) -> Row:
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("requests", "lanes", "units", "least", "missed")
        }
        return Row(**{**self.__dict__, **sums})


@dataclass(frozen=True)
class Profile:
    rows: Sequence[Row]

    def select(self, **fields: Any) -> Profile:
        """The rows with these values, e.g. ``select(space="global", direction="read")``."""
        wanted = fields.items()
        return Profile([r for r in self.rows if all(getattr(r, k) == v for k, v in wanted)])

    @property
    def sectors(self) -> int:
        return sum(row.units for row in self.rows if row.space == "global")

    @property
    def least_sectors(self) -> int:
        return sum(row.least for row in self.rows if row.space == "global")

    @property
    def missed_sectors(self) -> int:
        """What goes on to the device's memory: a sector written in parts, and what is read again
        soon, counts once."""
        return sum(row.missed for row in self.rows if row.space == "global")

    @property
    def passes(self) -> int:
        return sum(row.units for row in self.rows if row.space == "shared")

    @property
    def least_passes(self) -> int:
        return sum(row.least for row in self.rows if row.space == "shared")

    def __str__(self) -> str:
        head = f"{'place':28} {'memory':24} {'access':10} {'requests':>9} {'lanes':>6} "
        lines = [head + f"{'units':>7} {'least':>7}   (lanes, sectors or bank passes a request)"]
        for r in self.rows:
            place, access = f"{r.file}:{r.line}", f"{r.direction} {r.bytes} B"
            mean = [value / r.requests for value in (r.lanes, r.units, r.least)]
            lines.append(
                f"{place:28} {r.memory:24} {access:10} {r.requests:9} {mean[0]:6.1f} "
                f"{mean[1]:7.2f} {mean[2]:7.2f}"
            )
        return "\n".join(lines)
