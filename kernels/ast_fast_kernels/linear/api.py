"""A projection, as callers see it: every check, the choice of a backend."""

from __future__ import annotations

from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks, onednn


def linear(tokens: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """Compute tokens · weightᵀ + bias, as `torch.nn.functional.linear` does.

    torch multiplies float32 by MKL, which leaves half of an AMD CPU with AVX-512 unused; oneDNN,
    which torch ships too, does not. A call by oneDNN costs about 25 µs more, so torch's operator is
    faster below about 3 million multiply-adds; auto takes oneDNN there too. Differentiable in every
    tensor, any number of times.

    Args:
        tokens: Shape (..., width).
        weight: Shape (out, width).
        bias: Shape (out,).
        backend: `"auto"`, `"reference"` (torch's operator) or `"onednn"` (CPU, float32).
    Returns:
        Projected tokens, shape (..., out), of the matrix product's dtype.
    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape or a device does not fit, or `backend` is none of the above.
        RuntimeError: The backend asked for cannot run this input.
    """
    chosen = chosen_backend(tokens, weight, bias, backend=backend)
    projected: Tensor = _dispatch.load_backend("linear", chosen)(tokens, weight, bias)
    return projected


def chosen_backend(tokens: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> str:
    """Return the backend that `linear` runs for these arguments; raise the same errors."""
    checks.check_projection(tokens, weight, bias)
    return choose_backend(_dispatch.requested_backend("linear", backend), tokens, weight, bias)


def choose_backend(requested: str, tokens: Tensor, weight: Tensor, bias: Tensor) -> str:
    """Return the backend that runs; auto takes onednn on CPUs where it is faster."""
    obstacles = {"onednn": lambda: onednn.obstacle(requested, tokens, weight, bias)}
    return _dispatch.choose_kernel("linear", requested, tokens.device.type, obstacles, "reference")
