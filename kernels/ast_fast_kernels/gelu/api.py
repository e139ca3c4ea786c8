"""A projection with GELU, as callers see it: every check, the choice of a backend."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks, onednn
from ast_fast_kernels._torch.autocast import autocast_dtype
from ast_fast_kernels._torch.calls import Calls


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
    hidden: Tensor
    if not torch.compiler.is_compiling() and _calls.known:
        again = _calls.known.get(_key(tokens, weight, bias, backend))
        if again is not None:
            hidden = again(tokens, weight, bias)
            return hidden
    chosen = chosen_backend(tokens, weight, bias, backend=backend)
    if chosen == "triton" and (key := _key(tokens, weight, bias, backend)) is not None:
        return _first(tokens, weight, bias, key)
    hidden = _dispatch.load_backend("gelu", chosen)(tokens, weight, bias)
    return hidden


_calls = Calls()


def _key(tokens: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Hashable:
    """Return all that the checks look at; None where an operator may be needed."""
    if not (checks.are_light(tokens, weight, bias) and bias.is_contiguous()):
        return None
    return (
        _dispatch.requested_backend("gelu", backend), autocast_dtype(tokens),
        tokens.shape, tokens.dtype, tokens.get_device(),
        weight.shape, weight.dtype, weight.get_device(),
        bias.shape, bias.dtype, bias.get_device(),
    )  # fmt: skip


def _first(tokens: Tensor, weight: Tensor, bias: Tensor, key: Hashable) -> Tensor:
    """Run a call by Triton, and keep what runs calls like it."""
    from ast_fast_kernels.gelu import triton_direct, triton_gpu  # late: they load Triton

    product = functional.linear(tokens, weight)
    if product.numel() == 0:
        return triton_gpu.bias_gelu(product, bias)
    call = triton_direct.prepare(product.shape, product.device, product.dtype, bias.dtype)
    hidden = call.activate(product, bias)
    if call.is_compiled:
        _calls.keep(key, call)
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
