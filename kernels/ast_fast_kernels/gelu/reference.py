"""A projection with GELU by torch's own operators; in float64, the oracle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels._torch import checks


def linear_gelu_reference(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU (exact, by the error function) of the projected tokens.

    GELU works in place if no graph is kept: nothing else holds the projection, and a pass over
    fresh memory of its size takes as long as the function. Transforms and other layouts have no
    rules for that.

    Args:
        tokens: Shape (..., width).
        weight: Shape (hidden, width).
        bias: Shape (hidden,).
    """
    hidden = functional.linear(tokens, weight, bias)
    needs_projection = hidden.requires_grad  # its gradient does
    if needs_projection or checks.is_transformed() or not checks.is_strided(hidden):
        return functional.gelu(hidden)
    activated: Tensor = torch.ops.aten.gelu_(hidden)
    return activated
