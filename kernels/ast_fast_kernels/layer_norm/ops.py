"""Triton's residual addition and layer normalisation as torch operators, with autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels import _operators
from ast_fast_kernels.layer_norm.triton_gpu import launch_layer_norm_bwd, launch_layer_norm_fwd


def add_layer_norm_triton(
    tokens: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the sum and its normalisation; arguments as the reference's."""
    device = tokens.device.type
    dtype = tokens.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    residual, normed = torch.ops.ast_fast.layer_norm_fwd(tokens, update, weight, bias, eps, dtype)[
        :2
    ]
    return (tokens if update is None else residual), normed


def _rows(tensor: Tensor) -> Tensor:
    """Return it as (rows, width), copied only where no such view has contiguous rows."""
    rows = tensor.detach().reshape(-1, tensor.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _forward(
    x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    residual, y, mean, rstd = launch_layer_norm_fwd(
        _rows(x), None if update is None else _rows(update), weight.detach().contiguous(),
        bias.detach().contiguous(), eps, dtype,
    )  # fmt: skip
    return residual if update is None else residual.view(x.shape), y.view(x.shape), mean, rstd


def _fake_forward(
    x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    residual = x.new_empty(0 if update is None else x.shape)
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return residual, x.new_empty(x.shape, dtype=dtype), mean, rstd


def _backward(
    dresidual: Tensor | None,
    dy: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    update_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dupdate, both = launch_layer_norm_bwd(
        None if dresidual is None else _rows(dresidual).contiguous(), _rows(dy).contiguous(),
        _rows(residual), weight.detach().contiguous(), mean, rstd, update_dtype,
    )  # fmt: skip
    return dx.view(residual.shape), dupdate, both


def _fake_backward(
    dresidual: Tensor | None,
    dy: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    update_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    own = update_dtype is not None and update_dtype != residual.dtype
    shape = (residual.numel() // residual.shape[-1], residual.shape[-1]) if own else (0,)
    return (
        residual.new_empty(residual.shape),
        residual.new_empty(shape, dtype=update_dtype or torch.get_default_dtype()),
        residual.new_empty(2, residual.shape[-1], dtype=torch.float32),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, update, weight, bias, _, _ = inputs
    residual, _, mean, rstd = output
    ctx.update_dtype = None if update is None else update.dtype
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x if update is None else residual, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, dresidual: Tensor | None, dy: Tensor | None, *_: None) -> tuple[Any, ...]:
    residual, weight, mean, rstd = ctx.saved_tensors
    if ctx.update_dtype is None:
        dresidual = None  # the sum was not an output: it is the tokens themselves
    if dy is None:
        dupdate = (
            None
            if ctx.update_dtype is None or dresidual is None
            else dresidual.to(ctx.update_dtype)
        )
        return dresidual, dupdate, None, None, None, None
    dx, dupdate, both = torch.ops.ast_fast.layer_norm_bwd(
        dresidual, dy, residual, weight, mean, rstd, ctx.update_dtype
    )
    if ctx.update_dtype is None:
        dupdate = None
    else:
        dupdate = dx if ctx.update_dtype == dx.dtype else dupdate.view(dx.shape)
    return dx, dupdate, both[0].to(weight.dtype), both[1].to(ctx.bias_dtype), None, None


_operators.define(
    "layer_norm_fwd(Tensor x, Tensor? update, Tensor weight, Tensor bias, float eps, "
    "ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_operators.define(
    "layer_norm_bwd(Tensor? dresidual, Tensor dy, Tensor residual, Tensor weight, Tensor mean, "
    "Tensor rstd, ScalarType? update_dtype) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_operators.differentiate("layer_norm_fwd", "layer_norm_bwd", _keep, _gradient)
