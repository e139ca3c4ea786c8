"""Attention as callers see it: every check, the choice of a backend, key lengths."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.autocast import autocast_dtype, lowers_float32
from ast_fast_kernels._torch.calls import Calls
from ast_fast_kernels._torch.tracing import constant_in_graphs

if TYPE_CHECKING:
    from ast_fast_kernels.attention.triton_direct import Attention

TRITON_HEAD_DIMS = {2: (16, 32, 64, 128), 4: (16, 32, 64)}
"""Bytes of an element → head dimensions that the GPU kernels are compiled for."""

MOST_VALUES = 2**31
"""A clip has fewer projected values than this, so that 32 bits address its tokens on a GPU."""

NUMBA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the CPU kernels take: each packed as it is, with sums and softmax in float32."""

NUMBA_HEAD_DIMS = (16, 32, 64)
"""Head dimensions that the CPU kernels take: whole vectors of 16 lanes or fewer."""


def attention(
    qkv: Tensor,
    *,
    key_lengths: Tensor | Sequence[int] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute multi-head self-attention, softmax(q · kᵀ · scale) · v, from packed projections.

    There is no dropout and no causal mask: every query sees every valid key of its clip. Queries,
    keys and values are read where one projection left them, and gradients are packed the same way,
    so nothing is transposed or copied. Differentiable; one operator in compiled code.

    Args:
        qkv: Queries, keys and values, shape (batch, num_tokens, 3, num_heads, head_dim).
        key_lengths: Number of tokens, from the first, that each clip's queries see: integers from 1
            to num_tokens, shape (batch,); None is all. Those on a GPU are not checked, which would
            wait for it: there, more than num_tokens means num_tokens, and 0 gives zeros.
        scale: Factor on the scores; None is head_dim ** -0.5.
        backend: `"auto"`, `"reference"` (softmax written out), `"sdpa"`
            (`scaled_dot_product_attention`), `"numba"` (CPU; float32, bfloat16 and float16,
            head_dim 16, 32 or 64) or `"triton"` (CUDA; bfloat16, float16, and float32 where
            `torch.set_float32_matmul_precision` allows TF32).
    Returns:
        Weighted values, shape (batch, num_tokens, num_heads, head_dim), of qkv's dtype; under
        autocast, sdpa and triton give autocast's dtype.
    Raises:
        TypeError: qkv is not a floating-point tensor, or key_lengths are not integers.
        ValueError: A shape, length or device does not fit, or `backend` is none of the above.
        RuntimeError: The backend asked for cannot run this input.
    """
    out: Tensor
    if not torch.compiler.is_compiling() and _calls.known:
        again = _calls.known.get(_key(qkv, key_lengths, scale, backend))
        if again is not None:
            out = again(qkv, None if key_lengths is None else _checked_lengths(key_lengths, qkv))
            return out
    chosen = chosen_backend(qkv, scale=scale, backend=backend)
    lengths = None if key_lengths is None else _checked_lengths(key_lengths, qkv)
    factor = qkv.shape[-1] ** -0.5 if scale is None else float(scale)
    if chosen == "triton" and not torch.compiler.is_compiling() and qkv.numel():
        key = _key(qkv, key_lengths, scale, backend)
        call = None if key is None else _prepared(qkv, lengths, factor)
        if call is not None:
            out = call(qkv, lengths)
            if call.is_compiled:
                _calls.keep(key, call)
            return out
    out = _dispatch.load_backend("attention", chosen)(qkv, lengths, factor)
    return out


_calls = Calls()


def _key(
    qkv: Tensor, key_lengths: Tensor | Sequence[int] | None, scale: float | None, backend: str
) -> Hashable:
    """Return all that the checks look at besides the lengths; None if an operator may be needed."""
    lengths = key_lengths if isinstance(key_lengths, Tensor) else qkv
    if not checks.are_light(qkv, lengths) or not (scale is None or type(scale) is float):
        return None
    autocast = autocast_dtype(qkv)
    is_float32 = (autocast or qkv.dtype) is torch.float32
    return (
        _dispatch.requested_backend("attention", backend), scale, key_lengths is None,
        autocast, is_float32 and lowers_float32("cuda"),
        qkv.shape, qkv.stride(), qkv.dtype, qkv.get_device(),
    )  # fmt: skip


def _prepared(qkv: Tensor, lengths: Tensor | None, scale: float) -> Attention | None:
    """Return what runs such calls; None if the kernels need the projections copied."""
    from ast_fast_kernels.attention import triton_direct, triton_gpu  # late: they load Triton

    qkv = qkv.to(autocast_dtype(qkv) or qkv.dtype)
    if not triton_gpu.is_readable(qkv):
        return None
    return triton_direct.prepare(
        qkv.shape, qkv.stride(), qkv.device, qkv.dtype, scale, lengths is not None
    )


def chosen_backend(qkv: Tensor, *, scale: float | None = None, backend: str = "auto") -> str:
    """Return the backend that `attention` runs for these arguments; raise the same errors."""
    _check(qkv)
    requested = _dispatch.requested_backend("attention", backend)
    return choose_backend(requested, qkv, 1.0 if scale is None else float(scale))


def choose_backend(requested: str, qkv: Tensor, scale: float = 1.0) -> str:
    """Return the backend that runs.

    auto takes numba on the CPU and triton on CUDA if they can run the input, else sdpa; for
    bfloat16 on a CPU with AMX sdpa too.
    """

    def numba_obstacle() -> str | None:
        obstacle = _numba_obstacle(qkv)
        return _better_by_sdpa(qkv) if obstacle is None and requested == "auto" else obstacle

    return _dispatch.choose_kernel(
        "attention",
        requested,
        qkv.device.type,
        {"numba": numba_obstacle, "triton": lambda: _triton_obstacle(qkv, scale)},
        "sdpa",
    )


def _better_by_sdpa(qkv: Tensor) -> str | None:
    """Say why auto leaves an input that the CPU kernels can run to sdpa; None where it does not.

    On AMX a training step by sdpa's products took half the time of one in float32 (docs/log.md,
    2026-11-25). Ours use no matrix units and have not been measured beside them.
    """
    if qkv.dtype != torch.bfloat16 or _dispatch.numba_obstacle() is not None:
        return None
    if _has_bfloat16_matrices():
        return "torch multiplies bfloat16 by this CPU's matrix units (AMX)"
    return None


def _numba_obstacle(qkv: Tensor) -> str | None:
    """Say why the CPU kernels cannot run this input; None when they can."""
    obstacle = checks.numba_obstacle("qkv", qkv, NUMBA_DTYPES)
    if obstacle is not None:
        return obstacle
    if qkv.shape[-1] not in NUMBA_HEAD_DIMS:
        rule = ", ".join(map(str, NUMBA_HEAD_DIMS))
        return f"numba needs a head_dim of {rule}, got {qkv.shape[-1]}"
    if qkv.dtype == torch.float16 and _dispatch.numba_obstacle() is None and not _has_float16():
        return "numba needs a CPU that converts float16 (F16C or ARM's) for qkv in float16"
    return None


@constant_in_graphs
def _has_bfloat16_matrices() -> bool:
    from ast_fast_kernels._cpu.simd import has_bfloat16_matrices  # loads Numba

    return has_bfloat16_matrices()


@constant_in_graphs
def _has_float16() -> bool:
    from ast_fast_kernels._cpu.simd import has_float16  # loads Numba

    return has_float16()


def _triton_obstacle(qkv: Tensor, scale: float) -> str | None:
    """Say why Triton cannot run this input; None when it can."""
    obstacle = checks.triton_obstacle("qkv", qkv)
    if obstacle is not None:
        return obstacle
    dtype = autocast_dtype(qkv) or qkv.dtype
    if dtype == torch.float32 and not lowers_float32("cuda"):
        return (
            "triton computes float32 qkv only in TF32, which "
            'torch.set_float32_matmul_precision("high") allows'
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        kind = checks.dtype_name(dtype)
        return f"triton needs qkv in bfloat16, float16 or float32, got {kind}"
    head_dims = TRITON_HEAD_DIMS[dtype.itemsize]
    if qkv.shape[-1] not in head_dims:
        rule = f"{', '.join(map(str, head_dims))} for {checks.dtype_name(dtype)}"
        return f"triton needs a head_dim of {rule}, got {qkv.shape[-1]}"
    if not scale > 0:
        return f"triton needs a scale above 0, got {scale:g}"
    if qkv.shape[1:].numel() >= MOST_VALUES:
        return f"triton needs fewer than 2 ** 31 values of qkv a clip, got {tuple(qkv.shape)}"
    return None


def _check(qkv: Tensor) -> None:
    checks.check_floating("qkv", qkv)
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(
            f"qkv must be (batch, num_tokens, 3, num_heads, head_dim), got {tuple(qkv.shape)}"
        )
    if 0 in (qkv.shape[1], *qkv.shape[3:]):
        raise ValueError(
            "qkv must have at least 1 token, num_heads and head_dim of at least 1, "
            f"got {tuple(qkv.shape)}"
        )


def _checked_lengths(key_lengths: Tensor | Sequence[int], qkv: Tensor) -> Tensor:
    """Return key lengths as int32 on qkv's device; values on a GPU are not checked."""
    batch, tokens = qkv.shape[:2]
    try:
        lengths = torch.as_tensor(key_lengths)
    except (TypeError, ValueError, RuntimeError):  # what torch raises for strings, None, ragged
        raise TypeError(
            f"key_lengths must be integers of shape ({batch},), got {key_lengths!r}"
        ) from None
    if lengths.numel() and (lengths.is_floating_point() or lengths.dtype == torch.bool):
        kind = checks.dtype_name(lengths.dtype)
        raise TypeError(f"key_lengths must be integers, got {kind}")
    if lengths.shape != (batch,):
        raise ValueError(f"key_lengths must have shape ({batch},), got {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = [length for length in lengths.tolist() if not 1 <= length <= tokens]
        if wrong:
            raise ValueError(f"key_lengths must be from 1 to num_tokens ({tokens}), got {wrong[0]}")
        # By numpy: torch's conversion runs on threads, which a forked process lacks.
        lengths = torch.from_numpy(lengths.numpy().astype(np.int32))
    elif lengths.dtype == torch.int64:
        lengths = lengths.clamp(0, tokens)  # a larger one may not fit into 32 bits
    return lengths.to(qkv.device, torch.int32).contiguous()
