"""A stem's norm, GELU and convolution on the CPU: one pass against torch's operators.

Each case checks the results, then has both take turns; `extra_info` says how many times as fast as
torch's operators `numba` is.
"""

import pytest
import torch

from ast_fast.device import autocast, multiplies_bfloat16
from ast_fast_kernels import norm_gelu_conv
from ast_fast_kernels.testing.budgets import relative_norm
from bench.bench_attention import take_turns

CPU = torch.device("cpu")
SHAPES = {"cells-of-4": (32, 32, 128, 32), "cells-of-8": (32, 16, 64, 96)}
"""(batch, freq, time, width): both stages of recipes/esc50.toml, for a batch of 32 clips."""
BACKENDS = ("reference", "numba")


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="float32"),
        pytest.param(
            torch.bfloat16,
            id="bfloat16-autocast",
            marks=pytest.mark.skipif(
                not multiplies_bfloat16(CPU), reason="this CPU only emulates bfloat16"
            ),
        ),
    ],
)
@pytest.mark.parametrize("passes", ["forward", "both"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_norm_gelu_conv(
    benchmark, shape: tuple[int, ...], passes: str, dtype: torch.dtype, threads: int, rounds: int
) -> None:
    benchmark.group = f"stem-{passes}"
    width, generator = shape[3], torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).to(dtype)]
    given += [torch.ones(width), torch.zeros(width)]
    given += [torch.randn(width, 1, 3, 3, generator=generator) / 3, torch.zeros(width)]
    leaves = [tensor.requires_grad_(passes == "both") for tensor in given]
    amp = None if dtype == torch.float32 else dtype

    def run(name: str) -> tuple[torch.Tensor, ...]:
        with autocast(CPU, amp):
            joined = norm_gelu_conv(*leaves, backend=name).to(dtype)  # as a product would cast it
        if passes == "forward":
            return (joined,)
        return torch.autograd.grad(joined, leaves, torch.ones_like(joined))

    bound = 1e-5 if amp is None else 0.02
    for ours, theirs in zip(run("numba"), run("reference"), strict=True):
        assert relative_norm(ours, theirs) < bound
    take_turns(benchmark, run, rounds, BACKENDS)
    benchmark(lambda: run("numba"))
