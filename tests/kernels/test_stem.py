"""`norm_gelu_conv` as callers see it, its reference and its CPU kernels."""

from __future__ import annotations

import math
import re
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ast_fast_kernels import norm_gelu_conv
from ast_fast_kernels.stem import numba_cpu
from ast_fast_kernels.testing.budgets import relative_norm
from ast_fast_kernels.testing.processes import run_program

BOUND = 1e-6
"""Relative norm of float32 against float64. Sums are of rows, then of all; measured: 3e-7."""

HALF = 2.0**-8
"""The same of bfloat16, which rounds once: half a unit of eight bits."""

NAMES = ("cells", "norm_weight", "norm_bias", "conv_weight", "conv_bias")

SHAPES = {  # (batch, freq, time, width)
    "smallest": (1, 2, 2, 4),
    "one-vector": (2, 2, 6, 16),
    "odd-vectors": (2, 8, 10, 48),
    "first-stage": (2, 32, 128, 32),
    "second-stage": (2, 16, 64, 96),
    "long": (1, 4, 500, 64),
}


def arguments(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = shape[3]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    parameters = [1 + 0.3 * normal(width), 0.2 * normal(width)]
    parameters += [0.3 * normal(width, 1, 3, 3), 0.1 * normal(width)]
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    cells = 0.3 + 2 * normal(*shape)
    return [cells.to(dtype), *(parameter.to(kind) for parameter in parameters)]


def by_definition(
    cells: Tensor, norm_weight: Tensor, norm_bias: Tensor, conv_weight: Tensor, conv_bias: Tensor
) -> Tensor:
    """Cell by cell, tap by tap."""
    freq, time = cells.shape[1:3]
    variance, mean = torch.var_mean(cells, dim=3, correction=0, keepdim=True)
    x = (cells - mean) / torch.sqrt(variance + 1e-5) * norm_weight + norm_bias
    z = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    heard = z + conv_bias
    for row in range(freq):
        for column in range(time):
            for down in (-1, 0, 1):
                for along in (-1, 0, 1):
                    if 0 <= row + down < freq and 0 <= column + along < time:
                        tap = conv_weight[:, 0, down + 1, along + 1]
                        heard[:, row, column] += tap * z[:, row + down, column + along]
    quarters = [heard[:, down::2, along::2] for down in (0, 1) for along in (0, 1)]
    return torch.cat(quarters, dim=3)


def gradients(given: list[Tensor], weight: Tensor, **options: Any) -> list[Tensor]:
    """Return the result, then the gradients of cells and parameters."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    out = norm_gelu_conv(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype))]


def upstream(shape: tuple[int, ...]) -> Tensor:
    batch, freq, time, width = shape
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, freq // 2, time // 2, 4 * width, generator=generator)


def check(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **options: Any) -> None:
    given, weight = arguments(shape, dtype), upstream(shape).to(dtype)
    exact = gradients([tensor.double() for tensor in given], weight.double())
    for name, ours, expected in zip(
        ("out", *NAMES), gradients(given, weight, **options), exact, strict=True
    ):
        rounds = dtype == torch.bfloat16 and name in ("out", "cells")
        assert ours.dtype == (dtype if name in ("out", "cells") else torch.float32)
        assert relative_norm(ours, expected) < (HALF if rounds else BOUND), name


def test_float64_is_the_definition() -> None:
    given = arguments((2, 4, 6, 5), torch.float64)
    assert relative_norm(norm_gelu_conv(*given), by_definition(*given)) < 1e-14


def test_gradients_are_those_of_the_function() -> None:
    given = [tensor.requires_grad_() for tensor in arguments((1, 2, 4, 3), torch.float64)]
    assert torch.autograd.gradcheck(norm_gelu_conv, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_result_and_gradients_are_those_of_float64(shape, dtype) -> None:
    check(shape, dtype, backend="numba")


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_vector_width_gives_them(lanes: int, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(numba_cpu, "host_lanes", lambda: lanes)
    check((2, 6, 8, 48), dtype, backend="numba")


@pytest.mark.parametrize(("backend", "bound"), [("numba", 1.6e-7), ("reference", 4e-7)])
def test_gelu_is_right_from_end_to_end(backend: str, bound: float) -> None:
    """What the norm gives is its bias here, and what the convolution adds is nothing."""
    width = 2**18
    values, nothing = torch.linspace(-20, 20, width), torch.zeros(width)
    cells, taps = torch.ones(1, 2, 2, width), torch.zeros(width, 1, 3, 3)
    out = norm_gelu_conv(cells, nothing, values, taps, nothing, backend=backend)
    expected = torch.nn.functional.gelu(values.double())
    error = (out.view(4, width).double() - expected).abs()
    assert (error / values.abs().clamp(min=1.0)).max() < bound


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_cells_of_one_value_are_their_bias(backend: str) -> None:
    given, weight = arguments((1, 4, 4, 8)), upstream((1, 4, 4, 8))
    given[0] = torch.full((1, 4, 4, 8), 3.0)
    results = gradients(given, weight, backend=backend)
    exact = gradients([tensor.double() for tensor in given], weight.double())
    for ours, expected in zip(results, exact, strict=True):
        assert relative_norm(ours, expected) < BOUND


def test_a_nan_reaches_its_neighbours_only() -> None:
    given = arguments((3, 8, 8, 16))
    clean = norm_gelu_conv(*given, backend="numba")
    given[0][1, 3, 4, 7] = math.nan
    out = norm_gelu_conv(*given, backend="numba")
    cells = out.unflatten(3, (2, 2, 16)).permute(0, 1, 3, 2, 4, 5).reshape(3, 8, 8, 16)
    reached = torch.zeros(3, 8, 8, dtype=torch.bool)
    reached[1, 2:5, 3:6] = True
    assert torch.equal(cells.isnan().all(dim=3), reached)
    assert torch.equal(cells.isnan().any(dim=3), reached)
    assert torch.equal(out.nan_to_num(0.0)[[0, 2]], clean[[0, 2]])


def test_the_same_bits_for_any_threads_and_in_any_batch() -> None:
    """Of so many parameters that torch would sum them on its threads."""
    given, weight = arguments((40, 2, 4, 96)), upstream((40, 2, 4, 96))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(gradients(given, weight, backend="numba"))
        alone = gradients([given[0][2:3], *given[1:]], weight[2:3], backend="numba")
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    assert all(torch.equal(a[2:3], b) for a, b in zip(results[0][:2], alone[:2], strict=True))


def test_strides_are_taken() -> None:
    given, weight = arguments((2, 4, 6, 16)), upstream((2, 4, 6, 16))
    expected = gradients(given, weight, backend="numba")
    turned = [tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for tensor in given]
    wide = torch.stack((weight, weight), dim=4)[..., 0]
    for ours, dense in zip(gradients(turned, wide, backend="numba"), expected, strict=True):
        assert torch.equal(ours, dense)
    whole = norm_gelu_conv(*given, backend="numba")
    leaves = [tensor.requires_grad_() for tensor in given]
    out = norm_gelu_conv(*leaves, backend="numba")
    assert torch.equal(out, whole)
    spread = torch.ones(()).expand(out.shape)
    sums = torch.autograd.grad(out, leaves, spread, retain_graph=True)
    for ours, dense in zip(sums, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_no_clip_gives_no_clip(backend: str) -> None:
    given = arguments((2, 4, 6, 16))
    given[0] = given[0][:0]
    out, *grads = gradients(given, torch.empty(0, 2, 3, 64), backend=backend)
    assert out.shape == (0, 2, 3, 64)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in given]
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_torch_s_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    given, weight = arguments((2, 4, 6, 16)), upstream((2, 4, 6, 16))
    expected = gradients(given, weight, backend="numba")
    torch.set_default_dtype(dtype)
    try:
        others = gradients(given, weight, backend="numba")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(others, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    given, weight = arguments((2, 4, 6, 16), dtype), upstream((2, 4, 6, 16))
    expected = gradients(given, weight, backend="numba")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        others = gradients(given, weight, backend="numba")
    assert all(torch.equal(a, b) for a, b in zip(others, expected, strict=True))


@pytest.mark.parametrize("width", [6, 8])
def test_bfloat16_outside_autocast_goes_either_way(width: int) -> None:
    given = arguments((2, 4, 6, width), torch.bfloat16)
    exact = norm_gelu_conv(*(tensor.double() for tensor in given))
    for backend in ("auto", "reference"):
        out = norm_gelu_conv(*given, backend=backend)
        assert out.dtype == torch.bfloat16
        assert relative_norm(out, exact) < 4 * HALF


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_gradients_have_their_parameters_strides(backend: str) -> None:
    """As DDP's buckets have them; it warns of others."""
    leaves = [tensor.requires_grad_() for tensor in arguments((2, 4, 6, 16))]
    norm_gelu_conv(*leaves, backend=backend).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.stride() == leaf.stride()


def test_every_result_is_written(monkeypatch) -> None:
    """Memory that is not filled holds NaN here."""
    given, weight = arguments((2, 4, 6, 16)), upstream((2, 4, 6, 16))
    expected = gradients(given, weight, backend="numba")
    new_empty, empty = Tensor.new_empty, np.empty
    monkeypatch.setattr(
        Tensor, "new_empty", lambda self, *size, **kind: new_empty(self, *size, **kind).fill_(nan)
    )
    monkeypatch.setattr(np, "empty", lambda size, dtype: np.full_like(empty(size, dtype), nan))
    others = gradients(given, weight, backend="numba")
    assert all(torch.equal(a, b) for a, b in zip(others, expected, strict=True))


def test_forked_processes_compute_the_same() -> None:
    """More parameters than torch sums on one thread, and strided tensors."""
    run_program(
        """
import os, signal
import torch
from ast_fast_kernels import norm_gelu_conv
torch.set_num_threads(2)
cells = torch.linspace(-3, 3, 40 * 2 * 4 * 96).sin().view(40, 4, 2, 96).transpose(1, 2)
rest = [torch.ones(96), torch.zeros(96), torch.ones(96, 1, 3, 3), torch.zeros(96)]
wide = torch.linspace(-5, 5, 40 * 4 * 384).cos().view(40, 1, 2, 2, 384)[:, :, :, 0]
def both():
    leaves = [tensor.detach().requires_grad_() for tensor in (cells, *rest)]
    out = norm_gelu_conv(*leaves, backend="numba")
    return [out.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(out, leaves, wide))]
expected = both()
torch.ones(512, 512) @ torch.ones(512, 512)
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = all((a == b).all() for a, b in zip(both(), expected, strict=True))
    os._exit(0 if same else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
        CUDA_VISIBLE_DEVICES="",  # torch runs no backward in the fork of one that saw a GPU
    )


def test_a_saved_program_runs_in_another_process(tmp_path: Path) -> None:
    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return norm_gelu_conv(*given)

    given = tuple(arguments((2, 4, 6, 16)))
    torch.export.save(torch.export.export(Module(), given), tmp_path / "program.pt2")
    torch.save([given, norm_gelu_conv(*given)], tmp_path / "tensors")
    run_program(
        """
import sys, torch
import ast_fast_kernels.stem.numba_cpu  # its operators
given, out = torch.load(sys.argv[2])
assert torch.equal(torch.export.load(sys.argv[1]).module()(*given), out)
""",
        str(tmp_path / "program.pt2"),
        str(tmp_path / "tensors"),
    )


def test_operators_pass_opcheck() -> None:
    cells, *parameters = arguments((2, 4, 6, 16))
    norm_gelu_conv(cells, *parameters, backend="numba")  # registers them
    rows = torch.randn(12, 16)
    ops = torch.ops.ast_fast
    args = (cells.requires_grad_(), rows.requires_grad_(), 1e-5)
    torch.library.opcheck(ops.norm_gelu_conv_numba_fwd.default, args)
    args = (torch.ones(2, 2, 3, 64), cells.detach(), rows.detach(), 1e-5)
    torch.library.opcheck(ops.norm_gelu_conv_numba_bwd.default, args)


def test_a_second_gradient_is_refused() -> None:
    given = [tensor.requires_grad_() for tensor in arguments((1, 2, 2, 4))]
    out = norm_gelu_conv(*given, backend="numba")
    (gradient,) = torch.autograd.grad(out.sum(), given[0], create_graph=True)
    message = "the operator ast_fast::norm_gelu_conv_numba_bwd has no gradient"
    with pytest.raises(RuntimeError, match=message):
        gradient.sum().backward()


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compiled_code_gives_the_same(compiler: str) -> None:
    given = [tensor.requires_grad_() for tensor in arguments((2, 4, 6, 16))]
    torch.compiler.reset()
    compiled = torch.compile(norm_gelu_conv, fullgraph=True, backend=compiler)
    outs = [run(*given) for run in (norm_gelu_conv, compiled)]
    assert torch.equal(*outs)
    for ours, expected in zip(
        *(torch.autograd.grad(out.sum(), given) for out in outs), strict=True
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, of vmap
def test_torch_s_transforms_are_left_to_the_reference() -> None:
    given = arguments((2, 2, 4, 4))

    def loss(cells: Tensor) -> Tensor:
        return norm_gelu_conv(cells[None], *given[1:]).square().sum()

    by_clip = torch.func.vmap(torch.func.grad(loss))(given[0])
    out = norm_gelu_conv(given[0].requires_grad_(), *given[1:])
    (expected,) = torch.autograd.grad(out.square().sum(), given[0])
    torch.testing.assert_close(by_clip, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": torch.zeros(1, 2, 2, 8).half()}, "numba needs cells in float32 or bfloat16 on "),
        ({"cells": torch.zeros(1, 2, 2, 8, device="meta")}, "on the CPU, got float32 on meta"),
        ({"conv_bias": torch.zeros(8).double()}, "numba needs parameters in float32, got float64"),
        ({"cells": torch.zeros(1, 2, 2, 6)}, "numba needs a width divisible by 4, got 6"),
    ],
    ids=["float16", "meta", "parameters", "width"],
)
def test_what_numba_cannot_run_is_refused_by_name(changes, message) -> None:
    cells = changes.get("cells", torch.zeros(1, 2, 2, 8))
    width, device = cells.shape[3], cells.device
    shapes = {"norm_weight": (width,), "norm_bias": (width,), "conv_bias": (width,)}
    good = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
    good["conv_weight"] = torch.zeros(width, 1, 3, 3, device=device)
    given = {"cells": cells, **good, **changes}
    with pytest.raises(RuntimeError, match=re.escape(message) + '.*use backend="reference"'):
        norm_gelu_conv(**given, backend="numba")
    if cells.dtype == torch.float32 and "conv_bias" not in changes:
        assert norm_gelu_conv(**given).shape == (1, 1, 1, 4 * width)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cells": None}, TypeError, "cells must be a tensor, got NoneType"),
        ({"norm_bias": torch.zeros(8).int()}, TypeError, "norm_bias must be a floating-point tens"),
        ({"cells": torch.zeros(2, 2, 8)}, ValueError, "none of them 0, got (2, 2, 8)"),
        ({"cells": torch.zeros(1, 3, 2, 8)}, ValueError, "freq and time even, none of them 0, got"),
        ({"cells": torch.zeros(1, 2, 0, 8)}, ValueError, "none of them 0, got (1, 2, 0, 8)"),
        (
            {"conv_weight": torch.zeros(8, 3, 3)},
            ValueError,
            "conv_weight must have shape (8, 1, 3, 3), got (8, 3, 3)",
        ),
        ({"norm_weight": torch.zeros(4)}, ValueError, "norm_weight must have shape (8,), got (4,)"),
        ({"conv_bias": torch.zeros(8, device="meta")}, ValueError, "conv_bias must be on cpu, got"),
        ({"backend": "triton"}, ValueError, "backend must be one of auto, reference, numba for st"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message) -> None:
    good = dict(zip(NAMES, arguments((1, 2, 2, 8)), strict=True))
    with pytest.raises(error, match=re.escape(message)):
        norm_gelu_conv(**{**good, **changes})
