"""A weight packed for oneDNN gives the product that it gave before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ast_fast_kernels._torch import onednn
from ast_fast_kernels.linear import packed
from ast_fast_kernels.linear.packed import linear_packed, pack, packs_faster_here
from ast_fast_kernels.testing.processes import run_program

needs_onednn = pytest.mark.skipif(not onednn.IS_THERE, reason="this torch is built without oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(640, 48), (2, 3, 48), (1, 48), (0, 48), (48,)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_packed_weights_project(shape: tuple[int, ...], has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, weight, bias = (
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in (shape, (72, 48), (72,))
    )
    added = bias if has_bias else None
    expected = torch.nn.functional.linear(tokens, weight, added)
    ordered = pack(weight.float().requires_grad_(), rows=640)
    found = linear_packed(tokens.float(), ordered, None if added is None else added.float())
    assert not found.requires_grad
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@needs_onednn
def test_a_strided_weight_is_packed() -> None:
    weight, tokens = torch.randn(48, 72).T, torch.randn(5, 48)
    torch.testing.assert_close(linear_packed(tokens, pack(weight, 5), None), tokens @ weight.T)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (None, TypeError, "weight must be a tensor, got NoneType"),
        (torch.zeros(4), ValueError, r"weight must be \(out, width\), not empty, got \(4,\)"),
        (torch.zeros(0, 4), ValueError, r"not empty, got \(0, 4\)"),
        (
            torch.zeros(4, 4).double(),
            ValueError,
            "float32 or bfloat16 on the CPU, got float64 on cpu",
        ),
        (torch.zeros(4, 4, device="meta"), ValueError, "got float32 on meta"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    weight: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pack(weight, 4)


def test_packing_needs_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "IS_THERE", False)
    with pytest.raises(RuntimeError, match="packed weights need oneDNN"):
        pack(torch.zeros(4, 4), 4)
    assert not packs_faster_here()
    assert not packs_faster_here(torch.bfloat16)


def test_bfloat16_is_packed_where_onednn_multiplies_it() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, weight, bias = (
        torch.randn(*size, generator=generator).bfloat16() for size in ((5, 48), (72, 48), (72,))
    )
    if not packed._takes_bfloat16():
        with pytest.raises(RuntimeError, match="packed bfloat16 needs a CPU with AVX-512"):
            pack(weight, 5)
        return
    found = linear_packed(tokens, pack(weight, 5), bias)
    expected = tokens.float() @ weight.float().T + bias.float()
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() <= 2**-8 * expected.norm()


def test_bfloat16_is_packed_for_speed_where_it_is_not_emulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed, "_takes_bfloat16", lambda: True)
    for has_it in (True, False):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda has=has_it: {"avx512_bf16": has}, raising=False
        )
        assert packs_faster_here(torch.bfloat16) == has_it


@pytest.mark.parametrize(
    ("name", "faster"), [("AMD EPYC", True), ("Intel(R) Xeon(R) Processor", False), ("", False)]
)
def test_weights_are_packed_where_mkl_leaves_something(
    name: str, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "HAS_MKL", True)
    monkeypatch.setattr(onednn, "IS_THERE", True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name}, raising=False)
    assert packs_faster_here() == faster
    assert not packs_faster_here(torch.float64)


@needs_onednn
def test_a_forked_process_packs_and_projects() -> None:
    """Without the threads of its parent, for which oneDNN would wait for ever."""
    run_program("""
import os, signal, torch
from ast_fast_kernels.linear.packed import linear_packed, pack

torch.set_num_threads(2)
tokens, weight = torch.randn(1024, 320), torch.randn(1280, 320)
expected = linear_packed(tokens, pack(weight, 1024), None)
child = os.fork()
if child == 0:
    signal.alarm(60)
    found = linear_packed(tokens, pack(weight, 1024), None)
    os._exit(not (found.numpy() == expected.numpy()).all() or torch.get_num_threads() != 2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""")
