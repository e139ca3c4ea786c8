"""Triton's interpreter as the tests mend it, and the tests that need a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

UNMENDED_DOT = """
import torch, triton, triton.language as tl
@triton.jit
def kernel(a_ptr, out_ptr):
    offs = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    a = tl.load(a_ptr + offs)
    tl.store(out_ptr + offs, tl.dot(a, a))
out = torch.zeros(16, 16)
kernel[1,](torch.ones(16, 16, dtype=torch.bfloat16), out)
print(out[0, 0].item())
"""


@pytest.mark.slow
def test_interpreted_kernels_pass_in_a_process_of_their_own(interpreted_tests) -> None:
    code, output = interpreted_tests.wait()
    assert code == 0, output[-5000:]
    assert int(re.search(r"(\d+) passed", output)[1]) > 200


@pytest.mark.interpreter
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dots_are_those_of_tensor_cores(dtype: torch.dtype) -> None:
    import triton
    import triton.language as tl

    from ast_fast_kernels.testing import interpreter

    @triton.jit
    def kernel(a_ptr, b_ptr, out_ptr, PRECISION: tl.constexpr):
        offs = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
        a, b = tl.load(a_ptr + offs), tl.load(b_ptr + offs)
        tl.store(out_ptr + offs, tl.dot(a, b, input_precision=PRECISION))

    interpreter.install()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=generator).to(dtype) for _ in range(2))
    results = {}
    for precision in ("ieee", "tf32"):
        out = torch.full((16, 16), torch.nan)
        kernel[1,](a, b, out, precision)
        results[precision] = out
    exact = a.double() @ b.double()
    assert (results["ieee"] - exact).abs().max() < 1e-5
    if dtype != torch.float32:
        assert torch.equal(results["tf32"], results["ieee"])
        return
    cut = [torch.from_numpy(interpreter.to_tf32(x.numpy())).double() for x in (a, b)]
    assert (results["tf32"] - cut[0] @ cut[1]).abs().max() < 1e-5
    assert 1e-4 < (results["tf32"] - exact).abs().max() < 1e-1
    with interpreter.exact_dots():
        kernel[1,](a, b, out, "tf32")
    assert torch.equal(out, results["ieee"])


@pytest.mark.interpreter
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_the_interpreter_still_needs_mending(tmp_path: Path) -> None:
    """Goes red when Triton multiplies bfloat16 itself, so that the workaround can go."""
    program = tmp_path / "dot.py"  # Triton reads a kernel's source from its file
    program.write_text(UNMENDED_DOT)
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert abs(float(run.stdout) - 16.0) > 1.0, run.stdout


def test_float32_is_rounded_to_the_nearest_bfloat16() -> None:
    from ast_fast_kernels.testing.interpreter import to_bfloat16_bits

    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values, np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)])
    ours = torch.from_numpy(to_bfloat16_bits(values).view(np.int16)).view(torch.bfloat16)
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(0.0), theirs.nan_to_num(0.0))


def test_tf32_keeps_ten_bits() -> None:
    from ast_fast_kernels.testing.interpreter import to_tf32

    values = np.array([1.0, 1 + 2.0**-10, 1 + 2.0**-11, -1 - 2.0**-11, np.inf, np.nan], np.float32)
    expected = np.array([1.0, 1 + 2.0**-10, 1.0, -1.0, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(to_tf32(values), expected)
