"""From packed projections to heads, for backends that take queries, keys and values separately."""

from __future__ import annotations

import torch
from torch import Tensor


def split_heads(
    qkv: Tensor, key_lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return queries, keys and values, (batch, heads, tokens, head_dim), and which keys count.

    Keys and values that do not count are zeros: 0 times NaN would be NaN, forward or backward.

    Args:
        qkv: Shape (batch, tokens, 3, heads, head_dim).
        key_lengths: Keys that count in each clip, shape (batch,), or None.
    Returns:
        The three, and booleans, shape (batch, 1, 1, tokens), or None where all count.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if key_lengths is None:
        return q, k, v, None
    inside = torch.arange(qkv.shape[1], device=qkv.device) < key_lengths[:, None, None, None]
    beyond = ~inside.mT
    return q, k.masked_fill(beyond, 0.0), v.masked_fill(beyond, 0.0), inside
