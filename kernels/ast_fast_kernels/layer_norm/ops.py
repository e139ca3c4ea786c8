"""Layer normalisation's kernels as torch operators, one a direction, with autograd around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels._torch import operators

Forward = Callable[
    [Tensor, Tensor | None, Tensor, Tensor, float, torch.dtype],
    tuple[Tensor, Tensor],
]
Backward = Callable[
    [Tensor | None, Tensor, Tensor, Tensor, float, torch.dtype | None],
    tuple[Tensor, Tensor, Tensor],
]


def define_add_layer_norm(name: str, forward: Forward, backward: Backward) -> Any:
    """Register `ast_fast::<name>_fwd` and `ast_fast::<name>_bwd`, and return the first.

    Args:
        name: The operators' name.
        forward: Takes rows of tokens, of an update (or None), weight, bias, eps and the result's
            dtype; gives the sum (empty without an update) and its normalisation.
        backward: Takes the gradients of the sum (or None) and of the normalisation, the sum,
            weight, eps and the update's dtype (or None); gives the gradients of
            the sum, of the update (empty if of the sum's dtype) and of weight and bias, (2, width).
    """

    def run_forward(
        x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        residual, y = forward(
            _rows(x), None if update is None else _rows(update), weight.detach().contiguous(),
            bias.detach().contiguous(), eps, dtype,
        )  # fmt: skip
        return residual if update is None else residual.view(x.shape), y.view(x.shape)

    def run_backward(
        dresidual: Tensor | None, dy: Tensor, residual: Tensor, weight: Tensor, eps: float,
        update_dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        dx, dupdate, both = backward(
            None if dresidual is None else _rows(dresidual).contiguous(), _rows(dy).contiguous(),
            _rows(residual), weight.detach().contiguous(), eps, update_dtype,
        )  # fmt: skip
        return dx.view(residual.shape), dupdate, both

    def gradient(ctx: Any, dresidual: Tensor | None, dy: Tensor | None) -> tuple[Any, ...]:
        update_dtype = ctx.update_dtype
        if update_dtype is None:
            dresidual = None  # the sum was not an output: it is the tokens themselves
        if dy is None:
            return *gradients_of_sum(dresidual, update_dtype), None, None, None, None
        residual, weight = ctx.saved_tensors
        dx, dupdate, both = backward_operator(
            dresidual, dy, residual, weight, ctx.eps, update_dtype
        )
        if update_dtype is None:
            dupdate = None
        else:
            dupdate = dx if update_dtype == dx.dtype else dupdate.view(dx.shape)
        return dx, dupdate, both[0].to(weight.dtype), both[1].to(ctx.bias_dtype), None, None

    operators.define(
        f"{name}_fwd(Tensor x, Tensor? update, Tensor weight, Tensor bias, float eps, "
        "ScalarType dtype) -> (Tensor, Tensor)",
        run_forward,
        _fake_forward,
    )
    operators.define(
        f"{name}_bwd(Tensor? dresidual, Tensor dy, Tensor residual, Tensor weight, float eps, "
        "ScalarType? update_dtype) -> (Tensor, Tensor, Tensor)",
        run_backward,
        _fake_backward,
    )
    operators.differentiate(f"{name}_fwd", f"{name}_bwd", _keep, gradient)
    backward_operator = getattr(torch.ops.ast_fast, f"{name}_bwd")
    return getattr(torch.ops.ast_fast, f"{name}_fwd")


def gradients_of_sum(
    dresidual: Tensor | None, update_dtype: torch.dtype | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of tokens and update where the normalisation is not used."""
    if dresidual is None or update_dtype is None:
        return dresidual, None
    return dresidual, dresidual.to(update_dtype)


def _rows(tensor: Tensor) -> Tensor:
    """Return the tensor as (rows, width), copied only if no such view has contiguous rows."""
    rows = tensor.detach().reshape(-1, tensor.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _fake_forward(
    x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    residual = x.new_empty(0 if update is None else x.shape)
    return residual, x.new_empty(x.shape, dtype=dtype)


def _fake_backward(
    dresidual: Tensor | None,
    dy: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
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
    x, update, weight, bias, eps, _ = inputs
    ctx.update_dtype = None if update is None else update.dtype
    ctx.bias_dtype = bias.dtype
    ctx.eps = eps
    ctx.save_for_backward(x if update is None else output[0], weight)
    ctx.set_materialize_grads(False)
