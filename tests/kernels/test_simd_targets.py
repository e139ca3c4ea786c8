"""The kernel on other processors: what its assembly holds, and that it runs without their best."""

from __future__ import annotations

import os
import re
import tempfile
from functools import cache

import llvmlite.binding as llvm
import pytest

from ast_fast_kernels._cpu.products import tile_rows
from ast_fast_kernels.testing.processes import run_program

TARGETS = {  # triple, processor, lanes, its multiply-add on whole vectors
    "avx512": ("x86_64-unknown-linux-gnu", "skylake-avx512", 16, r"vf[n]?m(add|sub)\w+ps\s.*zmm"),
    "avx2": ("x86_64-unknown-linux-gnu", "haswell", 8, r"vf[n]?m(add|sub)\w+ps\s.*ymm"),
    "sse2": ("x86_64-unknown-linux-gnu", "x86-64", 4, r"mulps\s.*xmm"),
    "neon": ("aarch64-unknown-linux-gnu", "neoverse-n1", 4, r"fml[as]\s+v\d+\.4s"),
}

DOT = r"vdpbf16ps\s.*zmm"
DOTTED = {
    name: ("x86_64-unknown-linux-gnu", name, 16, DOT) for name in ("znver4", "sapphirerapids")
}

PACKED = {  # arithmetic on whole vectors
    "avx512": r"v(mul|add|sub|fn?m\w+)ps\s.*zmm",
    "avx2": r"v(mul|add|sub|fn?m\w+)ps\s.*ymm",
    "sse2": r"(mul|add|sub)ps\s.*xmm",
    "neon": r"f(mla|mls|mul|add|sub|neg)\s+v\d+\.4s",
}
SCALAR = r"v?(mul|add|sub|div|sqrt)ss\b|vf\w+ss\b|f(mul|add|sub|div|n?madd|n?msub|sqrt)\ts\d"
STACK = r"v?mov[au]ps\s.*\(%r[sb]p|(ld|st)u?[rp]\tq\d+,.*\[sp"
"""Vectors that go to the stack or come from it, for lack of registers."""

MOST_STACK = {"avx512": 63, "avx2": 260, "sse2": 260, "neon": 150}
"""Of those, the most for an FFT of 512 points, which has 650 to 950 operations on vectors: a row is
16 complex vectors, and there are 32 registers or 16. There are 63, 235, 207 and 98 where Numba's
passes prepare the code for Haswell or a later processor, 49, 216, 197 and 97 for Zen 1."""

SLOT = re.compile(r"-?\d*\(%r[sb]p\)|\[sp\b[^\]]*\]")
STORE = re.compile(r"st|.*\(%r[sb]p\)$")

MOST_SPILLS = {"avx512": 55, "avx2": 200, "sse2": 175, "neon": 100}
"""Of those, the most that are no constants: 37, 179, 153, 80 there; 49, 170 and 149 for Zen 1."""

EMIT = """
import sys
from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels.fbank.numba_kernel import compiled_worker
lanes = int(sys.argv[1])
worker = compiled_worker(512, 25, lanes, int(lanes == 16), 0, 0, 0, source_digest())
print(worker.inspect_llvm())
"""

RUN = """
import numpy as np, torch
from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels._cpu import simd
wave = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
for config in (FbankConfig(), FbankConfig.preset("whisper"), FbankConfig.preset("nemo")):
    config = config.replace(use_log_fbank=False)
    ours = fbank(wave, config, backend="numba").double()
    exact = fbank(wave.double(), config, backend="reference")
    assert (ours - exact).norm() <= 1e-6 * exact.norm(), config
print(simd.host_lanes())
"""


EMIT_PRODUCT = """
import sys
from numba import njit, types
from ast_fast_kernels._cpu.products import product
lanes = int(sys.argv[1])
@njit(error_model="numpy")
def run(left, row, term, right, width, result, result_row, rows, terms):
    product(left, row, term, right, width, result, result_row, rows, terms, 2, lanes)
run.compile((types.intp,) * 9)
(llvm_ir,) = run.inspect_llvm().values()
print(llvm_ir)
"""


EMIT_PAIRS = """
import sys
from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels._cpu.simd import has_bfloat16_dots
from ast_fast_kernels._cpu.team import compile_worker
from ast_fast_kernels.attention import numba_cpu, numba_pairs
assert has_bfloat16_dots()
assert numba_cpu.bfloat16_products() == numba_cpu.NATIVE
worker = compile_worker(numba_pairs.build_backward(int(sys.argv[1]), 64, 1, 4, source_digest()))
print(worker.inspect_llvm())
"""

WITH_DOTS = {  # for Numba, which would else compile for this machine
    "NUMBA_CPU_NAME": "cooperlake",
    "NUMBA_CPU_FEATURES": "+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512bf16",
}


@cache
def kernel_ir(program: str, lanes: int) -> str:
    features = WITH_DOTS if program == EMIT_PAIRS else {}
    with tempfile.TemporaryDirectory() as empty:  # what comes from the cache has no text
        return run_program(program, str(lanes), NUMBA_CACHE_DIR=empty, **features)


@cache
def assembly(target: str, program: str = EMIT) -> str:
    triple, processor, lanes, _ = {**TARGETS, **DOTTED}[target]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    text = re.sub(r'target (triple|datalayout) = ".*"', "", kernel_ir(program, lanes))
    module = llvm.parse_assembly(text)
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, opt=3)
    module.triple, module.data_layout = triple, str(machine.target_data)
    return machine.emit_assembly(module)


@pytest.mark.parametrize("target", TARGETS)
def test_transforms_are_vector_code(target: str) -> None:
    *_, instruction = TARGETS[target]
    # Columns and rows hold 166 to 237 multiply-adds, beside sums and products; every pass would
    # lose them at once.
    assert len(re.findall(instruction, assembly(target))) >= 150


def transform(target: str) -> list[str]:
    """Return the instructions and labels of the function that does most arithmetic."""
    text = assembly(target)
    names = re.findall(r"^\s*\.type\s+(\S+),[@%]function", text, re.MULTILINE)
    bodies: dict[str, list[str]] = {name: [] for name in names}
    body: list[str] = []
    for line in text.splitlines():
        body = bodies.get(line.partition(":")[0], body)
        if re.match(r"\t[a-z]|\.LBB", line):
            body.append(line.strip())
    return max(bodies.values(), key=lambda body: count(PACKED[target], body))


def count(pattern: str, body: list[str]) -> int:
    return sum(re.match(pattern, instruction) is not None for instruction in body)


def spills(body: list[str]) -> list[str]:
    """Return the moves of vectors to the stack and from it, without those of constants.

    What is stored before the first label alone is a constant: it is read from there in loops as it
    would be from the program's own data, and it depends on Numba's host how many are.
    """
    begin = next(i for i, line in enumerate(body) if line.startswith(".LBB"))
    moves = [(i, line) for i, line in enumerate(body) if re.match(STACK, line)]
    changed = {slot(line) for i, line in moves if i > begin and STORE.match(line)}
    return [line for i, line in moves if i > begin and slot(line) in changed]


def slot(move: str) -> str:
    found = SLOT.search(move)
    assert found, move
    return found[0]


@pytest.mark.parametrize("target", TARGETS)
def test_transforms_have_no_scalar_arithmetic_and_few_spills(target: str) -> None:
    body = transform(target)
    assert count(PACKED[target], body) >= 600
    assert count(SCALAR, body) == 0
    assert count(STACK, body) <= MOST_STACK[target]
    assert len(spills(body)) <= MOST_SPILLS[target]


def test_a_constant_on_the_stack_is_no_spill() -> None:
    body = ["vmovaps\t%zmm0, 64(%rsp)", "vmovaps\t%zmm1, (%rsp)", ".LBB1_1:"]
    body += ["vmovaps\t64(%rsp), %zmm2", "vmovaps\t%zmm3, (%rsp)", "vmovaps\t(%rsp), %zmm4"]
    assert spills(body) == body[-2:]
    body = ["stp\tq0, q1, [sp, #32]", "str\tq2, [sp]", ".LBB1_1:", "ldr\tq2, [sp]"]
    assert spills(body) == []
    assert spills([*body, "str\tq2, [sp]"]) == [body[-1], "str\tq2, [sp]"]


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_calls_a_library_for_each_lane(target: str) -> None:
    assert not re.findall(r"\b(fmaf|fma|logf|sqrtf)\b", assembly(target))


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "sse2"])
def test_a_product_s_sums_stay_in_registers(target: str) -> None:
    _, _, lanes, multiply_add = TARGETS[target]
    blocks = re.split(r"^\.LBB\S*:", assembly(target, EMIT_PRODUCT), flags=re.MULTILINE)
    of_tile = 2 * tile_rows(lanes)[0]  # two vectors a row
    loops = [
        block for block in blocks if len(re.findall(rf"^\s+{multiply_add}", block, re.M)) == of_tile
    ]
    assert loops
    for loop in loops:
        assert not re.findall(STACK, loop)


@pytest.mark.parametrize("target", DOTTED)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs an x86-64 processor")
def test_attention_of_bfloat16_is_by_the_machine_s_dot_products(target: str) -> None:
    blocks = re.split(r"^\.LBB\S*:", assembly(target, EMIT_PAIRS), flags=re.MULTILINE)
    counts = [len(re.findall(rf"^\s+{DOT}", block, re.MULTILINE)) for block in blocks]
    of_tile = 2 * tile_rows(16)[0]  # two vectors a row
    # Scores and their weights' gradients, then the gradients of queries, keys and values.
    loops = [block for block, count in zip(blocks, counts, strict=True) if count == of_tile]
    assert len(loops) >= 5
    for loop in loops:
        assert not re.findall(STACK, loop)
    assert re.search(r"vcvtneps2bf16\s", assembly(target, EMIT_PAIRS))


@pytest.mark.parametrize(
    ("processor", "features", "lanes"),
    [
        ("haswell", "+avx,+avx2,+fma,+sse4.2", 8),
        ("x86-64", "+sse2", 4),
    ],
    ids=["avx2", "sse2-only"],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs an x86-64 processor")
def test_a_lesser_processor_runs_the_kernel(
    processor: str, features: str, lanes: int, tmp_path
) -> None:
    printed = run_program(
        RUN,
        NUMBA_CPU_NAME=processor,
        NUMBA_CPU_FEATURES=features,
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert int(printed) == lanes
