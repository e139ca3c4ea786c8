from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from ast_fast_kernels import attention
from ast_fast_kernels._dispatch import BACKENDS
from ast_fast_kernels.testing.budgets import eps_bound, relative_norm

NAMES = [backend for op, backend in BACKENDS if op == "attention"]
SHAPES = {
    "one-token": (1, 1, 1, 8),
    "prime-tokens": (2, 3, 251, 64),
    "ast-tiny": (4, 4, 256, 32),
    "odd-head": (2, 2, 17, 20),
}


def qkv(shape: tuple[int, ...], keys: int | None = None, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, heads, tokens, dim = shape
    lengths = (tokens, keys or tokens, keys or tokens)
    return [
        torch.randn((batch, heads, n, dim), generator=generator, dtype=torch.float64)
        for n in lengths
    ]


def by_definition(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3], ids=["default-scale", "own-scale"])
def test_float64_is_the_definition(backend: str, shape, scale) -> None:
    q, k, v = qkv(shape)
    expected = by_definition(q, k, v, shape[-1] ** -0.5 if scale is None else scale)
    out = attention(q, k, v, scale=scale, backend=backend)
    assert relative_norm(out, expected) < 1e-13


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_forward_and_gradients_keep_to_their_dtype(backend: str, shape, dtype) -> None:
    exact = [x.to(dtype).double().requires_grad_() for x in qkv(shape)]
    rounded = [x.detach().to(dtype).requires_grad_() for x in exact]
    expected = by_definition(*exact, shape[-1] ** -0.5)
    out = attention(*rounded, backend=backend)
    assert out.dtype == dtype
    assert out.shape == shape
    # Half precisions round weights and output once or twice each, but sum in float32.
    bound = eps_bound(dtype, shape[-1]) if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert relative_norm(out, expected) < bound

    weight = qkv(shape, seed=1)[0].to(dtype)
    expected.backward(weight.double())
    out.backward(weight)
    scale = max(x.grad.norm().item() for x in exact)
    for ours, theirs in zip(rounded, exact, strict=True):
        # One token has no gradient in q and k, only rounding; hence the common scale.
        assert (ours.grad.double() - theirs.grad).norm().item() <= 4 * bound * scale


@pytest.mark.parametrize("backend", NAMES)
def test_keys_may_be_more_than_queries(backend: str) -> None:
    q, k, v = qkv((2, 3, 5, 16), keys=11)
    out = attention(q, k, v, backend=backend)
    assert relative_norm(out, by_definition(q, k, v, 0.25)) < 1e-13


@pytest.mark.parametrize("backend", NAMES)
def test_large_scores_do_not_overflow(backend: str) -> None:
    q, k, v = (x.float() for x in qkv((1, 2, 9, 8)))
    out = attention(100 * q, 100 * k, v, backend=backend)
    assert out.isfinite().all()
    expected = by_definition(1e4 * q.double(), k.double(), v.double(), 8**-0.5)
    # Scores near 1e4 are rounded to 1e-3, and so are the weights.
    assert relative_norm(out, expected) < 1e-2


@pytest.mark.parametrize("backend", NAMES)
def test_strided_heads_are_read_as_they_lie(backend: str) -> None:
    packed = torch.randn(2, 7, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    out = attention(q, k, v, backend=backend)
    dense = attention(q.contiguous(), k.contiguous(), v.contiguous(), backend=backend)
    torch.testing.assert_close(out, dense, rtol=0, atol=4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("backend", NAMES)
def test_empty_batch_gives_an_empty_batch(backend: str) -> None:
    q = torch.empty(0, 2, 3, 8)
    assert attention(q, q, q, backend=backend).shape == (0, 2, 3, 8)


@pytest.mark.parametrize("backend", NAMES)
def test_nan_in_a_value_stays_in_its_head(backend: str) -> None:
    q, k, v = qkv((1, 2, 4, 8))
    v[0, 0, 0, 0] = math.nan
    out = attention(q, k, v, backend=backend)
    assert out[0, 0, :, 0].isnan().all()
    assert out[0, 1].isfinite().all()


GOOD = torch.zeros(2, 3, 5, 8)


@pytest.mark.parametrize(
    ("q", "k", "v", "error", "message"),
    [
        (GOOD.numpy(), GOOD, GOOD, TypeError, "q must be a tensor, got ndarray"),
        (GOOD, GOOD, GOOD.long(), TypeError, "v must be a floating-point tensor, got int64"),
        (
            GOOD[0],
            GOOD,
            GOOD,
            ValueError,
            "q must be (batch, num_heads, num_tokens, head_dim), got (3, 5, 8)",
        ),
        (
            GOOD,
            GOOD[:, :, :0],
            GOOD,
            ValueError,
            "k must have at least 1 token and head_dim at least 1, got (2, 3, 0, 8)",
        ),
        (GOOD, GOOD.double(), GOOD, TypeError, "k must be float32, as q is, got float64"),
        (GOOD, GOOD, GOOD.to("meta"), ValueError, "v must be on cpu, as q is, got meta"),
        (
            GOOD,
            GOOD[:, :2],
            GOOD,
            ValueError,
            "k must have q's batch, num_heads and head_dim (2, 3, 8), got (2, 2, 8)",
        ),
        (
            GOOD,
            GOOD,
            GOOD[:, :, :4],
            ValueError,
            "v must have k's shape (2, 3, 5, 8), got (2, 3, 4, 8)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(q, k, v, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        attention(q, k, v)


def test_backend_that_attention_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, reference, sdpa for atte"):
        attention(GOOD, GOOD, GOOD, backend="numba")


def test_reference_computes_in_float32_under_autocast() -> None:
    q, k, v = (
        torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    expected = attention(q, k, v, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, k, v, backend="reference")
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)
