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


@pytest.mark.parametrize("graph", [False, True])
def test_what_comes_in_is_left_as_it_was(graph: bool) -> None:
    given = [x.requires_grad_(graph) for x in arguments()]
    before = [tensor.detach().clone() for tensor in given]
    hidden = linear_gelu(*given)
    assert hidden.requires_grad == graph
    for tensor, value in zip(given, before, strict=True):
        assert torch.equal(tensor, value)


def test_every_way_to_call_it_gives_the_same() -> None:
    """Without a graph GELU works in place, which no transform may notice."""
    given = arguments()
    expected = torch.nn.functional.gelu(torch.nn.functional.linear(*given))
    tokens, weight, bias = given
    assert torch.equal(linear_gelu(*given), expected)
    with torch.inference_mode():
        assert torch.equal(linear_gelu(*given), expected)
    by_clip = torch.func.vmap(linear_gelu, (0, None, None))
    torch.testing.assert_close(by_clip(*given), expected, rtol=1e-14, atol=1e-14)
    by_column = torch.func.vmap(lambda row, b: linear_gelu(tokens, row[None], b[None]))
    torch.testing.assert_close(
        by_column(weight, bias)[..., 0].permute(1, 2, 0), expected, rtol=1e-14, atol=1e-14
    )
    compiled = torch.compile(linear_gelu, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(*given), expected)


def test_forward_derivatives_and_those_of_a_transform_are_right() -> None:
    given = tuple(arguments())
    direction = tuple(torch.randn_like(x) for x in given)

    def plain(*args: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(torch.nn.functional.linear(*args))

    torch.testing.assert_close(
        torch.func.jvp(linear_gelu, given, direction), torch.func.jvp(plain, given, direction)
    )
    both = [
        torch.func.vmap(torch.func.grad(lambda x, f=f: f(x, *given[1:]).sum()))(given[0])
        for f in (linear_gelu, plain)
    ]
    torch.testing.assert_close(*both)
    hessians = [
        torch.func.hessian(lambda b, f=f: f(*given[:2], b).sum())(given[2])
        for f in (linear_gelu, plain)
    ]
    torch.testing.assert_close(*hessians)


ZEROS = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokens": None}, TypeError, "tokens must be a tensor, got NoneType"),
        ({"bias": torch.zeros(5).int()}, TypeError, "bias must be a floating-point tensor, got in"),
        ({"tokens": torch.tensor(1.0)}, ValueError, "tokens must be (..., width), got ()"),
        ({"weight": torch.zeros(5, 3)}, ValueError, "weight must be (out, 4), got (5, 3)"),
        ({"bias": torch.zeros(4)}, ValueError, "bias must have shape (5,), got (4,)"),
        ({"bias": torch.zeros(5, device="meta")}, ValueError, "bias must be on cpu, got meta"),
        (
            {"backend": "sdpa"},
            ValueError,
            "backend must be one of auto, reference, onednn, triton for gelu",
        ),
        ({"backend": "triton"}, RuntimeError, "triton needs tokens on a CUDA device, got cpu; use"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    good = {"tokens": ZEROS, "weight": torch.zeros(5, 4), "bias": torch.zeros(5)}
    with pytest.raises(error, match=re.escape(message)):
        linear_gelu(**{**good, **changes})
