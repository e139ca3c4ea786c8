"""What every compiled Triton kernel needs, and a model of how fast that can be, as a table.

`python -m ast_fast_kernels.testing.triton_table docs/triton.md` compiles every case and writes the
column of the installed Triton into the page; the others stay as they are. A test compiles them
again and compares. The model is arithmetic over instruction counts. It has not been checked on a
GPU, and the page says so.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from ast_fast_kernels._gpu import occupancy
from ast_fast_kernels.testing.ahead_of_time import Case, Resources, compile_case, read_resources
from ast_fast_kernels.testing.triton_cases import cases

ARCHITECTURES = (80, 90)
AMD = GPUTarget("hip", "gfx942", 64)

SCHEDULERS = 4
"""Schedulers of a multiprocessor; each starts one instruction of 32 lanes a clock."""


@dataclass(frozen=True)
class Machine:
    """A GPU as the model sees it."""

    name: str
    multiprocessors: int
    gigahertz: float
    gigabytes_a_second: float
    dot_operations_a_clock: int
    """Operations of a multiprocessor's tensor cores in half precision; half as many in TF32."""
    lanes: dict[str, int]
    """Lanes of a scheduler's units that have fewer than 32."""


MACHINES = {
    80: Machine("A100 80 GB", 108, 1.41, 2039.0, 2048, {"MUFU": 4, "FFMA": 16, "LDS": 8}),
    90: Machine("H100 SXM", 132, 1.755, 3350.0, 4096, {"MUFU": 4, "LDS": 8}),
}
"""NVIDIA's A100 and H100 data sheets and tuning guides."""

_UNITS = {
    "MUFU": "MUFU",
    "FADD": "FFMA", "FMUL": "FFMA", "FFMA": "FFMA",
    "LDS": "LDS", "STS": "LDS", "LDSM": "LDS", "STSM": "LDS", "SHFL": "LDS",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One case as compiled for one architecture."""

    name: str
    arch: int
    registers: int
    stack: int
    spills: int
    shared: int
    programs: int
    """Programs that a multiprocessor holds at once."""
    step: int
    """Instructions of a step of its loop; of the whole kernel where it has no loop."""
    barriers: int
    """Those of them at which its threads wait for each other."""
    tensor: str
    """The loop's tensor-core instructions, or none."""
    copies: int
    """Asynchronous copies (LDGSTS) in the whole kernel."""
    loop: str
    """The step's commonest instructions."""
    model: str
    has_float64: bool
    needs_tensor: bool

    @property
    def needs(self) -> str:
        """The cell of the Triton that compiled it."""
        step = f"{self.step:,} ({self.barriers})"
        return f"{self.registers} · {self.shared:,} · {self.programs} · {step}"

    @property
    def details(self) -> tuple[str, ...]:
        """The cells that the page has of its newest Triton alone."""
        return self.tensor, str(self.copies), self.loop, self.model


def model_range(case: Case, resources: Resources, arch: int) -> str:
    """Return the model's range of speeds: a step's work one after the other, to all of it at once.

    A step of the loop keeps tensor cores, special functions, shared memory, arithmetic and the
    schedulers busy, each for a number of clocks. At best the longest hides the others; at worst
    none does. Kernels that memory bounds are also limited by its speed.
    """
    machine = MACHINES[arch]
    counts = resources.loop
    if case.bytes:
        repeated = Counter({word: n * case.trips for word, n in resources.loop.items()})
        counts = resources.instructions - resources.loop + repeated
    share = case.launch.num_warps / SCHEDULERS  # of each instruction, for one scheduler
    busy = defaultdict(float, start=sum(counts.values()) * share)
    for word, count in counts.items():
        unit = _UNITS.get(word, "")
        if unit in machine.lanes:
            busy[unit] += count * share * 32 / machine.lanes[unit]
    clocks_a_second = machine.multiprocessors * machine.gigahertz * 1e9
    if case.bytes:
        best, worst = (case.bytes / clocks / 1e9 * clocks_a_second for clocks in _bounds(busy))
        worst = 1 / (1 / worst + 1 / machine.gigabytes_a_second)
        return f"{worst:,.0f}–{min(best, machine.gigabytes_a_second):,.0f} GB/s"
    rate = machine.dot_operations_a_clock / (2 if case.is_tf32 else 1)
    busy["tensor"] = case.dot_operations / rate
    best, worst = (
        case.dot_operations / clocks / 1e12 * clocks_a_second for clocks in _bounds(busy)
    )
    return f"{worst:,.0f}–{best:,.0f} TFLOP/s"


def _bounds(busy: Mapping[str, float]) -> tuple[float, float]:
    return max(busy.values()), sum(busy.values())


def row_of(case: Case, arch: int) -> Row:
    """Compile a case and read what it needs."""
    resources = read_resources(compile_case(case, GPUTarget("cuda", arch, 32)))
    loop = resources.loop or resources.instructions
    tensor = [f"{n} {word}" for word, n in sorted(loop.items()) if word in ("HMMA", "HGMMA")]
    common = sorted(loop.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
    limits = occupancy.limits_of(*divmod(arch, 10))
    needs = resources.registers, resources.shared, case.launch.num_warps
    return Row(
        name=case.name,
        arch=arch,
        registers=resources.registers,
        stack=resources.stack,
        spills=resources.spills,
        shared=resources.shared,
        programs=occupancy.resident_programs(limits, *needs),
        step=sum(loop.values()),
        barriers=loop["BAR"],
        tensor=", ".join(tensor) or "–",
        copies=resources.instructions["LDGSTS"],
        loop=", ".join(f"{n} {word}" for word, n in common),
        model=model_range(case, resources, arch),
        has_float64=resources.has_float64,
        needs_tensor=case.dot_operations > 0,
    )


def rows(processes: int = 2) -> list[Row]:
    """Compile every case for every architecture."""
    with ProcessPoolExecutor(processes) as pool:
        made: list[Row] = []
        for arch in ARCHITECTURES:
            places = range(len(list(cases(arch))))
            made += pool.map(partial(_row_at, arch), places)
    return made


def compile_for_amd(processes: int = 2) -> int:
    """Compile every case for gfx942, by the launches of the newest GPU; return how many."""
    with ProcessPoolExecutor(processes) as pool:
        places = range(len(list(cases(ARCHITECTURES[-1]))))
        return sum(pool.map(_compile_for_amd, places))


def _row_at(arch: int, place: int) -> Row:
    return row_of(list(cases(arch))[place], arch)


def _compile_for_amd(place: int) -> bool:
    case = list(cases(ARCHITECTURES[-1]))[place]
    return len(compile_case(case, AMD).asm["hsaco"]) > 0


@dataclass(frozen=True)
class Line:
    """A kernel's line of the page: what it needs by each Triton, and details of the newest."""

    needs: Mapping[str, str]
    details: tuple[str, ...]


def page(made: Iterable[Row], before: str = "", version: str = triton.__version__) -> str:
    """Return the whole page.

    Args:
        made: What was compiled; the page has these kernels alone.
        before: The page as it was. It keeps what other Tritons made of the same kernels.
        version: The Triton that compiled them.
    """
    made = list(made)
    known = read_page(before)
    versions = {version} | {other for line in known.values() for other in line.needs}
    in_order = sorted(versions, key=_as_numbers)
    parts = [_HEAD.format(versions=" and ".join(in_order), newest=in_order[-1])]
    columns = [*(f"Triton {each}" for each in in_order), *_DETAILS]
    for arch in ARCHITECTURES:
        machine = MACHINES[arch]
        parts.append(
            f"\n## sm_{arch}\n\nThe model's machine: {machine.name}, {machine.multiprocessors} "
            f"multiprocessors at {machine.gigahertz} GHz, {machine.gigabytes_a_second:,.0f} GB/s.\n"
            f"\n{_markdown('kernel', *columns)}|{'---|' * (1 + len(columns))}\n"
        )
        for row in made:
            if row.arch == arch:
                line = known.get((arch, row.name), Line({}, ("–",) * len(_DETAILS)))
                needs = {**line.needs, version: row.needs}
                details = row.details if version == in_order[-1] else line.details
                cells = (needs.get(each, "–") for each in in_order)
                parts.append(_markdown(row.name, *cells, *details))
    return "".join(parts)


def read_page(text: str) -> dict[tuple[int, str], Line]:
    """Read a page's lines by architecture and kernel; none if its columns are others."""
    lines: dict[tuple[int, str], Line] = {}
    arch, versions = 0, list[str]()
    for given in text.splitlines():
        cells = [cell.strip() for cell in given.strip("|").split("|")]
        if match := re.fullmatch(r"## sm_(\d+)", given):
            arch, versions = int(match[1]), []
        elif cells[0] == "kernel" and tuple(cells[-len(_DETAILS) :]) == _DETAILS:
            found = [re.fullmatch(r"Triton (\d\S*)", cell) for cell in cells[1 : -len(_DETAILS)]]
            versions = [match[1] for match in found if match]
        elif versions and len(cells) == 1 + len(versions) + len(_DETAILS) and cells[0] != "---":
            name, *others = cells
            needs = dict(zip(versions, others, strict=False))
            lines[arch, name] = Line(needs, tuple(others[len(versions) :]))
    return lines


def _markdown(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


_DETAILS = ("tensor cores, a step", "asynchronous copies", "a step's instructions", "model")

_HEAD = """# The Triton kernels, compiled

Every kernel in every form that is shipped, compiled ahead of time by Triton {versions} and read
with its own `cuobjdump` and `nvdisasm`. On any machine,
`python -m ast_fast_kernels.testing.triton_table docs/triton.md` writes the installed Triton's
column; a test compiles everything again and compares. By Triton {newest} no kernel has a stack or
spills a register (by 3.6.0, frames of a small FFT keep one or two of theirs in memory, outside any
loop), and none computes in float64; asynchronous copies and tensor cores are asserted where there
is a matrix product.

A Triton's column: registers of a thread · bytes of shared memory · programs that a multiprocessor
holds at once · instructions of a step of the loop (barriers among them). A kernel without a loop is
one step. The columns after it are of Triton {newest}.

**The last column is a model, not a measurement.** It counts the clocks for which a step of the loop
keeps each unit busy (tensor cores, special functions, shared memory, arithmetic, the schedulers):
from all of them one after the other, to the longest hiding the rest. Latency, launch and
occupancy are not in it. No figure measured on a GPU is on record yet.
"""


def main(path: str) -> None:
    """Write the page, or the installed Triton's part of one that is there."""
    file = Path(path)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text(page(rows(), before), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
