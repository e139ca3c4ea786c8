"""Attention's backends at the model's shapes: whole clips, and half the patches dropped.

Each case checks its output, then times itself and the reference in turns; the ratio of the medians
is in `extra_info["faster_than_reference_by"]`.
"""

from collections.abc import Callable

import pytest
import torch

from ast_fast_kernels import attention
from ast_fast_kernels.testing.timing import interleaved_medians

SHAPES = {  # (batch, num_tokens, num_heads, head_dim)
    "256-tokens": (32, 256, 4, 32),
    "128-tokens": (32, 128, 4, 32),
}
ROUNDS = 9


@pytest.fixture(params=SHAPES, ids=str)
def qkv(request: pytest.FixtureRequest) -> torch.Tensor:
    batch, num_tokens, *heads = SHAPES[request.param]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, num_tokens, 3, *heads, generator=generator, requires_grad=True)


def forward(qkv: torch.Tensor, backend: str) -> torch.Tensor:
    with torch.no_grad():
        return attention(qkv, backend=backend)


def forward_backward(qkv: torch.Tensor, backend: str) -> torch.Tensor:
    return torch.autograd.grad(attention(qkv, backend=backend).square().sum(), qkv)[0]


@pytest.mark.benchmark(group="attention")
@pytest.mark.parametrize("run", [forward, forward_backward])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_attention(benchmark, qkv: torch.Tensor, run: Callable, backend: str, threads: int) -> None:
    torch.testing.assert_close(run(qkv, backend), run(qkv, "reference"), rtol=1e-4, atol=1e-4)
    medians = interleaved_medians(
        {name: lambda name=name: run(qkv, name) for name in (backend, "reference")}, rounds=ROUNDS
    )
    if backend != "reference":
        benchmark.extra_info["faster_than_reference_by"] = medians["reference"] / medians[backend]
    benchmark(lambda: run(qkv, backend))
