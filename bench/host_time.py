"""Time on the host of the GPU's operations, beside plain torch's same functions, without a GPU.

`python -m bench.host_time` compiles the Triton kernels for sm_90 and calls the operations with a
driver that launches nothing (`ast_fast_kernels.testing.no_gpu`). Plain torch runs on CPU tensors of
a few hundred values. Both take turns; a figure is the median of rounds.

In it: checks, the choice of a backend, allocation on the CPU, autograd's graph and its pass, and
Triton's launch up to the function that packs arguments. Not in it: that function, CUDA's launch
and allocator, and the switch of device. In plain torch's are its CPU kernels, which are short at
these sizes but not nothing: for attention, products in bfloat16. So this compares hosts, and says
nothing about a GPU's speed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels import FbankConfig, add_layer_norm, attention, fbank, linear_gelu
from ast_fast_kernels.testing import no_gpu
from ast_fast_kernels.testing.timing import interleaved_medians
from bench.gpu_timer import both_ways

Operation = Callable[..., Tensor | tuple[Tensor, ...]]


def plain_add_layer_norm(
    tokens: Tensor, update: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    residual = tokens + update
    return residual, functional.layer_norm(residual, weight.shape, weight, bias)


def plain_linear_gelu(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(functional.linear(tokens, weight, bias))


def plain_attention(qkv: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def operations() -> dict[str, tuple[Operation, Operation, list[Tensor]]]:
    """Name → plain torch's function, ours, and what both are given."""
    ours: dict[str, Operation] = {
        "add_layer_norm": partial(add_layer_norm, backend="triton"),
        "linear_gelu": partial(linear_gelu, backend="triton"),
        "attention": partial(attention, backend="triton"),
    }
    return {
        "add_layer_norm": (
            plain_add_layer_norm,
            ours["add_layer_norm"],
            [noise(2, 4, 192), noise(2, 4, 192), noise(192), noise(192)],
        ),
        "linear_gelu": (
            plain_linear_gelu,
            ours["linear_gelu"],
            [noise(2, 4, 16), noise(32, 16), noise(32)],
        ),
        "attention": (
            plain_attention,
            ours["attention"],
            [noise(1, 4, 3, 2, 16, dtype=torch.bfloat16)],
        ),
    }


def forward(run: Operation, tensors: list[Tensor]) -> object:
    return run(*tensors)


def repeated(run: Callable[[], object], calls: int) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(calls):
            run()

    return turn


def measure(calls: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return microseconds of a call, by case and candidate."""
    figures: dict[str, dict[str, float]] = {}
    cases: dict[str, dict[str, Callable[[], object]]] = {}
    for name, (plain, ours, tensors) in operations().items():
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        for way, step, given in (
            ("forward", forward, tensors),
            ("forward, graph kept", forward, leaves),
            ("forward + backward", both_ways, leaves),
        ):
            cases[f"{name}, {way}"] = {
                "torch": partial(step, plain, given),
                "ours": partial(step, ours, given),
            }
    clip, config = noise(1, 4000), FbankConfig()
    cases["fbank, forward"] = {
        "torch": partial(fbank, clip, config, backend="reference"),
        "ours": partial(fbank, clip, config, backend="triton"),
    }
    for case, candidates in cases.items():
        turns = {name: repeated(run, calls) for name, run in candidates.items()}
        medians = interleaved_medians(turns, rounds=rounds)
        figures[case] = {name: 1e6 * median / calls for name, median in medians.items()}
    return figures


def table(figures: dict[str, dict[str, float]]) -> str:
    lines = ["| case | torch, µs | ours, µs | ratio |", "|---|---|---|---|"]
    for case, row in figures.items():
        ratio = row["ours"] / row["torch"]
        lines.append(f"| {case} | {row['torch']:.0f} | {row['ours']:.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    options = parser.parse_args()
    os.environ.pop("AST_FAST_BACKEND", None)
    torch.set_num_threads(1)
    no_gpu.install()
    figures = measure(2, 1) if options.tiny else measure(100, 15)
    print(table(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
