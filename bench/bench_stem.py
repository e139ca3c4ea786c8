"""A stem's norm, GELU and convolution on the CPU: one pass against torch's operators.

Each case checks the results, then times both in turns; `extra_info` has the speed-up of `numba`
over torch's operators, and the largest error of each against float64, in the norm of the result or
of a gradient.
"""

import pytest
import torch

from ast_fast.machine.device import Placement
from ast_fast_kernels import norm_gelu_conv
from ast_fast_kernels.testing.budgets import relative_norm
from bench.bench_attention import take_turns
from bench.bench_step import CPU, precisions

SHAPES = {"cells-of-4": (32, 32, 128, 32), "cells-of-8": (32, 16, 64, 96)}
"""(batch, freq, time, width): both stages of recipes/esc50.toml, for a batch of 32 clips."""
BACKENDS = ("reference", "numba")


@precisions
@pytest.mark.parametrize("passes", ["forward", "both"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_norm_gelu_conv(
    benchmark,
    shape: tuple[int, ...],
    passes: str,
    amp: torch.dtype | None,
    threads: int,
    rounds: int,
) -> None:
    benchmark.group = f"stem-{passes}"
    dtype = amp or torch.float32
    width, generator = shape[3], torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).to(dtype)]
    given += [torch.ones(width), torch.zeros(width)]
    given += [torch.randn(width, 1, 3, 3, generator=generator) / 3, torch.zeros(width)]
    leaves = [tensor.requires_grad_(passes == "both") for tensor in given]
    batch, freq, time, _ = shape
    grad = torch.randn(batch, freq // 2, time // 2, 4 * width, generator=generator).to(dtype)

    def results(leaves: list[torch.Tensor], name: str) -> list[torch.Tensor]:
        kind = leaves[0].dtype
        with Placement(CPU, kind if kind == torch.bfloat16 else None).autocast():
            joined = norm_gelu_conv(*leaves, backend=name).to(kind)  # as a product would cast it
        if passes == "forward":
            return [joined]
        return [*torch.autograd.grad(joined, leaves, grad.to(kind))]

    def run(name: str) -> list[torch.Tensor]:
        return results(leaves, name)

    wide = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    exact = results(wide, "reference")
    errors = {
        name: max(relative_norm(ours, right) for ours, right in zip(run(name), exact, strict=True))
        for name in BACKENDS
    }
    assert errors["numba"] < (1e-6 if dtype == torch.float32 else 2.0**-8)
    benchmark.extra_info["largest_error"] = errors
    take_turns(benchmark, run, rounds, BACKENDS)
    benchmark(lambda: run("numba"))
