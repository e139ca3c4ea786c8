"""Triton's bias and GELU as torch operators, with autograd around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels import _operators
from ast_fast_kernels.gelu.triton_gpu import launch_bias_gelu_bwd, launch_bias_gelu_fwd


def linear_gelu_triton(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU of the projected tokens; arguments as the reference's."""
    hidden: Tensor = torch.ops.ast_fast.bias_gelu_fwd(functional.linear(tokens, weight), bias)
    return hidden


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1, tensor.shape[-1])


def _forward(x: Tensor, bias: Tensor) -> Tensor:
    return launch_bias_gelu_fwd(_rows(x), bias.detach().contiguous()).view(x.shape)


def _fake_forward(x: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    dx, dbias = launch_bias_gelu_bwd(_rows(dy), _rows(x), bias.detach().contiguous())
    return dx.view(x.shape), dbias


def _fake_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, bias = ctx.saved_tensors
    dx, dbias = torch.ops.ast_fast.bias_gelu_bwd(dy, x, bias)
    return dx, dbias.to(bias.dtype)


_operators.define("bias_gelu_fwd(Tensor x, Tensor bias) -> Tensor", _forward, _fake_forward)
_operators.define(
    "bias_gelu_bwd(Tensor dy, Tensor x, Tensor bias) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_operators.differentiate("bias_gelu_fwd", "bias_gelu_bwd", _keep, _gradient)
