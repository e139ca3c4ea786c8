"""`linear_gelu` as callers see it, and its reference."""

from __future__ import annotations

import math
import re

import pytest
import torch

from ast_fast_kernels import linear_gelu
from ast_fast_kernels.testing.budgets import relative_norm


def arguments() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4), (5, 4), (5,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_float64_is_the_definition() -> None:
    tokens, weight, bias = arguments()
    projected = tokens @ weight.T + bias
    expected = 0.5 * projected * (1 + torch.erf(projected / math.sqrt(2)))
    assert relative_norm(linear_gelu(tokens, weight, bias), expected) < 1e-14


def test_gradients_are_those_of_the_function() -> None:
    assert torch.autograd.gradcheck(linear_gelu, [x.requires_grad_() for x in arguments()])


ZEROS = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokens": None}, TypeError, "tokens must be a tensor, got NoneType"),
        ({"bias": torch.zeros(5).int()}, TypeError, "bias must be a floating-point tensor, got in"),
        ({"tokens": torch.tensor(1.0)}, ValueError, "tokens must be (..., width), got ()"),
        ({"weight": torch.zeros(5, 3)}, ValueError, "weight must be (hidden, 4), got (5, 3)"),
        ({"bias": torch.zeros(4)}, ValueError, "bias must have shape (5,), got (4,)"),
        ({"bias": torch.zeros(5, device="meta")}, ValueError, "bias must be on cpu, got meta"),
        (
            {"backend": "sdpa"},
            ValueError,
            "backend must be one of auto, reference, triton for gelu",
        ),
        ({"backend": "triton"}, RuntimeError, "triton needs tokens on a CUDA device, got cpu; use"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    good = {"tokens": ZEROS, "weight": torch.zeros(5, 4), "bias": torch.zeros(5)}
    with pytest.raises(error, match=re.escape(message)):
        linear_gelu(**{**good, **changes})
