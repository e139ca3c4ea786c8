"""Attention's kernels as torch operators, one for each direction, with autograd around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels._torch import operators

Forward = Callable[[Tensor, Tensor | None, float], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def define_attention(
    name: str, forward: Forward, backward: Backward, stats_shape: tuple[int, ...]
) -> Any:
    """Register `ast_fast::<name>_fwd` and `ast_fast::<name>_bwd`, and return the first.

    Args:
        name: The operators' name.
        forward: Takes qkv, key_lengths and scale; gives the result, contiguous, and the float32
            numbers of each query that backward needs.
        backward: Takes the result's gradient, qkv, what forward gave, key_lengths and scale; gives
            the gradient of qkv, contiguous.
        stats_shape: Shape of those numbers between (batch, heads) and tokens.
    """

    def run_forward(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        return forward(qkv.detach(), key_lengths, scale)

    def fake_forward(
        qkv: Tensor, key_lengths: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        batch, tokens, _, heads, head_dim = qkv.shape
        out = qkv.new_empty(batch, tokens, heads, head_dim)
        return out, qkv.new_empty(batch, heads, *stats_shape, tokens, dtype=torch.float32)

    def run_backward(
        grad: Tensor, qkv: Tensor, out: Tensor, stats: Tensor, key_lengths: Tensor | None,
        scale: float,
    ) -> Tensor:  # fmt: skip
        grad, qkv, out, stats = (tensor.detach() for tensor in (grad, qkv, out, stats))
        return backward(grad, qkv, out, stats, key_lengths, scale)

    def fake_backward(
        grad: Tensor, qkv: Tensor, out: Tensor, stats: Tensor, key_lengths: Tensor | None,
        scale: float,
    ) -> Tensor:  # fmt: skip
        return qkv.new_empty(qkv.shape)

    def gradient(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        if grad is None:
            return None, None, None
        qkv, out, stats, key_lengths = ctx.saved_tensors
        dqkv = backward_operator(grad, qkv, out, stats, key_lengths, ctx.scale)
        return dqkv, None, None

    operators.define(
        f"{name}_fwd(Tensor qkv, Tensor? key_lengths, float scale) -> (Tensor, Tensor)",
        run_forward,
        fake_forward,
    )
    operators.define(
        f"{name}_bwd(Tensor grad, Tensor qkv, Tensor out, Tensor stats, Tensor? key_lengths, "
        "float scale) -> Tensor",
        run_backward,
        fake_backward,
    )
    operators.differentiate(f"{name}_fwd", f"{name}_bwd", _keep, gradient)
    backward_operator = getattr(torch.ops.ast_fast, f"{name}_bwd")
    return getattr(torch.ops.ast_fast, f"{name}_fwd")


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, key_lengths, ctx.scale = inputs
    ctx.save_for_backward(qkv, *output, key_lengths)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
