"""A projection with GELU by torch's own operators; in float64, the oracle."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def linear_gelu_reference(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU (exact, by the error function) of the projected tokens.

    Args:
        tokens: Shape (..., width).
        weight: Shape (hidden, width).
        bias: Shape (hidden,).
    """
    return functional.gelu(functional.linear(tokens, weight, bias))
