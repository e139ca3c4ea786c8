"""A projection by oneDNN of a weight put into the order that it reads, once and for all.

For inference: `linear` orders a weight anew in every call, which a trained weight needs once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks, onednn
from ast_fast_kernels._torch.forks import on_one_thread_if_forked

BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")
"""CPU capabilities, by torch's names, that multiply bfloat16 in hardware."""


def packs_faster_here(dtype: torch.dtype = torch.float32) -> bool:
    """Say whether a packed weight multiplies faster than torch's product of it as it is.

    float32: on AMD's CPUs, where torch's product is MKL's; without packing, oneDNN gains nothing
    there with AVX2. bfloat16: wherever the CPU multiplies it, for then torch's product is oneDNN's
    too, and orders the weight in every call.

    Args:
        dtype: Of the weight.
    """
    if dtype == torch.bfloat16:
        return _takes_bfloat16() and multiplies_bfloat16_here()
    is_amd = str(checks.cpu_capabilities().get("cpu_name", "")).startswith("AMD")
    return dtype == torch.float32 and is_amd and onednn.HAS_MKL and onednn.IS_THERE


def multiplies_bfloat16_here() -> bool:
    """Say whether this CPU multiplies bfloat16 in hardware: by AMX, or AVX-512's dot products.

    LLVM says it where torch cannot (2.9), if Numba is there.
    """
    capabilities = checks.cpu_capabilities()
    if capabilities or _dispatch.numba_obstacle() is not None:
        return any(capabilities.get(unit, False) for unit in BFLOAT16_UNITS)
    from ast_fast_kernels._cpu import simd  # loads Numba

    return simd.has_bfloat16_matrices() or simd.has_bfloat16_dots()


def _takes_bfloat16() -> bool:
    """Say whether oneDNN takes bfloat16 on this CPU: with AVX-512, which may only emulate it."""
    return onednn.IS_THERE and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@on_one_thread_if_forked
def pack(weight: Tensor, rows: int) -> Tensor:
    """Return a copy of a weight as oneDNN reads it, which `linear_packed` alone takes.

    Args:
        weight: Shape (out, width), float32 or bfloat16, on the CPU.
        rows: Rows of tokens for which the order is chosen; it is right for any number.
    Returns:
        The weight in a layout of oneDNN's, without a gradient; it can be neither read nor saved.
    Raises:
        TypeError: It is not a floating-point tensor.
        ValueError: It is empty, of another shape, precision or device.
        RuntimeError: This build of torch lacks oneDNN, or it does not multiply bfloat16 here.
    """
    checks.check_floating("weight", weight)
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"weight must be (out, width), not empty, got {tuple(weight.shape)}")
    kind = checks.dtype_name(weight.dtype)
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"weight must be float32 or bfloat16 on the CPU, got {kind} on {weight.device}"
        )
    if not onednn.IS_THERE:
        raise RuntimeError("packed weights need oneDNN, which this build of torch lacks")
    if weight.dtype == torch.bfloat16 and not _takes_bfloat16():
        raise RuntimeError("packed bfloat16 needs a CPU with AVX-512; pack the weight in float32")
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
    return packed


@on_one_thread_if_forked
def linear_packed(tokens: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Compute tokens · weightᵀ + bias, without a gradient.

    In float32, each token's result has the same bits whatever tokens are beside it, and on any
    number of threads.

    Args:
        tokens: Shape (..., width), of the weight's dtype.
        packed: A weight that `pack` gave.
        bias: Shape (out,), of the same dtype, contiguous; None adds nothing.
    Returns:
        Projected tokens, shape (..., out).
    """
    projected: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, packed, bias, "none", [], "none")
    return projected
