"""Residual addition and layer normalisation on the GPU without an operator, for plain tensors.

Kernels, what is saved and every bit are the operators'. Calls of one layout share what depends on
it: their launches and the shapes of their results.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels._gpu.launch import PREPARED, Prepared, index_of
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.calls import function_apply
from ast_fast_kernels.layer_norm import triton_gpu
from ast_fast_kernels.layer_norm.ops import gradients_of_sum

_Gradients = tuple[Tensor | None, ...]


class AddLayerNorm:
    """`add_layer_norm` of contiguous tensors on a GPU, all of one layout."""

    def __init__(
        self,
        shape: torch.Size,
        device: torch.device,
        dtypes: tuple[torch.dtype, torch.dtype | None, torch.dtype, torch.dtype],
        normed: torch.dtype,
        eps: float,
    ) -> None:
        """Prepare the launches.

        Args:
            shape: The tokens', with at least one row.
            device: Where the tensors are.
            dtypes: Of tokens, update (None without one), weight and bias.
            normed: The normalisation's.
            eps: Added to the variance.
        """
        self.stream, self.update, self.weight, self.bias = dtypes
        self.normed = normed
        self.eps = eps
        self._index = index_of(device)
        width = shape[-1]
        rows = shape.numel() // width
        stride_u = None if self.update is None else width
        forward = triton_gpu.plan_layer_norm_fwd(rows, width, width, stride_u, eps)
        self._forward = Prepared(forward, device)
        own = self.update is not None and self.update != self.stream
        self._own_update = self.update if own else None
        backward = [
            triton_gpu.plan_layer_norm_bwd(rows, width, width, eps, has_dresidual, own, device)
            for has_dresidual in (False, True)
        ]
        self._backward = [Prepared(plan, device) for plan in backward]
        self._partial_shape = (backward[0].grid, 2, width)
        # What kernels get for a result that they do not write.
        self._no_residual = torch.empty(0, dtype=self.stream, device=device)
        self._no_dupdate = torch.empty(0, dtype=self.update, device=device)

    @property
    def is_compiled(self) -> bool:
        """Whether its forward kernel is compiled, not interpreted."""
        return self._forward.is_bound

    def __call__(
        self, tokens: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sum and its normalisation."""
        if torch.is_grad_enabled() and (
            tokens.requires_grad
            or weight.requires_grad
            or bias.requires_grad
            or (update is not None and update.requires_grad)
        ):
            results = _apply(self, tokens, update, weight, bias)
            return (tokens, results) if update is None else results
        return self.forward(tokens, update, weight, bias)

    def forward(
        self, tokens: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sum and its normalisation, without a graph."""
        residual = self._no_residual if update is None else torch.empty_like(tokens)
        same = self.normed is self.stream  # naming a dtype would take longer
        normed = torch.empty_like(tokens) if same else torch.empty_like(tokens, dtype=self.normed)
        self._forward(tokens, update, weight, bias, residual, normed)
        return tokens if update is None else residual, normed

    def backward(
        self, dresidual: Tensor | None, dy: Tensor, saved: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the sum, of the update (empty if of that dtype), of the rest."""
        residual = saved[0]
        dx = torch.empty_like(residual)
        dupdate = self._no_dupdate
        if self._own_update is not None:
            dupdate = torch.empty_like(residual, dtype=self._own_update)
        if self.stream is torch.float32:
            partial = residual.new_empty(self._partial_shape)
        else:
            partial = residual.new_empty(self._partial_shape, dtype=torch.float32)
        if dresidual is not None:
            dresidual = dresidual.contiguous()
        launch = self._backward[dresidual is not None]
        launch(dresidual, dy.contiguous(), *saved, dx, dupdate, partial)
        return dx, dupdate, partial.sum(0)

    def fits(self, residual: Tensor, weight: Tensor) -> bool:
        """Say whether saved tensors, which a hook may have changed, are as they were saved."""
        return (
            residual.dtype is self.stream
            and weight.dtype is self.weight
            and residual.is_contiguous()
            and weight.is_contiguous()
            and residual.get_device() == weight.get_device() == self._index
        )


class _AddLayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        call: AddLayerNorm,
        tokens: Tensor,
        update: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        residual, normed = call.forward(tokens, update, weight, bias)
        ctx.call = call
        ctx.save_for_backward(residual, weight)
        ctx.set_materialize_grads(False)
        return normed if update is None else (residual, normed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> _Gradients:
        call: AddLayerNorm = ctx.call
        dy = grads[-1]
        dresidual = None if call.update is None else grads[0]
        if dy is None:
            return None, *gradients_of_sum(dresidual, call.update), None, None
        saved = ctx.saved_tensors
        # The operator refuses a second gradient, and has rules for what hooks and vmap bring.
        if (
            torch.is_grad_enabled()
            or not checks.are_light(dy if dresidual is None else dresidual, dy, *saved)
            or not call.fits(*saved)
        ):
            dx, own, both = torch.ops.ast_fast.layer_norm_bwd(
                dresidual, dy, *saved, call.eps, call.update
            )
        else:
            dx, own, both = call.backward(dresidual, dy, saved)
        dupdate = None
        if call.update is not None:
            dupdate = dx if call._own_update is None else own.view(dx.shape)
        dweight, dbias = both.unbind(0)
        if call.weight is not torch.float32:
            dweight = dweight.to(call.weight)
        if call.bias is not torch.float32:
            dbias = dbias.to(call.bias)
        return None, dx, dupdate, dweight, dbias


_apply = function_apply(_AddLayerNormFunction)

prepare = lru_cache(maxsize=PREPARED)(AddLayerNorm)
"""Returns what runs calls of one layout; arguments as in `AddLayerNorm`."""
