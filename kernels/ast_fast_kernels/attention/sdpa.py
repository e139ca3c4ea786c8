"""Attention by torch's own fused kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention_sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return attention as `scaled_dot_product_attention` computes it; arguments as the reference's.

    torch picks its kernel by device and dtype; on the CPU that is a flash attention.
    """
    return scaled_dot_product_attention(q, k, v, scale=scale)
