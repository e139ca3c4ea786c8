"""Projections by oneDNN and by torch's own product, with and without GELU.

Each case checks the results, then times both in turns; `extra_info` has the speed-up of `onednn`
over torch's own product, its GFLOP/s, and the backend that `auto` chooses here.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ast_fast_kernels import linear, linear_gelu
from ast_fast_kernels.linear.api import choose_backend
from bench.bench_attention import take_turns

SIZES = [
    (8192, 192, 576),
    (8192, 192, 768),
    (8192, 768, 192),
    (8192, 128, 512),
    (256, 192, 768),
    (32, 192, 50),
]
"""(rows, width, out): of a block for 32 clips of 256 patches and for one clip, and of the head."""
BACKENDS = ("reference", "onednn")
PRODUCTS = {"forward": 1, "both": 3}


@pytest.mark.parametrize("passes", PRODUCTS)
@pytest.mark.parametrize("size", SIZES, ids="{0[0]}-of-{0[1]}-to-{0[2]}".format)
@pytest.mark.parametrize("operation", [linear, linear_gelu], ids=lambda function: function.__name__)
def test_projection(
    benchmark, operation: Callable[..., Tensor], size: tuple[int, int, int], passes: str,
    threads: int, rounds: int,
) -> None:  # fmt: skip
    benchmark.group = f"{operation.__name__}-{passes}"
    rows, width, out = size
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator) for shape in ((rows, width), (out, width))]
    given.append(torch.zeros(out))
    leaves = [x.requires_grad_(passes == "both") for x in given]
    grad = torch.ones(rows, out)

    def run(name: str) -> Tensor:
        projected = operation(*leaves, backend=name)
        return torch.autograd.grad(projected, leaves, grad)[1] if passes == "both" else projected

    torch.testing.assert_close(run("onednn"), run("reference"), rtol=1e-4, atol=1e-3)
    medians = take_turns(benchmark, run, rounds, BACKENDS)
    benchmark.extra_info |= {
        "gflops": 2e-9 * PRODUCTS[passes] * rows * width * out / medians["onednn"],
        "auto": choose_backend("auto", *given),
    }
    benchmark(lambda: run("onednn"))
