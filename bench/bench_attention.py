"""Attention's backends on the CPU, and a whole block with each of them.

Each case checks the results, then times the backends in turns; `extra_info` has the speed-up of
`numba` over the others, and its GFLOP/s. A block runs attention between torch's products, as a
training step does. In half precision ours is what `auto` chooses, beside SDPA in the same dtype.
"""

import time
from collections.abc import Callable

import pytest
import torch

from ast_fast.model import Block
from ast_fast.settings.config import ModelConfig
from ast_fast_kernels import attention, chosen_backend, use_backend
from ast_fast_kernels.testing.budgets import relative_norm
from ast_fast_kernels.testing.timing import interleaved_medians

SHAPES = {  # (batch, num_tokens, num_heads, head_dim)
    "256-tokens": (32, 256, 4, 32),
    "128-tokens": (32, 128, 4, 32),
    "256-tokens-of-64": (32, 256, 3, 64),
    "128-tokens-of-64": (32, 128, 3, 64),
    "64-tokens-of-64": (32, 64, 3, 64),
    "600-tokens-of-64": (8, 600, 6, 64),
    "16-tokens": (32, 16, 4, 32),
    "one-clip": (1, 256, 3, 64),
    "one-token": (1, 1, 4, 16),
    "one-long-clip": (1, 1212, 12, 64),
}
HALF = ("128-tokens", "128-tokens-of-64", "256-tokens", "256-tokens-of-64", "600-tokens-of-64",
        "one-long-clip")  # fmt: skip
"""Shapes in half precision: of training, and one clip of AST's own size."""
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
SLOW_SECONDS = 0.5
"""Where torch emulates half precision, a call may take longer; then each has two."""
BACKENDS = ("reference", "sdpa", "numba")

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)

Run = Callable[[str], torch.Tensor]


def forward(qkv: torch.Tensor) -> Run:
    """Return a function that runs attention with a backend, without a graph."""

    @torch.no_grad()
    def run(name: str) -> torch.Tensor:
        return attention(qkv, backend=name)

    return run


def backward(qkv: torch.Tensor) -> Run:
    """Return a function that runs a backend's backward pass; its forward pass has run already."""
    qkv.requires_grad_()
    outs = {name: attention(qkv, backend=name) for name in BACKENDS}
    grad = torch.ones_like(outs["numba"])
    return lambda name: torch.autograd.grad(outs[name], qkv, grad, retain_graph=True)[0]


def both(qkv: torch.Tensor) -> Run:
    """Return a function that runs forward and backward with a backend."""
    qkv.requires_grad_()
    grad = torch.ones(qkv[:, :, 0].shape)
    return lambda name: torch.autograd.grad(attention(qkv, backend=name), qkv, grad)[0]


PRODUCTS = {forward: 2, backward: 5, both: 7}
"""Products of tokens × tokens × head_dim multiply-adds, for each head."""


@pytest.mark.parametrize("make", PRODUCTS)
@shapes
def test_attention(
    benchmark, shape: tuple[int, ...], make: Callable, threads: int, rounds: int
) -> None:
    benchmark.group = f"attention-{make.__name__}"
    batch, tokens, heads, head_dim = shape
    qkv = torch.randn(batch, tokens, 3, heads, head_dim, generator=torch.Generator().manual_seed(0))
    run = make(qkv)
    for name in BACKENDS[1:]:
        torch.testing.assert_close(run(name), run("reference"), rtol=1e-4, atol=1e-4)
    medians = take_turns(benchmark, run, rounds)
    work = 2 * PRODUCTS[make] * batch * heads * tokens**2 * head_dim
    benchmark.extra_info["gflops"] = 1e-9 * work / medians["numba"]
    benchmark(lambda: run("numba"))


@pytest.mark.parametrize("passes", ["forward", "both"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [SHAPES[name] for name in HALF], ids=HALF)
@pytest.mark.parametrize("threads", [2], indirect=True, ids=["2-threads"])
def test_half_precision(
    benchmark, shape: tuple[int, ...], dtype: str, passes: str, threads: int, rounds: int
) -> None:
    """Hold ours to twice SDPA's error, or to the dtype's rounding."""
    benchmark.group = f"attention-half-{passes}"
    batch, tokens, heads, head_dim = shape
    generator, kind = torch.Generator().manual_seed(0), getattr(torch, dtype)
    qkv = torch.randn(batch, tokens, 3, heads, head_dim, generator=generator).to(kind)
    grad = torch.randn(batch, tokens, heads, head_dim, generator=generator).to(kind)
    qkv.requires_grad_(passes == "both")

    def run(name: str, qkv: torch.Tensor = qkv, grad: torch.Tensor = grad) -> torch.Tensor:
        out = attention(qkv, backend=name)
        return torch.autograd.grad(out, qkv, grad)[0] if passes == "both" else out

    errors = check_half(qkv.detach()[:4], grad[:4], run)
    assert errors["auto"] <= max(2 * errors["sdpa"], 2 * ROUNDING[dtype])
    begin = time.perf_counter()
    run("sdpa")
    if time.perf_counter() - begin > SLOW_SECONDS:
        rounds = 1
    medians = take_turns(benchmark, run, rounds, ("sdpa", "auto"))
    work = (
        2 * PRODUCTS[both if passes == "both" else forward] * batch * heads * tokens**2 * head_dim
    )
    benchmark.extra_info |= {
        "backend": chosen_backend("attention", qkv),
        "gflops": 1e-9 * work / medians["auto"],
        "milliseconds": {name: 1e3 * seconds for name, seconds in medians.items()},
        "error": errors,
    }
    benchmark.pedantic(lambda: run("auto"), rounds=rounds)


def check_half(qkv: torch.Tensor, grad: torch.Tensor, run: Callable) -> dict[str, float]:
    """Return each backend's error against float64, from the same rounded inputs."""
    leaves = [x.requires_grad_() for x in (qkv.clone(), qkv.double())]
    exact = run("reference", leaves[1], grad.double())
    return {name: relative_norm(run(name, leaves[0], grad), exact) for name in ("sdpa", "auto")}


@pytest.mark.benchmark(group="block")
@shapes
def test_block(benchmark, shape: tuple[int, ...], threads: int, rounds: int) -> None:
    """Forward and backward of a whole block."""
    batch, tokens, heads, head_dim = shape
    width = heads * head_dim
    torch.manual_seed(0)
    block = Block(ModelConfig(embed_dim=width, num_heads=heads))
    stream = torch.randn(batch, tokens, width)

    def step(name: str) -> torch.Tensor:
        block.zero_grad()
        with use_backend(attention=name):
            kept, update = block(stream)
            (kept + update).sum().backward()
        gradient: torch.Tensor = block.attention.qkv.weight.grad
        return gradient

    for name in BACKENDS[1:]:
        torch.testing.assert_close(step(name), step("reference"), rtol=1e-3, atol=1e-2)
    take_turns(benchmark, step, rounds)
    benchmark(lambda: step("numba"))


def take_turns(
    benchmark, run: Run, rounds: int, backends: tuple[str, ...] = BACKENDS
) -> dict[str, float]:
    """Time a call of each backend in turns, record the last one's speed-ups, return the medians."""
    medians = interleaved_medians(
        {name: lambda name=name: run(name) for name in backends}, rounds=rounds
    )
    *others, ours = backends
    for name in others:
        benchmark.extra_info[f"faster_than_{name}_by"] = medians[name] / medians[ours]
    return medians
