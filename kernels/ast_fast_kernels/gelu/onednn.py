"""A projection with GELU by oneDNN."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels._torch import onednn


def linear_gelu_onednn(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU of the projected tokens, in one pass where no graph is kept.

    Arguments as the reference's.
    """
    needs_graph = any(tensor.requires_grad for tensor in (tokens, weight, bias))
    if torch.is_grad_enabled() and needs_graph:
        return functional.gelu(onednn.project(tokens, weight, bias))
    return onednn.project_gelu(tokens, weight, bias)
