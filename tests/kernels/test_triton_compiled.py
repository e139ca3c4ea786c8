"""Every Triton kernel in every shipped form, compiled ahead of time for GPUs that are not here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ast_fast_kernels.testing.processes import run_program

PAGE = Path(__file__).parents[2] / "docs" / "triton.md"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(INTERPRETED, reason="needs kernels that are not interpreted"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list]:
    """All of them, compiled anew: a warm cache would hide what a change does."""
    from ast_fast_kernels.testing import triton_table

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield triton_table.rows()


def test_nothing_spills(rows: list) -> None:
    bad = [(row.name, row.arch) for row in rows if row.stack or row.spills]
    assert not bad


def test_nothing_computes_in_float64(rows: list) -> None:
    assert not [(row.name, row.arch) for row in rows if row.has_float64]


def test_products_run_on_tensor_cores_with_asynchronous_copies(rows: list) -> None:
    products = [row for row in rows if row.needs_tensor]
    assert {row.arch for row in products} == {80, 90}
    for row in products:
        instruction = "HGMMA" if row.arch == 90 else "HMMA"
        assert re.search(rf"\b\d+ {instruction}\b", row.tensor), row
        assert row.copies > 0, row


def test_products_of_an_sm_90_loop_run_beside_other_work(rows: list) -> None:
    """Where ptxas serialises HGMMA, each has an arrival and a wait of its own."""
    from triton.backends.compiler import GPUTarget

    from ast_fast_kernels.testing.ahead_of_time import compile_case, read_resources
    from ast_fast_kernels.testing.triton_cases import cases

    target, serialised, products = GPUTarget("cuda", 90, 32), [], 0
    for case in cases(90):
        if case.dot_operations:
            loop = read_resources(compile_case(case, target)).loop
            products += loop["HGMMA"]
            if loop["WARPGROUP"] >= 2 * loop["HGMMA"]:
                serialised.append(case.name)
    assert products > 0
    assert not serialised


def test_shared_memory_fits(rows: list) -> None:
    from ast_fast_kernels.testing.ahead_of_time import SHARED_MEMORY

    assert not [row for row in rows if row.shared > SHARED_MEMORY[row.arch]]


def test_programs_that_go_over_rows_fit_at_once(rows: list) -> None:
    from ast_fast_kernels._gpu.launch import RESIDENT_VALUES
    from ast_fast_kernels.testing.triton_cases import cases

    launches = {(case.name, arch): case.launch for arch in (80, 90) for case in cases(arch)}
    loops = [row for row in rows if row.name.startswith(("layer_norm_bwd", "bias_gelu_bwd"))]
    assert len(loops) >= 30
    for row in loops:
        launch = launches[row.name, row.arch]
        columns = launch.arguments.get("BLOCK_D") or launch["BLOCK_H"]
        programs = max(1, RESIDENT_VALUES // (launch["BLOCK_ROWS"] * columns))
        assert programs <= row.programs, row
        assert row.copies > 0, row


def test_every_kernel_is_among_them(rows: list) -> None:
    sources = Path(PAGE.parents[1] / "kernels" / "ast_fast_kernels").rglob("triton_gpu.py")
    kernels = {
        name for path in sources for name in re.findall(r"def _(\w+)_kernel\(", path.read_text())
    }
    assert len(kernels) >= 10
    assert kernels == {row.name.partition(",")[0] for row in rows}


def test_the_page_says_what_was_compiled(rows: list) -> None:
    import triton

    from ast_fast_kernels.testing.triton_table import page, read_page

    committed = PAGE.read_text(encoding="utf-8")
    known = {version for line in read_page(committed).values() for version in line.needs}
    assert known
    if triton.__version__ not in known:
        pytest.skip(f"the page has Triton {', '.join(sorted(known))}, not {triton.__version__}")
    command = "python -m ast_fast_kernels.testing.triton_table docs/triton.md"
    assert page(rows, committed) == committed, command


def test_the_fused_filterbank_exchanges_nothing_in_its_loop(rows: list) -> None:
    fused = [row for row in rows if row.name.startswith("fbank_fused")]
    assert {row.arch for row in fused} == {80, 90}
    assert not [(row.name, row.arch) for row in fused if row.barriers]


def a_row(name: str, arch: int, registers: int, model: str):
    from ast_fast_kernels.testing.triton_table import Row

    return Row(
        name, arch, registers, stack=0, spills=0, shared=8192, programs=6, step=1036, barriers=2,
        tensor="–", copies=0, loop="9 LDG", model=model, has_float64=False, needs_tensor=False,
    )  # fmt: skip


def test_a_triton_writes_its_own_column() -> None:
    from ast_fast_kernels.testing.triton_table import page, read_page

    new = [a_row("a, b", 80, 80, "1 GB/s"), a_row("a, b", 90, 81, "2 GB/s")]
    old = [a_row("a, b", 80, 128, "3 GB/s"), a_row("c", 80, 1, "4 GB/s")]
    text = page(new, "| kernel | registers |\n|---|---|\n| a, b | 1 |\n", "3.10.0")
    assert "| a, b | 80 · 8,192 · 6 · 1,036 (2) | – | 0 | 9 LDG | 1 GB/s |" in text.splitlines()
    assert page(new, text, "3.10.0") == text
    both = page(old, text, "3.9.1")  # the older one: details stay, kernels are its own
    assert "by Triton 3.9.1 and 3.10.0" in both
    assert "are of Triton 3.10.0." in both
    assert "| kernel | Triton 3.9.1 | Triton 3.10.0 | tensor cores, a step |" in both
    lines = read_page(both)
    assert lines.keys() == {(80, "a, b"), (80, "c")}
    assert lines[80, "a, b"].needs == {
        "3.9.1": "128 · 8,192 · 6 · 1,036 (2)", "3.10.0": "80 · 8,192 · 6 · 1,036 (2)"
    }  # fmt: skip
    assert lines[80, "a, b"].details[-1] == "1 GB/s"
    assert lines[80, "c"].needs["3.10.0"] == lines[80, "c"].details[-1] == "–"
    whole = page(new, both, "3.10.0")
    assert read_page(whole)[90, "a, b"].needs["3.9.1"] == "–"
    assert page(new, whole, "3.10.0") == whole


def test_every_kernel_compiles_for_amd(tmp_path: Path) -> None:
    from ast_fast_kernels.testing import triton_table
    from ast_fast_kernels.testing.triton_cases import cases

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        assert triton_table.compile_for_amd() == len(list(cases(90)))


def test_the_model_is_arithmetic() -> None:
    """A step of 8 clocks on the tensor cores and 4 on the schedulers, by hand."""
    from collections import Counter

    from ast_fast_kernels._gpu.launch import Launch
    from ast_fast_kernels.testing.ahead_of_time import Case, Resources
    from ast_fast_kernels.testing.triton_table import model_range

    loop = Counter({"HMMA": 4})
    resources = Resources(32, 0, 0, instructions=loop, loop=loop)
    case = Case("a", None, {}, {}, Launch.of(num_warps=4), dot_operations=8 * 2048)
    peak = 108 * 1.41e9 * 2048 / 1e12
    assert model_range(case, resources, 80) == f"{peak * 8 / 12:,.0f}–{peak:,.0f} TFLOP/s"
    copying = Case("b", None, {}, {}, Launch.of(num_warps=4), bytes=100)
    alone = 100 / 4 * 108 * 1.41
    worst = 1 / (1 / alone + 1 / 2039)
    assert model_range(copying, resources, 80) == f"{worst:,.0f}–2,039 GB/s"


def test_spills_would_be_seen() -> None:
    """A tile far too large for the registers is read as what it is."""
    program = """
from triton.backends.compiler import GPUTarget
from ast_fast_kernels._gpu.launch import Launch
from ast_fast_kernels.testing.ahead_of_time import Case, compile_case, read_resources
from ast_fast_kernels.testing.triton_cases import cases
case = next(case for case in cases(80) if case.name == "attention_bwd_dq, head_dim 128, bf16")
large = Launch.of(BLOCK_M=128, BLOCK_N=128, num_warps=4, num_stages=1)
found = read_resources(compile_case(Case(case.name, case.kernel, case.types, case.constants, large),
                                    GPUTarget("cuda", 80, 32)))
print(found.stack > 0 and found.spills > 0)
"""
    assert run_program(program).strip() == "True"
