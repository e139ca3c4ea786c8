"""Attention by torch's own fused kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ast_fast_kernels.attention.heads import split_heads


def attention_sdpa(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> Tensor:
    """Return attention as `scaled_dot_product_attention` computes it; arguments as the reference's.

    torch picks its kernel by device and dtype; on the CPU that is a flash attention.
    """
    q, k, v, inside = split_heads(qkv, key_lengths)
    return scaled_dot_product_attention(q, k, v, attn_mask=inside, scale=scale).transpose(1, 2)
