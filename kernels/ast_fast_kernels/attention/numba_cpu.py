"""Attention on a CPU: one head of one clip at a time, a block of queries in the vector lanes.

Cannot avoid, forward, 4 · tokens² · head_dim operations a head, and 10 · tokens² · head_dim
backward; its bytes are few beside them. Measured: 47 to 122 GFLOP/s of two cores that do 95 to 218
of multiply-adds (64 to 600 tokens, forward and backward; `docs/log.md`, 2026-11-27).

bfloat16 is multiplied by the machine's dot product of pairs, if it has one (`numba_pairs.py`).
Otherwise, and in other formats, products are of float32 (`numba_floats.py`). Sums and the softmax
are in float32 always. Every head is summed in one order, and cut into parts by its length alone
(`numba_task.py`), so a result depends neither on the batch nor on the threads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.simd import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    aligned,
    has_bfloat16_dots,
    host_lanes,
)
from ast_fast_kernels._cpu.team import compile_worker, run_items
from ast_fast_kernels._torch import checks
from ast_fast_kernels.attention import numba_floats, numba_pairs
from ast_fast_kernels.attention.numba_task import parts_of
from ast_fast_kernels.attention.ops import define_attention

QUERY_VECTORS = {"forward": 2, "backward": 4}
"""Vectors of queries in a block, an even number: larger blocks read keys and values less often."""

KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}

WIDENED, EMULATED, NATIVE = range(3)
"""How bfloat16 is multiplied: as float32; in pairs without the machine's instruction, for tests; or
by it."""


def bfloat16_products() -> int:
    """Return how this machine multiplies bfloat16."""
    return NATIVE if has_bfloat16_dots() else WIDENED


def launch_attention_fwd(
    qkv: Tensor, key_lengths: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return attention, and what backward needs of each query's softmax.

    Args:
        qkv: Shape (batch, tokens, 3, heads, head_dim); float32, bfloat16 or float16.
        key_lengths: int32 (batch,), or None.
        scale: Factor on the scores.
    Returns:
        Shape (batch, tokens, heads, head_dim), of qkv's dtype, and in float32 (batch, heads, 2,
        tokens): each query's largest score, in powers of two, and one over the sum of its weights.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, head_dim)
    stats = qkv.new_empty(batch, heads, 2, tokens, dtype=torch.float32)
    _run("forward", qkv, key_lengths, scale, (out.data_ptr(), stats.data_ptr()))
    return out, stats


def launch_attention_bwd(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    stats: Tensor,
    key_lengths: Tensor | None,
    scale: float,
) -> Tensor:
    """Return the gradient of `qkv`, packed as it is and contiguous.

    Args:
        grad: Gradient of `out`.
        qkv: What the forward was given.
        out: What the forward gave.
        stats: What the forward gave.
        key_lengths: What the forward was given.
        scale: What the forward was given.
    """
    grad, dqkv = _with_rows_dense(grad), qkv.new_empty(qkv.shape)
    addresses = (out.data_ptr(), stats.data_ptr(), dqkv.data_ptr(), grad.data_ptr())
    _run("backward", qkv, key_lengths, scale, (*addresses, *_byte_strides(grad)[:3]))
    return dqkv


def _with_rows_dense(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if its last dimension is strided."""
    return tensor if tensor.stride(-1) == 1 else checks.dense(tensor)


def _byte_strides(tensor: Tensor) -> list[int]:
    return [stride * tensor.element_size() for stride in tensor.stride()]


def _run(
    direction: str,
    qkv: Tensor,
    key_lengths: Tensor | None,
    scale: float,
    others: tuple[int, ...],
) -> None:
    """Run one direction; `others` are the numbers that its task has from OUT on."""
    batch, tokens, _, heads, head_dim = qkv.shape
    parts, part = parts_of(tokens)
    items, team = batch * heads * parts, torch.get_num_threads()
    threads = min(team, items)
    if threads == 0:
        return
    qkv = _with_rows_dense(qkv)
    lengths = 0
    if key_lengths is not None:
        # By numpy, as in `checks.dense`; lengths from the API are not copied.
        held = np.ascontiguousarray(key_lengths.numpy(), np.int32)
        lengths = held.ctypes.data
    lanes, products = host_lanes(), WIDENED
    if qkv.dtype == torch.bfloat16:
        products = bfloat16_products()
    kernel = numba_floats if products == WIDENED else numba_pairs
    block = QUERY_VECTORS[direction] * lanes
    slab = kernel.scratch_floats(direction, tokens, part, head_dim, block)
    scratch = aligned(threads * slab)
    # The gradient of the queries, where each part of a head has its own.
    apart = parts if direction == "backward" and parts > 1 else 0
    slots = min(threads, batch * heads)
    shared = aligned(slots * apart * tokens * head_dim)
    control = np.zeros(slots + 2 * batch * heads if apart else 0, np.int64)
    factor = np.array([scale], np.float32)
    numbers = (
        items, heads, tokens, parts, part, lengths, factor.ctypes.data,
        scratch.ctypes.data, slab * FLOAT_BYTES, shared.ctypes.data, control.ctypes.data, slots,
        qkv.data_ptr(), *_byte_strides(qkv)[:4], *others,
    )  # fmt: skip
    run_items(
        _worker(direction, lanes, head_dim, KINDS[qkv.dtype], products), numbers, threads, team
    )


@cache
def _worker(direction: str, lanes: int, head_dim: int, kind: int, products: int) -> Any:
    """Return a direction's compiled worker for one vector width, head dimension and format."""
    vectors, digest = QUERY_VECTORS[direction], source_digest()
    if products == WIDENED:
        widened = {
            "forward": numba_floats.build_forward, "backward": numba_floats.build_backward,
        }[direction]  # fmt: skip
        return compile_worker(widened(lanes, head_dim, kind, vectors, digest))
    paired = {"forward": numba_pairs.build_forward, "backward": numba_pairs.build_backward}
    native = int(products == NATIVE)
    return compile_worker(paired[direction](lanes, head_dim, native, vectors, digest))


def attention_numba(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> Tensor:
    """Return attention as these kernels compute it; arguments as the reference's."""
    out: Tensor = _attention_fwd(qkv, key_lengths, scale)[0]
    return out


_attention_fwd = define_attention(
    "attention_numba", launch_attention_fwd, launch_attention_bwd, (2,)
)
