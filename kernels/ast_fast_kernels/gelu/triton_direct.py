"""Bias and GELU on the GPU without an operator, for plain tensors.

Kernels, what is saved and every bit are the operators'. Calls of one layout share their launches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels._gpu.launch import PREPARED, Prepared, index_of
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.calls import function_apply
from ast_fast_kernels.gelu import triton_gpu


class LinearGelu:
    """`linear_gelu` on a GPU, for products of one shape and dtype."""

    def __init__(
        self, shape: torch.Size, device: torch.device, product: torch.dtype, bias: torch.dtype
    ) -> None:
        """Prepare the launches.

        Args:
            shape: The product's, with at least one value.
            device: Where the tensors are.
            product: Its dtype.
            bias: The bias's dtype.
        """
        self.product, self.bias = product, bias
        self._index = index_of(device)
        hidden = shape[-1]
        rows = shape.numel() // hidden
        self._forward = Prepared(triton_gpu.plan_bias_gelu_fwd(rows, hidden), device)
        backward, strips = triton_gpu.plan_bias_gelu_bwd(rows, hidden, device)
        self._backward = Prepared(backward, device)
        self._partial_shape = (strips, hidden)

    @property
    def is_compiled(self) -> bool:
        """Whether its forward kernel is compiled, not interpreted."""
        return self._forward.is_bound

    def __call__(self, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return GELU of the projected tokens."""
        return self.activate(functional.linear(tokens, weight), bias)

    def activate(self, product: Tensor, bias: Tensor) -> Tensor:
        """Return GELU(product + bias)."""
        if not product.is_contiguous():
            return triton_gpu.bias_gelu(product, bias)
        if torch.is_grad_enabled() and (product.requires_grad or bias.requires_grad):
            with_graph: Tensor = _apply(self, product, bias)
            return with_graph
        return self.forward(product, bias)

    def forward(self, product: Tensor, bias: Tensor) -> Tensor:
        """Return GELU(product + bias), without a graph."""
        activated = torch.empty_like(product)
        self._forward(product, bias, activated)
        return activated

    def backward(self, dy: Tensor, product: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the product and, in float32, of the bias."""
        dx = torch.empty_like(product)
        partial = product.new_empty(self._partial_shape, dtype=torch.float32)
        self._backward(dy.contiguous(), product, bias, dx, partial)
        return dx, partial.sum(0)

    def fits(self, product: Tensor, bias: Tensor) -> bool:
        """Say whether saved tensors, which a hook may have changed, are as they were saved."""
        return (
            product.dtype is self.product
            and bias.dtype is self.bias
            and product.is_contiguous()
            and bias.is_contiguous()
            and product.get_device() == bias.get_device() == self._index
        )


class _BiasGeluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: LinearGelu, product: Tensor, bias: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(product, bias)
        return call.forward(product, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor, Tensor]:
        call: LinearGelu = ctx.call
        saved = ctx.saved_tensors
        # The operator refuses a second gradient, and has rules for what hooks and vmap bring.
        if torch.is_grad_enabled() or not checks.are_light(dy, *saved) or not call.fits(*saved):
            dx, dbias = torch.ops.ast_fast.bias_gelu_bwd(dy, *saved)
        else:
            dx, dbias = call.backward(dy, *saved)
        return None, dx, dbias if call.bias is torch.float32 else dbias.to(call.bias)


_apply = function_apply(_BiasGeluFunction)

prepare = lru_cache(maxsize=PREPARED)(LinearGelu)
"""Returns what runs calls of one layout; arguments as in `LinearGelu`."""
