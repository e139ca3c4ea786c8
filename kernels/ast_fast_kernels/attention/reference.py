"""Attention by its definition: scores, softmax, weighted values; run in float64, the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels._autocast import no_autocast


def attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return attention with every intermediate in memory, computed in float32 or wider.

    Autocast changes nothing: half-precision q, k and v are widened, others stay as they are.

    Args:
        q: Queries, shape (batch, num_heads, num_queries, head_dim).
        k: Keys, shape (batch, num_heads, num_keys, head_dim).
        v: Values, shaped as the keys.
        scale: Factor on the scores.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with no_autocast(q.device):
        scores = (q.to(dtype) * scale) @ k.to(dtype).mT  # (batch, num_heads, num_queries, num_keys)
        return (softmax(scores) @ v.to(dtype)).to(q.dtype)


def softmax(scores: Tensor) -> Tensor:
    """Return exp(scores) over its sum, the row's maximum taken out first."""
    weights = (scores - scores.amax(dim=-1, keepdim=True).detach()).exp()
    return weights / weights.sum(dim=-1, keepdim=True)
