from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from ast_fast_kernels import attention
from ast_fast_kernels.testing.budgets import eps_bound, relative_norm

CPU_BACKENDS = ["reference", "sdpa"]
SHAPES = {  # (batch, tokens, heads, head_dim)
    "one-token": (1, 1, 1, 8),
    "prime-tokens": (2, 251, 3, 64),
    "ast-tiny": (4, 256, 4, 32),
    "odd-head": (2, 17, 2, 20),
}

backends = pytest.mark.parametrize("backend", CPU_BACKENDS)


def packed(shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    batch, tokens, *heads = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, tokens, 3, *heads), generator=generator, dtype=torch.float64)


def by_definition(qkv: Tensor, scale: float, key_lengths: list[int] | None = None) -> Tensor:
    q, k, v = qkv.unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if key_lengths is not None:
        for clip, length in enumerate(key_lengths):
            scores[clip, :, :, length:] = -math.inf
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


@backends
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3], ids=["default-scale", "own-scale"])
def test_float64_is_the_definition(backend: str, shape, scale) -> None:
    qkv = packed(shape)
    expected = by_definition(qkv, shape[-1] ** -0.5 if scale is None else scale)
    assert relative_norm(attention(qkv, scale=scale, backend=backend), expected) < 1e-13


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_forward_and_gradients_keep_to_their_dtype(backend: str, shape, dtype) -> None:
    rounded = packed(shape).to(dtype).requires_grad_()
    exact = rounded.detach().double().requires_grad_()
    expected = by_definition(exact, shape[-1] ** -0.5)
    out = attention(rounded, backend=backend)
    assert out.dtype == dtype
    assert out.shape == shape
    # Half precisions round weights and output once or twice each, but sum in float32.
    bound = eps_bound(dtype, shape[-1]) if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert relative_norm(out, expected) < bound

    weight = packed(shape, seed=1)[:, :, 0].to(dtype)
    expected.backward(weight.double())
    out.backward(weight)
    assert relative_norm(rounded.grad, exact.grad) <= 4 * bound


@backends
def test_keys_beyond_a_clip_s_length_are_not_seen(backend: str) -> None:
    lengths = [11, 1, 7]
    qkv = packed((3, 11, 2, 8))
    for clip, length in enumerate(lengths):
        qkv[clip, length:, 1:] = math.nan  # keys and values
    leaf = qkv.clone().requires_grad_()
    out = attention(leaf, key_lengths=lengths, backend=backend)
    clean = qkv.nan_to_num(0.0).requires_grad_()
    expected = by_definition(clean, 8**-0.5, lengths)
    assert relative_norm(out, expected) < 1e-13
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    values = torch.autograd.grad(out, leaf, weight)[0][:, :, 2]
    true = torch.autograd.grad(expected, clean, weight)[0][:, :, 2]
    assert relative_norm(values, true) < 1e-13


@backends
@pytest.mark.parametrize("kind", [list, torch.tensor], ids=["list", "tensor"])
def test_lengths_of_all_tokens_change_nothing(backend: str, kind) -> None:
    qkv = packed((2, 5, 2, 8))
    out = attention(qkv, key_lengths=kind([5, 5]), backend=backend)
    assert relative_norm(out, attention(qkv, backend=backend)) < 1e-15


@backends
def test_large_scores_do_not_overflow(backend: str) -> None:
    qkv = packed((1, 9, 2, 8)).float()
    qkv[:, :, :2] *= 100
    out = attention(qkv, backend=backend)
    assert out.isfinite().all()
    # Scores near 1e4 are rounded to 1e-3, and so are the weights.
    assert relative_norm(out, by_definition(qkv.double(), 8**-0.5)) < 1e-2


@backends
def test_strided_projections_are_read_as_they_lie(backend: str) -> None:
    wide = packed((2, 7, 4, 16)).float()
    for view in (wide[..., ::2], wide[:, ::2], wide.transpose(0, 1)):
        dense = attention(view.contiguous(), backend=backend)
        torch.testing.assert_close(attention(view, backend=backend), dense, rtol=0, atol=1e-6)


@backends
def test_empty_batch_gives_an_empty_batch(backend: str) -> None:
    qkv = torch.empty(0, 3, 3, 2, 8)
    assert attention(qkv, backend=backend).shape == (0, 3, 2, 8)
    assert attention(qkv, key_lengths=[], backend=backend).shape == (0, 3, 2, 8)


@backends
def test_nan_in_a_value_stays_in_its_head(backend: str) -> None:
    qkv = packed((1, 4, 2, 8))
    qkv[0, 0, 2, 0, 0] = math.nan
    out = attention(qkv, backend=backend)
    assert out[0, :, 0, 0].isnan().all()
    assert out[0, :, 1].isfinite().all()


GOOD = torch.zeros(2, 5, 3, 2, 8)


@pytest.mark.parametrize(
    ("qkv", "lengths", "error", "message"),
    [
        (GOOD.numpy(), None, TypeError, "qkv must be a tensor, got ndarray"),
        (GOOD.long(), None, TypeError, "qkv must be a floating-point tensor, got int64"),
        (
            GOOD[0],
            None,
            ValueError,
            "qkv must be (batch, num_tokens, 3, num_heads, head_dim), got (5, 3, 2, 8)",
        ),
        (
            GOOD[:, :, :2],
            None,
            ValueError,
            "qkv must be (batch, num_tokens, 3, num_heads, head_dim), got (2, 5, 2, 2, 8)",
        ),
        (
            GOOD[:, :0],
            None,
            ValueError,
            "qkv must have at least 1 token, num_heads and head_dim of at least 1, "
            "got (2, 0, 3, 2, 8)",
        ),
        (GOOD, [5, 6], ValueError, "key_lengths must be from 1 to num_tokens (5), got 6"),
        (GOOD, [0, 5], ValueError, "key_lengths must be from 1 to num_tokens (5), got 0"),
        (GOOD, [5], ValueError, "key_lengths must have shape (2,), got (1,)"),
        (GOOD, [1.0, 2.0], TypeError, "key_lengths must be integers, got float32"),
        (GOOD, [True, True], TypeError, "key_lengths must be integers, got bool"),
        (GOOD, "ab", TypeError, "key_lengths must be integers of shape (2,), got 'ab'"),
    ],
)
def test_what_does_not_fit_is_refused(qkv, lengths, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        attention(qkv, key_lengths=lengths)


def test_backend_that_attention_lacks_is_refused() -> None:
    message = "backend must be one of auto, reference, sdpa, numba, triton"
    with pytest.raises(ValueError, match=message):
        attention(GOOD, backend="flash")


def test_reference_computes_in_float32_under_autocast() -> None:
    qkv = packed((1, 5, 2, 8)).float()
    expected = attention(qkv, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(qkv, backend="reference")
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)


@backends
def test_compiled_code_gives_the_same(backend: str) -> None:
    qkv = packed((2, 17, 2, 8)).float()
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for lengths in (None, torch.tensor([17, 3])):
        out = compiled(qkv, key_lengths=lengths, backend=backend)
        torch.testing.assert_close(out, attention(qkv, key_lengths=lengths, backend=backend))
