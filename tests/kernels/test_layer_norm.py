"""`add_layer_norm` as callers see it, and its reference."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from ast_fast_kernels import add_layer_norm
from ast_fast_kernels.testing.budgets import relative_norm

WEIGHT, BIAS = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def noise(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("has_update", [False, True], ids=["tokens", "tokens-and-update"])
def test_float64_is_the_definition(has_update: bool) -> None:
    tokens = noise(2, 3, 6)
    update = noise(2, 3, 6, seed=2) if has_update else None
    residual, normed = add_layer_norm(tokens, update, WEIGHT, BIAS, eps=0.1)
    expected = tokens if update is None else tokens + update
    assert torch.equal(residual, expected)
    centred = expected - expected.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 0.1).sqrt()
    assert relative_norm(normed, centred / deviation * WEIGHT + BIAS) < 1e-14


def test_both_results_have_gradients() -> None:
    leaves = [tensor.requires_grad_() for tensor in (noise(4, 6), noise(4, 6, seed=2))]
    weights = [WEIGHT.clone().requires_grad_(), BIAS.clone().requires_grad_()]
    assert torch.autograd.gradcheck(add_layer_norm, (*leaves, *weights))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokens": 1.0}, TypeError, "tokens must be a tensor, got float"),
        ({"tokens": torch.zeros(2, 6).long()}, TypeError, "tokens must be a floating-point tensor"),
        ({"tokens": torch.tensor(1.0)}, ValueError, "tokens must be (..., width) with a width of"),
        ({"update": torch.zeros(2, 5)}, ValueError, "update must have shape (2, 6), got (2, 5)"),
        ({"weight": torch.zeros(5)}, ValueError, "weight must have shape (6,), got (5,)"),
        ({"bias": torch.zeros(6, device="meta")}, ValueError, "bias must be on cpu, got meta"),
        ({"backend": "numba"}, ValueError, "backend must be one of auto, reference, triton for"),
        ({"backend": "triton"}, RuntimeError, "triton needs tokens on a CUDA device, got cpu; use"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    zeros = torch.zeros(2, 6)
    arguments = {"tokens": zeros, "update": zeros, "weight": zeros[0], "bias": zeros[0], **changes}
    with pytest.raises(error, match=re.escape(message)):
        add_layer_norm(**arguments)
