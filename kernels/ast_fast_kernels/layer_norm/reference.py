"""Residual addition and layer normalisation by torch's own operators; in float64, the oracle."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm


def add_layer_norm_reference(
    tokens: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the sum and its normalisation.

    Args:
        tokens: Shape (..., width).
        update: The same shape, or None for nothing.
        weight: Shape (width,).
        bias: Shape (width,).
        eps: Added to the variance.
    """
    residual = tokens if update is None else tokens + update
    return residual, layer_norm(residual, weight.shape, weight, bias, eps)
