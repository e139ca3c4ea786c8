"""Products of float32 by oneDNN, which torch brings beside MKL, as a differentiable operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ast_fast_kernels import _checks, _operators


def is_faster_here() -> bool:
    """Say whether oneDNN multiplies float32 faster than the MKL in torch, on this CPU.

    MKL keeps to AVX2 on CPUs that are not Intel's: 190 GFLOP/s where oneDNN does 400 (docs/log.md).
    """
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    name = str(capabilities.get("cpu_name", ""))
    return name.startswith("AMD") and bool(capabilities.get("avx512_f", False))


IS_FASTER = is_faster_here()
IS_THERE: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def obstacle(requested: str, tokens: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Say why oneDNN does not run a projection; None when it does.

    Args:
        requested: The backend asked for; auto does not take oneDNN where MKL is as fast.
        tokens: Shape (..., width).
        weight: Shape (out, width).
        bias: Shape (out,).
    """
    for name, tensor in (("tokens", tokens), ("weight", weight), ("bias", bias)):
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            kind = _checks.dtype_name(tensor.dtype)
            return f"onednn needs {name} in float32 on the CPU, got {kind} on {tensor.device}"
    if torch.is_autocast_enabled("cpu"):
        return "onednn needs float32, which autocast would take away"
    if not IS_THERE:
        return "onednn is not in this build of torch"
    if requested == "auto" and not IS_FASTER:
        return "torch's own products are as fast on this CPU"
    return _checks.transform_obstacle("onednn")


def product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return tokens · weightᵀ + bias; arguments as `functional.linear`'s."""
    projected: Tensor = torch.ops.ast_fast.linear_onednn(tokens, weight, bias)
    return projected


def run(
    tokens: Tensor, weight: Tensor, bias: Tensor | None, then: Literal["none", "gelu"] = "none"
) -> Tensor:
    """Return the same without a gradient, and its GELU if asked for."""
    tokens, weight = tokens.detach(), weight.detach()
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    bias = None if bias is None else bias.detach().contiguous()  # its strides are not looked at
    if tokens.numel() == 0 or weight.numel() == 0:  # sums of nothing, which oneDNN has not
        projected = torch.nn.functional.linear(tokens, weight, bias)
        return projected if then == "none" else torch.nn.functional.gelu(projected)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, then, [], "none")
    return result


def _fake(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return tokens.new_empty(*tokens.shape[:-1], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    tokens, weight = ctx.saved_tensors
    needs_tokens, needs_weight, needs_bias = ctx.needs_input_grad
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        product(grad, weight.T, None) if needs_tokens else None,
        _of_weight(rows, tokens.reshape(-1, tokens.shape[-1])) if needs_weight else None,
        rows.sum(dim=0) if needs_bias else None,
    )


def _of_weight(grad: Tensor, tokens: Tensor) -> Tensor:
    """Return gradᵀ · tokens, as oneDNN does it faster: with fewer rows than columns."""
    if grad.shape[1] > tokens.shape[1]:
        return product(tokens.T, grad.T, None).T
    return product(grad.T, tokens.T, None)


_operators.define("linear_onednn(Tensor tokens, Tensor weight, Tensor? bias) -> Tensor", run, _fake)
torch.library.register_autograd("ast_fast::linear_onednn", _gradient, setup_context=_keep)
