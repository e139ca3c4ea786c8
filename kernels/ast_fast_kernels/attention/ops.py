"""Triton's attention as torch operators, one for each direction, with autograd around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels import _operators
from ast_fast_kernels.attention.triton_gpu import launch_attention_bwd, launch_attention_fwd


def attention_triton(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> Tensor:
    """Return attention as the Triton kernels compute it; arguments as the reference's."""
    device = qkv.device.type
    if torch.is_autocast_enabled(device):
        qkv = qkv.to(torch.get_autocast_dtype(device))
    # A clip's tokens are addressed by 32 bits, whatever other clips lie between them.
    if qkv.stride(-1) != 1 or qkv.shape[1] * qkv.stride(1) >= 2**31:
        qkv = qkv.contiguous()
    out: Tensor = torch.ops.ast_fast.attention_fwd(qkv, key_lengths, scale)[0]
    return out


def _forward(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return launch_attention_fwd(qkv.detach(), key_lengths, scale)


def _fake_forward(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    batch, tokens, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, head_dim)
    return out, qkv.new_empty(batch, heads, tokens, dtype=torch.float32)


def _backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, key_lengths: Tensor | None, scale: float
) -> Tensor:
    tensors = (grad.detach().contiguous(), qkv.detach(), out.detach(), lse.detach())
    return launch_attention_bwd(*tensors, key_lengths, scale)


def _fake_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, key_lengths: Tensor | None, scale: float
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, key_lengths, ctx.scale = inputs
    ctx.save_for_backward(qkv, *output, key_lengths)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    if grad is None:
        return None, None, None
    qkv, out, lse, key_lengths = ctx.saved_tensors
    dqkv = torch.ops.ast_fast.attention_bwd(grad, qkv, out, lse, key_lengths, ctx.scale)
    return dqkv, None, None


_operators.define(
    "attention_fwd(Tensor qkv, Tensor? key_lengths, float scale) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_operators.define(
    "attention_bwd(Tensor grad, Tensor qkv, Tensor out, Tensor lse, Tensor? key_lengths, "
    "float scale) -> Tensor",
    _backward,
    _fake_backward,
)
_operators.differentiate("attention_fwd", "attention_bwd", _keep, _gradient)
