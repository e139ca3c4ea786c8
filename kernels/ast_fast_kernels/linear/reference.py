"""A projection by torch's own operator; in float64, the oracle."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def linear_reference(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return tokens · weightᵀ + bias.

    Args:
        tokens: Shape (..., width).
        weight: Shape (out, width).
        bias: Shape (out,).
    """
    return functional.linear(tokens, weight, bias)
