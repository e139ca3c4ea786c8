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


def test_every_kernel_is_among_them(rows: list) -> None:
    sources = Path(PAGE.parents[1] / "kernels" / "ast_fast_kernels").rglob("triton_gpu.py")
    kernels = {
        name for path in sources for name in re.findall(r"def _(\w+)_kernel\(", path.read_text())
    }
    assert len(kernels) >= 10
    assert kernels == {row.name.partition(",")[0] for row in rows}


def test_the_page_says_what_was_compiled(rows: list) -> None:
    import triton

    from ast_fast_kernels.testing.triton_table import page

    committed = PAGE.read_text(encoding="utf-8")
    made_by = re.search(r"Triton ([\d.]+\d)", committed)[1]
    if triton.__version__ != made_by:
        pytest.skip(f"the page is of Triton {made_by}, this is {triton.__version__}")
    assert page(rows) == committed, "python -m ast_fast_kernels.testing.triton_table docs/triton.md"


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
