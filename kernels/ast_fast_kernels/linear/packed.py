"""A projection by oneDNN of a weight put into the order that it reads, once and for all.

For inference: `linear` orders a weight anew in every call, which a trained weight needs once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels._torch import checks, onednn


def packs_faster_here() -> bool:
    """Say whether oneDNN multiplies float32 faster than torch's MKL once its weights are packed.

    So it does on AMD's CPUs, with AVX2 as well, where without packing it gains nothing.
    """
    is_amd = str(checks.cpu_capabilities().get("cpu_name", "")).startswith("AMD")
    return is_amd and onednn.HAS_MKL and onednn.IS_THERE


def pack(weight: Tensor, rows: int) -> Tensor:
    """Return a copy of a weight as oneDNN reads it, which `linear_packed` alone takes.

    Args:
        weight: Shape (out, width), float32, on the CPU.
        rows: Rows of tokens for which the order is chosen; it is right for any number.
    Returns:
        The weight in a layout of oneDNN's, without a gradient; it can be neither read nor saved.
    Raises:
        TypeError: It is not a floating-point tensor.
        ValueError: It is empty, of another shape, precision or device.
        RuntimeError: This build of torch lacks oneDNN.
    """
    checks.check_floating("weight", weight)
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"weight must be (out, width), not empty, got {tuple(weight.shape)}")
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        kind = checks.dtype_name(weight.dtype)
        raise ValueError(f"weight must be float32 on the CPU, got {kind} on {weight.device}")
    if not onednn.IS_THERE:
        raise RuntimeError("packed weights need oneDNN, which this build of torch lacks")
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
    return packed


def linear_packed(tokens: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Compute tokens · weightᵀ + bias, without a gradient.

    Args:
        tokens: Shape (..., width), float32.
        packed: A weight that `pack` gave.
        bias: Shape (out,), contiguous; None adds nothing.
    Returns:
        Projected tokens, shape (..., out).
    """
    projected: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, packed, bias, "none", [], "none")
    return projected
