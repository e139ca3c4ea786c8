"""Attention on the GPU without an operator, for plain tensors.

Kernels, what is saved and every bit are the operators'. Calls of one layout share their launches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels._gpu.launch import PREPARED, Prepared, index_of
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.calls import function_apply
from ast_fast_kernels.attention import triton_gpu


class Attention:
    """`attention` on a GPU, for projections of one layout."""

    def __init__(
        self,
        shape: torch.Size,
        strides: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        scale: float,
        has_lengths: bool,
    ) -> None:
        """Prepare the launches.

        Args:
            shape: qkv's, with at least one clip.
            strides: qkv's; `triton_gpu.is_readable` is true of them.
            device: Where the tensors are.
            dtype: qkv's.
            scale: Factor on the scores.
            has_lengths: Whether calls give key lengths.
        """
        batch, tokens, _, heads, head_dim = shape
        self._shape, self._strides, self._dtype = shape, strides, dtype
        self._index = index_of(device)
        self._out_shape = (batch, tokens, heads, head_dim)
        self._stats_shape = (batch, heads, tokens)
        self.scale = scale
        layout = triton_gpu.Layout(shape, strides, device, dtype, scale, has_lengths)
        self._forward = Prepared(layout.fwd(), device)
        self._delta = Prepared(layout.bwd_delta(), device)
        self._dkdv = Prepared(layout.bwd_dkdv(), device)
        self._dq = Prepared(layout.bwd_dq(), device)

    @property
    def is_compiled(self) -> bool:
        """Whether its forward kernel is compiled, not interpreted."""
        return self._forward.is_bound

    def __call__(self, qkv: Tensor, lengths: Tensor | None) -> Tensor:
        """Return attention; lengths are contiguous int32."""
        if qkv.dtype is not self._dtype:
            qkv = qkv.to(self._dtype)  # autocast's
        if torch.is_grad_enabled() and qkv.requires_grad:
            with_graph: Tensor = _apply(self, qkv, lengths)
            return with_graph
        return self.forward(qkv, lengths)[0]

    def forward(self, qkv: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return attention and the logarithms of the sums, without a graph."""
        out = qkv.new_empty(self._out_shape)
        lse = qkv.new_empty(self._stats_shape, dtype=torch.float32)
        self._forward(qkv, lengths, out, lse)
        return out, lse

    def backward(self, grad: Tensor, saved: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> Tensor:
        """Return the gradient of qkv."""
        qkv, out, lse, lengths = saved
        grad = grad.contiguous()
        dqkv = torch.empty(self._shape, dtype=self._dtype, device=qkv.device)
        delta = torch.empty_like(lse)
        self._delta(out, grad, delta)
        self._dkdv(qkv, lengths, grad, lse, delta, dqkv)
        self._dq(qkv, lengths, grad, lse, delta, dqkv)
        return dqkv

    def fits(self, qkv: Tensor, out: Tensor, lse: Tensor, lengths: Tensor | None) -> bool:
        """Say whether saved tensors, which a hook may have changed, are as they were saved."""
        return (
            qkv.dtype is self._dtype
            and out.dtype is self._dtype
            and lse.dtype is torch.float32
            and qkv.stride() == self._strides
            and qkv.get_device() == out.get_device() == lse.get_device() == self._index
            and out.is_contiguous()
            and lse.is_contiguous()
            and (lengths is None or self._fit(lengths))
        )

    def _fit(self, lengths: Tensor) -> bool:
        return (
            lengths.dtype is torch.int32
            and lengths.is_contiguous()
            and lengths.get_device() == self._index
        )


class _AttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Attention, qkv: Tensor, lengths: Tensor | None) -> Tensor:
        out, lse = call.forward(qkv, lengths)
        ctx.call = call
        ctx.save_for_backward(qkv, out, lse, lengths)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, Tensor | None, None]:
        if grad is None:
            return None, None, None
        call: Attention = ctx.call
        saved = ctx.saved_tensors
        plain = checks.are_light(grad, *(tensor for tensor in saved if tensor is not None))
        # The operator refuses a second gradient, and has rules for what hooks and vmap bring.
        if torch.is_grad_enabled() or not plain or not call.fits(*saved):
            return None, torch.ops.ast_fast.attention_bwd(grad, *saved, call.scale), None
        return None, call.backward(grad, saved), None


_apply = function_apply(_AttentionFunction)

prepare = lru_cache(maxsize=PREPARED)(Attention)
"""Returns what runs calls of one layout; arguments as in `Attention`."""
