"""Attention by torch's own operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ast_fast_kernels._torch.autocast import no_autocast
from ast_fast_kernels.attention.heads import split_heads


def attention_sdpa(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> Tensor:
    """Return attention as `scaled_dot_product_attention` computes it; arguments as the reference's.

    torch picks its kernel by device and dtype; on the CPU that is a flash attention. In bfloat16 on
    the CPU we compute plain products around a softmax instead. They run on a CPU's matrix units, if
    it has them; flash attention's backward pass takes up to five times as long.
    """
    q, k, v, inside = split_heads(qkv, key_lengths)
    if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16:
        return _by_products(q, k, v, inside, scale).transpose(1, 2)
    return scaled_dot_product_attention(q, k, v, attn_mask=inside, scale=scale).transpose(1, 2)


def _by_products(q: Tensor, k: Tensor, v: Tensor, inside: Tensor | None, scale: float) -> Tensor:
    with no_autocast(q.device):  # autocast would run the softmax in float32: twice the time in all
        scores = (q * scale).contiguous() @ k.contiguous().mT
        if inside is not None:
            scores = scores.masked_fill(~inside, -torch.inf)
        return scores.softmax(dim=-1) @ v.contiguous()
