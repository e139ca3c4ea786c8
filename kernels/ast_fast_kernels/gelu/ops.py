"""Bias and GELU's kernels as torch operators, one for each direction, with autograd around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels._torch import operators

Forward = Callable[[Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def define_bias_gelu(name: str, forward: Forward, backward: Backward) -> Any:
    """Register `ast_fast::<name>_fwd` and `ast_fast::<name>_bwd`, and return the first.

    Args:
        name: The operators' name.
        forward: Takes x, contiguous rows of shape (rows, hidden), and bias; gives GELU(x + bias).
        backward: Takes the result's gradient and what forward took; gives the gradients of x, in
            its dtype, and of bias, in float32.
    """

    def run_forward(x: Tensor, bias: Tensor) -> Tensor:
        return forward(_rows(x), bias.detach().contiguous()).view(x.shape)

    def fake_forward(x: Tensor, bias: Tensor) -> Tensor:
        return x.new_empty(x.shape)

    def run_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        dx, dbias = backward(_rows(dy), _rows(x), bias.detach().contiguous())
        return dx.view(x.shape), dbias

    def fake_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape), bias.new_empty(bias.shape, dtype=torch.float32)

    def gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        dx, dbias = backward_operator(dy, x, bias)
        return dx, dbias.to(bias.dtype)

    operators.define(f"{name}_fwd(Tensor x, Tensor bias) -> Tensor", run_forward, fake_forward)
    operators.define(
        f"{name}_bwd(Tensor dy, Tensor x, Tensor bias) -> (Tensor, Tensor)",
        run_backward,
        fake_backward,
    )
    operators.differentiate(f"{name}_fwd", f"{name}_bwd", _keep, gradient)
    backward_operator = getattr(torch.ops.ast_fast, f"{name}_bwd")
    return getattr(torch.ops.ast_fast, f"{name}_fwd")


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1, tensor.shape[-1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
