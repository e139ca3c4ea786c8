"""A projection with GELU by torch's own operators; in float64, the oracle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def linear_gelu_reference(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU (exact, by the error function) of the projected tokens.

    In place where no graph is kept: the projection is nobody else's, and a pass over fresh memory
    of its size takes as long as the function.

    Args:
        tokens: Shape (..., width).
        weight: Shape (hidden, width).
        bias: Shape (hidden,).
    """
    hidden = functional.linear(tokens, weight, bias)
    if hidden.requires_grad:  # its gradient needs the projection
        return functional.gelu(hidden)
    activated: Tensor = torch.ops.aten.gelu_(hidden)
    return activated
