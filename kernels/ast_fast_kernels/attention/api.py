"""Attention as callers see it: every check, the choice of a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """Compute softmax(q · kᵀ · scale) · v for every head.

    No mask, no dropout, not causal: every query sees every key. Differentiable.

    Args:
        q: Queries, shape (batch, num_heads, num_tokens, head_dim).
        k: Keys, the same shape; the number of tokens may differ from the queries'.
        v: Values, shaped as the keys.
        scale: Factor on the scores; None is head_dim ** -0.5.
        backend: `"auto"`, `"reference"` (softmax written out) or `"sdpa"`
            (`scaled_dot_product_attention`).
    Returns:
        Weighted values, of the queries' shape, device and dtype.
    Raises:
        TypeError: q, k or v is no floating-point tensor, or their dtypes differ.
        ValueError: Shapes or devices do not fit, or `backend` is none of the above.
    """
    _check(q, k, v)
    chosen = choose_backend(_dispatch.requested_backend("attention", backend))
    run = _dispatch.load_backend("attention", chosen)
    out: Tensor = run(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
    return out


def choose_backend(requested: str) -> str:
    """Return the backend that runs; auto takes sdpa."""
    if requested != "auto":
        return requested
    _dispatch.log_choice("attention", "sdpa")
    return "sdpa"


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_name(tensor.dtype)}")
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must be (batch, num_heads, num_tokens, head_dim), "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.shape[-2] < 1 or tensor.shape[-1] < 1:
            raise ValueError(
                f"{name} must have at least 1 token and head_dim at least 1, "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} must be {_name(q.dtype)}, as q is, got {_name(tensor.dtype)}")
        if tensor.device != q.device:
            raise ValueError(f"{name} must be on {q.device}, as q is, got {tensor.device}")
    if k.shape[:2] != q.shape[:2] or k.shape[-1] != q.shape[-1]:
        raise ValueError(
            "k must have q's batch, num_heads and head_dim "
            f"{(*q.shape[:2], q.shape[-1])}, got {(*k.shape[:2], k.shape[-1])}"
        )
    if v.shape != k.shape:
        raise ValueError(f"v must have k's shape {tuple(k.shape)}, got {tuple(v.shape)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
