"""Compile Triton kernels without a GPU, and read what the machine code needs.

A cubin tells a kernel's registers, stack, shared memory and the instructions of its loop. Reading
it needs no GPU, only the tools in Triton's wheel.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ast_fast_kernels._gpu.launch import Launch

SHARED_MEMORY = {80: 166_912, 90: 232_448}
"""Bytes of shared memory that one program may have, by architecture."""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Case:
    """One kernel as it is shipped: argument types, constants and launch."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    """Type of every argument that is not a constant, such as `*bf16`, `i32`, `fp32`; a value whose
    type ends in `:16` is divisible by 16. A constant of None is an argument that is left out."""
    constants: Mapping[str, Any]
    launch: Launch
    dot_operations: int = 0
    """Multiplications and additions of one step of its loop, if that multiplies matrices."""
    is_tf32: bool = False
    """Whether those are in TF32."""
    bytes: int = 0
    """Bytes that one program reads and writes, if memory bounds it."""
    trips: int = 1
    """Steps of its loop in one program."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel needs of a multiprocessor, and what its instructions are."""

    registers: int
    stack: int
    shared: int
    instructions: Counter[str] = field(repr=False)
    """Every instruction of the kernel by its first word, such as HMMA or LDGSTS."""
    loop: Counter[str] = field(repr=False)
    """The same for its longest innermost loop; empty if it has no loop."""
    has_float64: bool = False

    @property
    def spills(self) -> int:
        """Instructions that read or write local memory."""
        return self.instructions["LDL"] + self.instructions["STL"]


def compile_case(case: Case, target: GPUTarget) -> Any:
    """Return Triton's compiled kernel of a case, from Triton's cache if that has it."""
    arguments = case.kernel.arg_names
    constants = {**case.constants, **dict(case.launch.constants)}
    signature, attributes = {}, {}
    for place, name in enumerate(arguments):
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind, _, divisibility = case.types[name].partition(":")
        signature[name] = kind
        if kind.startswith("*") or divisibility:
            attributes[(place,)] = _ALIGNED
    source = ASTSource(
        case.kernel,
        signature,
        {(arguments.index(name),): value for name, value in constants.items()},
        attributes,
    )
    options = {"num_warps": case.launch.num_warps, "num_stages": case.launch.num_stages}
    if target.backend == "cuda":
        options["enable_fp_fusion"] = True
    return triton.compile(source, target=target, options=options)


def read_resources(compiled: Any) -> Resources:
    """Read the resources of a kernel compiled for an NVIDIA GPU from its cubin."""
    cubin = compiled.asm["cubin"]
    numbers = read_usage(cubin)
    lines = _instructions(_read("nvdisasm", "-c", cubin))
    return Resources(
        registers=numbers["REG"],
        stack=numbers["STACK"],
        shared=compiled.metadata.shared,
        instructions=Counter(word for _, word, _ in lines),
        loop=Counter(word for _, word, _ in _longest_loop(lines)),
        has_float64=".f64" in compiled.asm["ptx"],
    )


def read_usage(cubin: bytes) -> dict[str, int]:
    """Read REG, STACK and SHARED of the only kernel in a cubin."""
    usage = _read("cuobjdump", "--dump-resource-usage", cubin)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}


_Line = tuple[str, str, str]
"""Label before it (or none), first word without its suffixes, whole text."""


def _instructions(code: str) -> list[_Line]:
    lines: list[_Line] = []
    label = ""
    for line in code.splitlines():
        if match := re.match(r"\s*(\.L_x_\d+):", line):
            label = match[1]
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z0-9]+)(.*)", line):
            lines.append((label, match[1], match[2]))
            label = ""
    return lines


def _longest_loop(lines: Sequence[_Line]) -> Sequence[_Line]:
    """Return the longest innermost loop: a run from a label to a branch back to it."""
    labels = {label: place for place, (label, _, _) in enumerate(lines) if label}
    loops = []
    for place, (_, word, rest) in enumerate(lines):
        if word == "BRA" and (match := re.search(r"\.L_x_\d+", rest)):
            begin = labels.get(match[0], place)
            if begin < place:
                loops.append((begin, place + 1))
    inner = [
        (begin, end)
        for begin, end in loops
        if not any(begin <= a and b <= end and (a, b) != (begin, end) for a, b in loops)
    ]
    begin, end = max(inner, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    return lines[begin:end]


def _read(tool: str, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [_TOOLS / tool, option, file.name], capture_output=True, text=True, check=True
        ).stdout
