"""What every compiled Triton kernel needs, and a model of how fast that can be, as a table.

`python -m ast_fast_kernels.testing.triton_table docs/triton.md` compiles every case and writes the
page; a test compiles them again and compares. The model is arithmetic over instruction counts. It
has not been checked on a GPU, and the page says so.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

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
    tensor: str
    """The loop's tensor-core instructions, or none."""
    copies: int
    """Asynchronous copies (LDGSTS) in the whole kernel."""
    loop: str
    """The loop's commonest instructions; the whole kernel's where it has no loop."""
    model: str
    has_float64: bool
    needs_tensor: bool

    def markdown(self) -> str:
        """Return the row of the table."""
        cells = (
            self.name, self.registers, f"{self.shared:,}", self.tensor, self.copies, self.loop,
            self.model,
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


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
    return Row(
        name=case.name,
        arch=arch,
        registers=resources.registers,
        stack=resources.stack,
        spills=resources.spills,
        shared=resources.shared,
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


def page(made: Iterable[Row]) -> str:
    """Return the whole page."""
    made = list(made)
    parts = [_HEAD.format(version=triton.__version__)]
    for arch in ARCHITECTURES:
        machine = MACHINES[arch]
        parts.append(
            f"\n## sm_{arch}\n\nThe model's machine: {machine.name}, {machine.multiprocessors} "
            f"multiprocessors at {machine.gigahertz} GHz, {machine.gigabytes_a_second:,.0f} GB/s.\n"
            "\n| kernel | registers | shared memory | tensor cores, a step | asynchronous copies | "
            "a step's instructions | model |\n|---|---|---|---|---|---|---|\n"
        )
        parts += [row.markdown() + "\n" for row in made if row.arch == arch]
    return "".join(parts)


_HEAD = """# The Triton kernels, compiled

Every kernel in every form that is shipped, compiled ahead of time by Triton {version} and read with
its own `cuobjdump` and `nvdisasm`: `python -m ast_fast_kernels.testing.triton_table docs/triton.md`
writes this page on any machine, a test compiles everything again and compares. No kernel here has a
stack, spills a register or computes in float64; asynchronous copies and tensor cores are asserted
where there is a matrix product.

**The last column is a model, not a measurement.** It counts the clocks for which a step of the loop
keeps each unit busy (tensor cores, special functions, shared memory, arithmetic, the schedulers):
from all of them one after the other, to the longest hiding the rest. Latency, launch and
occupancy are not in it. No figure measured on a GPU is on record yet.
"""


def main(path: str) -> None:
    """Write the page."""
    Path(path).write_text(page(rows()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
