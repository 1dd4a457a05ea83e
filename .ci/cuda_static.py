"""Asks what nvcc made of the CUDA kernels, on machines that cannot run them.

usage: cuda_static.py archs | check BINARY | write BINARY
    archs   print the TORCH_CUDA_ARCH_LIST of the build that has to be checked
    check   BINARY, a library or object with the kernels, by the disassembler that comes with triton
    write   the table of resources anew as well, from a build for all architectures

No kernel may have a stack or local memory, where spilled registers would go. Each must have the
instructions that it was written for. None may take more registers or shared memory than
cuda_resources.csv says, which holds the most of all instances of a template, as one version of
nvcc made them; others are not compared with it.

The table's first line tells what it was made from: that nvcc, and the digest of the sources and of
the flags. What has not changed since compiles to the same, so one architecture is enough then.
"""

import csv
import functools
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))
import toolchain  # noqa: E402

TABLE = Path(__file__).with_name("cuda_resources.csv")
FIELDS = ("kernel", "arch", "instances", "registers", "shared_bytes")

# Of every instance: vectors of 16 bytes, and one base-2 exponential for an exponential.
EX2, LOAD, STORE = "MUFU.EX2", "LDG.E.128", "STG.E.128"
INSTRUCTIONS = {
    "cross_entropy_forward_rows_kernel": (LOAD, STORE, EX2),
    "cross_entropy_backward_rows_kernel": (LOAD, STORE, EX2),
    "cross_entropy_staged_kernel": (LOAD, STORE, EX2),
    "conv_epilogue_forward_kernel": (LOAD, STORE),
    "conv_epilogue_backward_kernel": (LOAD, STORE),
    "conv_mma_kernel": ("HMMA", "LDSM", "LDGSTS.E.BYPASS.128"),
    "conv_mma_few_kernel": ("HMMA",),
    "conv_simt_kernel": ("FFMA",),
    "conv_backward_weight_mma_kernel": ("HMMA", "LDGSTS.E.BYPASS.128"),
    "conv_backward_weight_simt_kernel": ("FFMA",),
}


class Resources(NamedTuple):
    registers: int
    stack_bytes: int
    shared_bytes: int
    local_bytes: int


@functools.cache
def kernel_of(symbol: str) -> str:
    """A mangled name without namespaces and template arguments."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    return re.search(r"(\w+)(<.*)?\(", name.strip()).group(1)


def resources_of(binary: str) -> dict[tuple[str, str], Resources]:
    """By symbol and architecture."""
    found = {}
    for part in disassembled(binary, "-res-usage").split("arch = ")[1:]:
        arch = part.split(maxsplit=1)[0]
        for symbol, numbers in re.findall(
            r"Function (\w+):\s+REG:(\d+ STACK:\d+ SHARED:\d+ LOCAL:\d+)", part
        ):
            found[symbol, arch] = Resources(*map(int, re.findall(r"\d+", numbers)))
    return found


def table_of(found: dict[tuple[str, str], Resources]) -> list[dict]:
    rows = {}
    for (symbol, arch), used in found.items():
        key = kernel_of(symbol), arch
        row = rows.setdefault(key, dict(zip(FIELDS, (*key, 0, 0, 0), strict=True)))
        row["instances"] += 1
        for field in ("registers", "shared_bytes"):
            row[field] = max(row[field], getattr(used, field))
    return [rows[key] for key in sorted(rows)]


def disassembled(binary: str, *options: str) -> str:
    triton = importlib.util.find_spec("triton")
    beside = triton and Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    program = str(beside) if beside and beside.exists() else "cuobjdump"
    command = [program, *options, binary]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions_missing(binary: str, arch: str) -> list[str]:
    sass = disassembled(binary, "-sass", "-arch", arch)
    missing, checked = [], set()
    for part in sass.split("Function : ")[1:]:
        symbol = part.split(maxsplit=1)[0]
        kernel = kernel_of(symbol)
        checked.add(kernel)
        wanted = INSTRUCTIONS.get(kernel, ())
        missing += [f"{symbol} for {arch}: no {name}" for name in wanted if name not in part]
    return missing + [f"{arch}: no {kernel}" for kernel in INSTRUCTIONS if kernel not in checked]


def included(csrc: Path, names: set[str]) -> list[str]:
    """These files and all that they include of ours, by way of others, too."""
    found, new = set(), names
    while new:
        found |= new
        quoted = {
            name
            for path in new
            for name in re.findall(r'^#include "(.*)"', (csrc / path).read_text(), re.MULTILINE)
        }
        new = quoted - found
    return sorted(found)


def made_from() -> list[str]:
    """The version of nvcc; and a digest of what it is given for all architectures."""
    toolkit = toolchain.find_toolkit(os.environ)
    every_arch = toolchain.cuda_arch_list(toolkit, (), {})
    flags = toolchain.nvcc_flags(toolchain.CudaDecision(True, "", toolkit, every_arch))
    digest = hashlib.sha256(" ".join(flags).encode())
    csrc = ROOT / "csrc"
    names = {str(path.relative_to(csrc)) for path in csrc.glob("cuda/*")}
    for name in included(csrc, names):
        content = (csrc / name).read_bytes()
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)
    return [f"nvcc {toolkit.version}", digest.hexdigest()]


def recorded() -> tuple[list[str], dict[tuple[str, str], dict]]:
    """What the table was made from, and its rows by kernel and architecture."""
    with TABLE.open(newline="") as file:
        origin = file.readline().removeprefix("# ").strip().split(", sources ")
        return origin, {(row["kernel"], row["arch"]): row for row in csv.DictReader(file)}


def compare(table: list[dict], expected: dict[tuple[str, str], dict]) -> list[str]:
    problems = []
    for row in table:
        name = f"{row['kernel']} for {row['arch']}"
        known = expected.pop((row["kernel"], row["arch"]), None)
        if known is None:
            problems.append(f"{name} is not in {TABLE.name}")
            continue
        if row["instances"] != int(known["instances"]):
            problems.append(f"{name}: {row['instances']} instances, not {known['instances']}")
        for field in ("registers", "shared_bytes"):
            if row[field] > int(known[field]):
                problems.append(f"{name}: {field} {row[field]}, more than {known[field]}")
    return problems + [f"{kernel} for {arch} is gone" for kernel, arch in expected]


def archs_to_build() -> str:
    """All, unless the table is of these sources and this nvcc; then the oldest."""
    major, minor = min(toolchain.DEFAULT_ARCHS)
    return f"{major}.{minor}" if recorded()[0] == made_from() else ""


def check(binary: str, write: bool) -> None:
    found = resources_of(binary)
    assert found, f"{binary} holds no kernel"
    problems = [
        f"{symbol} for {arch}: {used.stack_bytes} bytes of stack, {used.local_bytes} local"
        for (symbol, arch), used in found.items()
        if used.stack_bytes or used.local_bytes
    ]
    archs = sorted({arch for _, arch in found})
    table, now = table_of(found), made_from()
    if write:
        if len(archs) < len(toolchain.DEFAULT_ARCHS):
            sys.exit(f"the table is of all architectures, {binary} is for {', '.join(archs)}")
        with TABLE.open("w", newline="") as file:
            file.write(f"# {', sources '.join(now)}\n")
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    then, rows = recorded()
    if then == now:
        rows = {key: row for key, row in rows.items() if key[1] in archs}
    if then[0] == now[0]:
        problems += compare(table, rows)
    else:
        print(f"{TABLE.name} is of another nvcc")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for missing in pool.map(lambda arch: instructions_missing(binary, arch), archs):
            problems += missing
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(found)} kernels for {', '.join(archs)} are as they should be")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["archs"]:
            print(archs_to_build())
        case ["check" | "write" as command, binary]:
            check(binary, command == "write")
        case _:
            sys.exit(__doc__)
