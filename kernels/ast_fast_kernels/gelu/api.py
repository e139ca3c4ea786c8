"""A projection with GELU, as callers see it: every check, the choice of a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks, onednn


def linear_gelu(tokens: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """Compute GELU(tokens · weightᵀ + bias), the first half of a transformer's MLP.

    GELU is exact, by the error function. The matrix product is torch's, or oneDNN's as in `linear`.
    Triton adds the bias and applies GELU in one pass, forward and backward; oneDNN does so forward
    if no graph is kept. Differentiable in every tensor.

    Args:
        tokens: Shape (..., width).
        weight: Shape (hidden, width).
        bias: Shape (hidden,).
        backend: `"auto"`, `"reference"` (torch's operators), `"onednn"` (CPU, float32) or
            `"triton"` (CUDA).
    Returns:
        Hidden values, shape (..., hidden), of the matrix product's dtype.
    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape or a device does not fit, or `backend` is none of the above.
        RuntimeError: The backend asked for cannot run this input.
    """
    chosen = chosen_backend(tokens, weight, bias, backend=backend)
    hidden: Tensor = _dispatch.load_backend("gelu", chosen)(tokens, weight, bias)
    return hidden


def chosen_backend(tokens: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> str:
    """Return the backend that `linear_gelu` runs for these arguments; raise the same errors."""
    checks.check_projection(tokens, weight, bias)
    return choose_backend(_dispatch.requested_backend("gelu", backend), tokens, weight, bias)


def choose_backend(requested: str, tokens: Tensor, weight: Tensor, bias: Tensor) -> str:
    """Return the backend that runs.

    If they can run the input, auto takes triton on CUDA, and onednn on CPUs where it is faster.
    """
    obstacles = {
        "onednn": lambda: onednn.obstacle(requested, tokens, weight, bias),
        "triton": lambda: _triton_obstacle(tokens),
    }
    return _dispatch.choose_kernel("gelu", requested, tokens.device.type, obstacles, "reference")


def _triton_obstacle(tokens: Tensor) -> str | None:
    """Say why Triton cannot run this input; None when it can."""
    obstacle = checks.triton_obstacle("tokens", tokens)
    if obstacle is None and tokens.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        kind = checks.dtype_name(tokens.dtype)
        obstacle = f"triton needs tokens in float32, bfloat16 or float16, got {kind}"
    return obstacle
