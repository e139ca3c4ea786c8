"""A projection with GELU, as callers see it: every check, the choice of a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels import _checks, _dispatch


def linear_gelu(tokens: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """Compute GELU(tokens · weightᵀ + bias), the first half of a transformer's MLP.

    GELU is the exact one, by the error function. The matrix product is torch's; Triton adds the
    bias and applies GELU in one pass, forward and backward. Differentiable in every tensor.

    Args:
        tokens: Shape (..., width).
        weight: Shape (hidden, width).
        bias: Shape (hidden,).
        backend: `"auto"`, `"reference"` (torch's operators) or `"triton"` (CUDA).
    Returns:
        Hidden values, shape (..., hidden), of the matrix product's dtype.
    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError: A shape or a device does not fit, or `backend` is none of the above.
        RuntimeError: The backend asked for cannot run this input.
    """
    _check(tokens, weight, bias)
    chosen = choose_backend(_dispatch.requested_backend("gelu", backend), tokens)
    hidden: Tensor = _dispatch.load_backend("gelu", chosen)(tokens, weight, bias)
    return hidden


def choose_backend(requested: str, tokens: Tensor) -> str:
    """Return the backend that runs; auto takes triton for CUDA tensors that it can take."""
    return _dispatch.choose_kernel(
        "gelu", requested, tokens.device, {"triton": lambda: _obstacle(tokens)}, "reference"
    )


def _obstacle(tokens: Tensor) -> str | None:
    """Say why Triton cannot run this input; None when it can."""
    obstacle = _checks.triton_obstacle("tokens", tokens)
    if obstacle is None and tokens.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        kind = _checks.dtype_name(tokens.dtype)
        obstacle = f"triton needs tokens in float32, bfloat16 or float16, got {kind}"
    return obstacle


def _check(tokens: Tensor, weight: Tensor, bias: Tensor) -> None:
    for name, tensor in (("tokens", tokens), ("weight", weight), ("bias", bias)):
        _checks.check_floating(name, tensor)
        if tensor.device != tokens.device:
            raise ValueError(f"{name} must be on {tokens.device}, got {tensor.device}")
    if tokens.dim() == 0:
        raise ValueError("tokens must be (..., width), got ()")
    if weight.dim() != 2 or weight.shape[1] != tokens.shape[-1]:
        raise ValueError(f"weight must be (hidden, {tokens.shape[-1]}), got {tuple(weight.shape)}")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
