"""Attention by its definition: scores, softmax, weighted values; in float64, the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels._torch.autocast import no_autocast
from ast_fast_kernels.attention.heads import split_heads


def attention_reference(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> Tensor:
    """Return attention with every intermediate in memory, computed in float32 or wider.

    Autocast changes nothing: half-precision q, k and v are widened, others stay as they are.

    Args:
        qkv: Shape (batch, tokens, 3, heads, head_dim).
        key_lengths: Keys that count in each clip, shape (batch,), or None.
        scale: Factor on the scores.
    """
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v, inside = split_heads(qkv.to(dtype), key_lengths)
    with no_autocast(qkv.device):
        scores = (q * scale) @ k.mT  # (batch, heads, queries, keys)
        if inside is not None:
            scores = scores.masked_fill(~inside, -torch.inf)
        attended = softmax(scores) @ v
    return attended.transpose(1, 2).to(qkv.dtype)


def softmax(scores: Tensor) -> Tensor:
    """Return exp(scores) over its sum, after subtracting the row's maximum."""
    weights = (scores - scores.amax(dim=-1, keepdim=True).detach()).exp()
    return weights / weights.sum(dim=-1, keepdim=True)
