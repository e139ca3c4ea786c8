"""A stem's kernels as torch operators, one for each direction, with autograd around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels._torch import operators

Forward = Callable[[Tensor, Tensor, float], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def define_norm_gelu_conv(name: str, forward: Forward, backward: Backward) -> Any:
    """Register `ast_fast::<name>_fwd` and `ast_fast::<name>_bwd`, and return the first.

    Args:
        name: The operators' name.
        forward: Takes cells, parameters and eps; gives the joined cells, contiguous.
        backward: Takes the result's gradient and what forward took; gives the gradients of the
            cells and of the parameters, contiguous.
    """

    def run_forward(cells: Tensor, parameters: Tensor, eps: float) -> Tensor:
        return forward(cells.detach(), parameters.detach(), eps)

    def fake_forward(cells: Tensor, parameters: Tensor, eps: float) -> Tensor:
        batch, freq, time, width = cells.shape
        return cells.new_empty(batch, freq // 2, time // 2, 4 * width)

    def run_backward(
        grad: Tensor, cells: Tensor, parameters: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return backward(grad.detach(), cells.detach(), parameters.detach(), eps)

    def fake_backward(
        grad: Tensor, cells: Tensor, parameters: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return cells.new_empty(cells.shape), parameters.new_empty(parameters.shape)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        cells, parameters, ctx.eps = inputs
        ctx.save_for_backward(cells, parameters)

    def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        cells, parameters = ctx.saved_tensors
        dcells, dparameters = backward_operator(grad, cells, parameters, ctx.eps)
        return dcells, dparameters, None

    operators.define(
        f"{name}_fwd(Tensor cells, Tensor parameters, float eps) -> Tensor",
        run_forward,
        fake_forward,
    )
    operators.define(
        f"{name}_bwd(Tensor grad, Tensor cells, Tensor parameters, float eps) -> (Tensor, Tensor)",
        run_backward,
        fake_backward,
    )
    operators.differentiate(f"{name}_fwd", f"{name}_bwd", keep, gradient)
    backward_operator = getattr(torch.ops.ast_fast, f"{name}_bwd")
    return getattr(torch.ops.ast_fast, f"{name}_fwd")
