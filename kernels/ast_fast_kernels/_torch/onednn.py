"""Projections of float32 by oneDNN, which torch ships with MKL, as torch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels._torch import checks, operators
from ast_fast_kernels._torch.tracing import constant_in_graphs

HAS_MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
IS_THERE: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def is_faster_here() -> bool:
    """Say whether oneDNN multiplies float32 faster than the MKL in torch, on this CPU.

    MKL uses only AVX2 on CPUs other than Intel's: 190 GFLOP/s against oneDNN's 400 (docs/log.md).
    """
    capabilities = checks.cpu_capabilities()
    is_amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
    return is_amd and bool(capabilities.get("avx512_f", False)) and HAS_MKL


IS_FASTER = is_faster_here()


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
            kind = checks.dtype_name(tensor.dtype)
            return f"onednn needs {name} in float32 on the CPU, got {kind} on {tensor.device}"
        if not checks.is_strided(tensor):
            return f"onednn needs {name} to be dense and strided"
    if torch.is_autocast_enabled("cpu"):
        return "onednn needs float32, which autocast would lower"
    if not IS_THERE:
        return "onednn is not in this build of torch"
    if requested == "auto" and not (IS_FASTER and _is_enabled()):
        return "torch's own products are as fast on this CPU, or oneDNN is switched off"
    return checks.transform_obstacle("onednn")


@constant_in_graphs
def _is_enabled() -> bool:
    """Whether torch.backends.mkldnn is on; torch.export switches it off while it traces."""
    return bool(torch.backends.mkldnn.enabled)


def project(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return tokens · weightᵀ + bias; arguments as `functional.linear`'s."""
    projected: Tensor = torch.ops.ast_fast.linear_onednn(tokens, weight, bias)
    return projected


def project_gelu(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU of the same in one pass; without a gradient."""
    hidden: Tensor = torch.ops.ast_fast.linear_gelu_onednn(tokens, weight, bias)
    return hidden


def _run(tokens: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    tokens, weight = tokens.detach(), weight.detach()
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    bias = None if bias is None else bias.detach().contiguous()  # oneDNN ignores its strides
    if tokens.numel() == 0 or weight.numel() == 0:  # empty sums, which oneDNN does not support
        projected = functional.linear(tokens, weight, bias)
        return projected if then == "none" else functional.gelu(projected)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, then, [], "none")
    return result


def _run_gelu(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _run(tokens, weight, bias, "gelu")


def _fake(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return tokens.new_empty(*tokens.shape[:-1], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    needs_tokens, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(inputs[0] if needs_weight else None, inputs[1] if needs_tokens else None)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    tokens, weight = ctx.saved_tensors
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        None if weight is None else project(grad, weight.T, None),
        None if tokens is None else _of_weight(rows, tokens.reshape(-1, tokens.shape[-1])),
        rows.sum(dim=0) if ctx.needs_input_grad[2] else None,
    )


def _of_weight(grad: Tensor, tokens: Tensor) -> Tensor:
    """Return gradᵀ · tokens, computed with no more rows than columns: oneDNN's faster way."""
    if grad.shape[1] > tokens.shape[1]:
        return project(tokens.T, grad.T, None).T
    return project(grad.T, tokens.T, None)


operators.define("linear_onednn(Tensor tokens, Tensor weight, Tensor? bias) -> Tensor", _run, _fake)
torch.library.register_autograd("ast_fast::linear_onednn", _gradient, setup_context=_keep)
operators.define(
    "linear_gelu_onednn(Tensor tokens, Tensor weight, Tensor bias) -> Tensor", _run_gelu, _fake
)
