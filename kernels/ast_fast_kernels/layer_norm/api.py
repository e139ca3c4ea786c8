"""Residual addition with layer normalisation, as callers see it: checks, choice of a backend."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.autocast import autocast_dtype
from ast_fast_kernels._torch.calls import Calls

if TYPE_CHECKING:
    from ast_fast_kernels.layer_norm.triton_direct import AddLayerNorm

MOST_WIDE = 8192
"""Widest row that a Triton program holds in registers."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def add_layer_norm(
    tokens: Tensor,
    update: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute `residual = tokens + update` and its layer normalisation, in one pass.

    In a pre-norm transformer, this is where a block's update joins the residual stream and the next
    block reads it. Differentiable in every tensor.

    Args:
        tokens: The residual stream, shape (..., width).
        update: What is added to it, the same shape; None adds nothing.
        weight: Scale of the normalised values, shape (width,).
        bias: Shift of the normalised values, shape (width,).
        eps: Added to the variance.
        backend: `"auto"`, `"reference"` (torch's operators) or `"triton"` (CUDA).
    Returns:
        The residual, in the tokens' dtype (promoted as torch does, if the update's differs), and
        its normalisation. Triton under autocast gives the normalisation in autocast's dtype, to
        which a matrix product would cast it.
    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape or a device does not fit, or `backend` is none of the above.
        RuntimeError: The backend asked for cannot run this input.
    """
    result: tuple[Tensor, Tensor]
    if not torch.compiler.is_compiling() and _calls.known:
        again = _calls.known.get(_key(tokens, update, weight, bias, eps, backend))
        if again is not None:
            result = again(tokens, update, weight, bias)
            return result
    chosen = chosen_backend(tokens, update, weight, bias, backend=backend)
    if chosen == "triton" and not torch.compiler.is_compiling() and tokens.numel():
        key = _key(tokens, update, weight, bias, eps, backend)
        if key is not None:
            call = _prepared(tokens, update, weight, bias, eps)
            result = call(tokens, update, weight, bias)
            if call.is_compiled:
                _calls.keep(key, call)
            return result
    run = _dispatch.load_backend("layer_norm", chosen)
    result = run(tokens, update, weight, bias, eps)
    return result


_calls = Calls()


def _key(
    tokens: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float, backend: str
) -> Hashable:
    """Return all that the checks look at; None where an operator may be needed."""
    if update is None:
        is_light = checks.are_light(tokens, weight, bias)
        of_update = None
    else:
        is_light = (
            checks.are_light(tokens, update, weight, bias)
            and update.is_contiguous()
            and update.shape == tokens.shape
        )
        of_update = update.dtype, update.get_device()
    if not (
        is_light
        and type(eps) is float
        and tokens.is_contiguous()
        and weight.is_contiguous()
        and bias.is_contiguous()
    ):
        return None
    return (
        _dispatch.requested_backend("layer_norm", backend), eps,
        autocast_dtype(tokens) if _is_any_autocast_enabled() else None, of_update,
        tokens.shape, tokens.dtype, tokens.get_device(),
        weight.shape, weight.dtype, weight.get_device(),
        bias.shape, bias.dtype, bias.get_device(),
    )  # fmt: skip


def _prepared(
    tokens: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> AddLayerNorm:
    from ast_fast_kernels.layer_norm.triton_direct import prepare  # late: it loads Triton

    dtypes = (tokens.dtype, None if update is None else update.dtype, weight.dtype, bias.dtype)
    normed = autocast_dtype(tokens) or tokens.dtype
    return prepare(tokens.shape, tokens.device, dtypes, normed, eps)


def chosen_backend(
    tokens: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, *, backend: str = "auto"
) -> str:
    """Return the backend that `add_layer_norm` runs for these arguments; raise the same errors."""
    _check(tokens, update, weight, bias)
    requested = _dispatch.requested_backend("layer_norm", backend)
    return choose_backend(requested, tokens, update)


def choose_backend(requested: str, tokens: Tensor, update: Tensor | None = None) -> str:
    """Return the backend that runs; auto takes triton for CUDA tensors that it can take."""
    return _dispatch.choose_kernel(
        "layer_norm",
        requested,
        tokens.device.type,
        {"triton": lambda: _obstacle(tokens, update)},
        "reference",
    )


def _obstacle(tokens: Tensor, update: Tensor | None) -> str | None:
    """Say why Triton cannot run this input; None when it can."""
    obstacle = checks.triton_obstacle("tokens", tokens)
    if obstacle is not None:
        return obstacle
    for name, tensor in (("tokens", tokens), ("update", update)):
        if tensor is not None and tensor.dtype not in _DTYPES:
            kind = checks.dtype_name(tensor.dtype)
            return f"triton needs {name} in float32, bfloat16 or float16, got {kind}"
    if update is not None and torch.promote_types(tokens.dtype, update.dtype) != tokens.dtype:
        kinds = f"{checks.dtype_name(tokens.dtype)} + {checks.dtype_name(update.dtype)}"
        return f"triton needs tokens + update to have the tokens' dtype, got {kinds}"
    if tokens.shape[-1] > MOST_WIDE:
        return f"triton needs a width of at most {MOST_WIDE}, got {tokens.shape[-1]}"
    return None


def _check(tokens: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    checks.check_floating("tokens", tokens)
    if tokens.dim() == 0 or tokens.shape[-1] == 0:
        raise ValueError(
            f"tokens must be (..., width) with a width of at least 1, got {tuple(tokens.shape)}"
        )
    expected = {"update": tokens.shape, "weight": tokens.shape[-1:], "bias": tokens.shape[-1:]}
    for name, tensor in (("update", update), ("weight", weight), ("bias", bias)):
        if name == "update" and tensor is None:
            continue
        checks.check_floating(name, tensor)
        assert tensor is not None
        if tensor.shape != expected[name]:
            shape = tuple(expected[name])
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != tokens.device:
            raise ValueError(f"{name} must be on {tokens.device}, got {tensor.device}")
