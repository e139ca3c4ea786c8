"""Attention on a CPU: one head of one clip at a time, a block of queries in the vector lanes.

Cannot avoid, forward, 4 · tokens² · head_dim operations a head, and 10 · tokens² · head_dim
backward; its bytes are few beside them. Measured: 47 to 122 GFLOP/s of two cores that do 95 to 218
of multiply-adds (64 to 600 tokens, forward and backward; `docs/log.md`, 2026-11-27).

Keys and values are packed side by side once per head. Each block of queries is transposed, so that
a vector holds one dimension of every query. It gets its scores (a row for each key), their softmax
down the rows, lane by lane, and the weighted values. Backward computes the weights again from each
query's maximum and sum. Scores are in powers of two: log2(e) is multiplied into the queries. The
weights are not divided by their sum: forward divides the result, backward the incoming gradient.
Every head is summed in one order, so a result depends neither on the batch nor on the threads.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ast_fast_kernels._cpu.compile import source_digest, stage
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.products import product, product_added, product_exp2, product_times
from ast_fast_kernels._cpu.simd import (
    LINE,
    aligned,
    exp2,
    floats_at,
    host_lanes,
    indices_at,
    integers_at,
    load,
    maximum,
    multiply_add,
    splat,
    store,
    turn_scaled,
)
from ast_fast_kernels._cpu.team import (
    HEADER,
    NEXT_ITEM,
    NEXT_WORKER,
    compile_worker,
    run_items,
    take,
)
from ast_fast_kernels._torch import checks
from ast_fast_kernels.attention.ops import define_attention

QUERY_VECTORS = {"forward": 2, "backward": 4}
"""Vectors of queries in a block, an even number: larger blocks read keys and values less often."""


def launch_attention_fwd(
    qkv: Tensor, key_lengths: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return attention, and what backward needs of each query's softmax.

    Args:
        qkv: Shape (batch, tokens, 3, heads, head_dim), float32.
        key_lengths: int32 (batch,), or None.
        scale: Factor on the scores.
    Returns:
        Shape (batch, tokens, heads, head_dim), and (batch, heads, 2, tokens): each query's largest
        score, in powers of two, and one over the sum of its weights.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, head_dim)
    stats = qkv.new_empty(batch, heads, 2, tokens)
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
    _run("backward", qkv, key_lengths, scale, (*addresses, *grad.stride()[:3]))
    return dqkv


def _with_rows_dense(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if its last dimension is strided."""
    return tensor if tensor.stride(-1) == 1 else checks.dense(tensor)


def _run(
    direction: str,
    qkv: Tensor,
    key_lengths: Tensor | None,
    scale: float,
    others: tuple[int, ...],
) -> None:
    """Run one direction; `others` are the numbers that its task has from OUT on."""
    batch, tokens, _, heads, head_dim = qkv.shape
    lanes, team = host_lanes(), torch.get_num_threads()
    threads = min(team, batch * heads)
    if threads == 0:
        return
    qkv = _with_rows_dense(qkv)
    block = QUERY_VECTORS[direction] * lanes
    lengths = 0
    if key_lengths is not None:
        # By numpy, as in `checks.dense`; lengths from the API are not copied.
        held = np.ascontiguousarray(key_lengths.numpy(), np.int32)
        lengths = held.ctypes.data
    slab = _scratch_floats(direction, tokens, head_dim, block)
    scratch = aligned(threads * slab)
    factor = np.array([scale], np.float32)
    numbers = (
        batch * heads, heads, tokens, lengths, factor.ctypes.data,
        scratch.ctypes.data, slab * FLOAT_BYTES,
        qkv.data_ptr(), *qkv.stride()[:4], *others,
    )  # fmt: skip
    run_items(_worker(direction, lanes, head_dim), numbers, threads, team)


def _scratch_floats(direction: str, tokens: int, head_dim: int, block: int) -> int:
    """Return the size of one thread's buffers in floats; each is a whole number of cache lines.

    Forward: keys and values; a block's queries; its weights; two rows with a number for each query.
    Backward: keys, values and their gradients; a block's queries, gradients (also transposed) and
    results; its weights and the scores' gradients; four rows.
    """
    over_keys, of_block, over_weights, rows = {
        "forward": (2, 1, 1, 2), "backward": (4, 4, 2, 4),
    }[direction]  # fmt: skip
    return (
        over_keys * (-(-tokens // LINE) * LINE * head_dim)
        + of_block * block * head_dim
        + over_weights * (-(-tokens * block // LINE) * LINE)
        + rows * block
    )


@cache
def _worker(direction: str, lanes: int, head_dim: int) -> Any:
    """Return the compiled worker of a direction, for one vector width and head dimension."""
    build = {"forward": _build_forward, "backward": _build_backward}[direction]
    return compile_worker(build(lanes, head_dim, source_digest()))


COUNT, HEADS, TOKENS, LENGTHS, SCALE, SCRATCH, SLAB, QKV = range(HEADER, HEADER + 8)
STRIDES = QKV + 1
"""Strides of clips, tokens, the three parts and heads, in floats."""
OUT, STATS, DQKV, GRAD, GRAD_STRIDES = range(STRIDES + 4, STRIDES + 9)
"""The last three are for backward only; GRAD_STRIDES are those of clips, tokens and heads."""

LOG2_E = np.float32(math.log2(math.e))


def _build_forward(lanes: int, head_dim: int, digest: str) -> Any:
    block = QUERY_VECTORS["forward"] * lanes
    vectors = 2 if head_dim >= 2 * lanes else 1

    def forward(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        heads, tokens = task[HEADS], task[TOKENS]
        token_stride, part_stride = task[STRIDES + 1], task[STRIDES + 2]
        scale = floats_at(task[SCALE])[0]
        item = take(address, NEXT_ITEM)
        if item >= task[COUNT]:
            return
        over_keys = (tokens + LINE - 1) // LINE * LINE * head_dim * FLOAT_BYTES
        keys_at = task[SCRATCH] + take(address, NEXT_WORKER) * task[SLAB]
        values_at = keys_at + over_keys
        queries_at = values_at + over_keys
        largest_at = queries_at + block * head_dim * FLOAT_BYTES
        sums_at = largest_at + block * FLOAT_BYTES
        weights_at = sums_at + block * FLOAT_BYTES
        out_stride, one = heads * head_dim, np.float32(1)
        while item < task[COUNT]:
            clip, head = item // heads, item % heads
            keys = _num_keys(task, clip)
            first = task[QKV] + (clip * task[STRIDES] + head * task[STRIDES + 3]) * FLOAT_BYTES
            out_at = task[OUT] + (clip * tokens * heads + head) * head_dim * FLOAT_BYTES
            stats = floats_at(task[STATS] + item * 2 * tokens * FLOAT_BYTES)
            key_at = first + part_stride * FLOAT_BYTES
            _copy(key_at, token_stride, keys, keys_at, head_dim, one, head_dim, lanes)
            value_at = key_at + part_stride * FLOAT_BYTES
            _copy(value_at, token_stride, keys, values_at, head_dim, one, head_dim, lanes)
            for query in range(0, tokens, block):
                count = min(block, tokens - query)
                query_at = first + query * token_stride * FLOAT_BYTES
                _turn_block(
                    query_at, token_stride, count, queries_at, scale * LOG2_E, block, head_dim,
                    lanes,
                )  # fmt: skip
                for pair in range(0, block, 2 * lanes):
                    offset = pair * FLOAT_BYTES
                    product(
                        keys_at, head_dim, 1, queries_at + offset, block, weights_at + offset,
                        block, keys, head_dim, 2, lanes,
                    )  # fmt: skip
                    _soften(
                        weights_at + offset, keys, largest_at + offset, sums_at + offset, block,
                        lanes,
                    )  # fmt: skip
                out_row = out_at + query * out_stride * FLOAT_BYTES
                for column in range(0, head_dim, vectors * lanes):
                    offset = column * FLOAT_BYTES
                    product(
                        weights_at, 1, block, values_at + offset, head_dim, out_row + offset,
                        out_stride, count, keys, vectors, lanes,
                    )  # fmt: skip
                largest, sums, rows = floats_at(largest_at), floats_at(sums_at), floats_at(out_row)
                for j in range(count):
                    share = np.float32(1) / sums[j] if keys > 0 else np.float32(0)
                    stats[query + j], stats[tokens + query + j] = largest[j], share
                    shares = splat(share, lanes)
                    for d in range(0, head_dim, lanes):
                        place = j * out_stride + d
                        store(rows, place, load(rows, place, lanes) * shares)
            item = take(address, NEXT_ITEM)

    return forward


def _build_backward(lanes: int, head_dim: int, digest: str) -> Any:
    block = QUERY_VECTORS["backward"] * lanes
    vectors = 2 if head_dim >= 2 * lanes else 1

    def backward(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        heads, tokens = task[HEADS], task[TOKENS]
        token_stride, part_stride = task[STRIDES + 1], task[STRIDES + 2]
        scale = floats_at(task[SCALE])[0]
        item = take(address, NEXT_ITEM)
        if item >= task[COUNT]:
            return
        over_keys = (tokens + LINE - 1) // LINE * LINE * head_dim * FLOAT_BYTES
        of_block = block * head_dim * FLOAT_BYTES
        over_weights = (tokens * block + LINE - 1) // LINE * LINE * FLOAT_BYTES
        keys_at = task[SCRATCH] + take(address, NEXT_WORKER) * task[SLAB]
        values_at = keys_at + over_keys
        dkeys_at = values_at + over_keys
        dvalues_at = dkeys_at + over_keys
        queries_at = dvalues_at + over_keys
        turned_at = queries_at + of_block
        grads_at = turned_at + of_block
        outs_at = grads_at + of_block
        largest_at = outs_at + of_block
        shares_at = largest_at + block * FLOAT_BYTES
        deltas_at = shares_at + block * FLOAT_BYTES
        weights_at = deltas_at + 2 * block * FLOAT_BYTES
        dscores_at = weights_at + over_weights
        out_stride, dtoken_stride = heads * head_dim, 3 * heads * head_dim
        grad_stride = task[GRAD_STRIDES + 1]
        part = out_stride * FLOAT_BYTES
        one, nothing = np.float32(1), splat(np.float32(0), lanes)
        while item < task[COUNT]:
            clip, head = item // heads, item % heads
            keys = _num_keys(task, clip)
            first = task[QKV] + (clip * task[STRIDES] + head * task[STRIDES + 3]) * FLOAT_BYTES
            out_at = task[OUT] + (clip * tokens * heads + head) * head_dim * FLOAT_BYTES
            grad_at = task[GRAD] + FLOAT_BYTES * (
                clip * task[GRAD_STRIDES] + head * task[GRAD_STRIDES + 2]
            )
            dfirst = task[DQKV] + (clip * tokens * 3 * heads + head) * head_dim * FLOAT_BYTES
            stats = floats_at(task[STATS] + item * 2 * tokens * FLOAT_BYTES)
            key_at = first + part_stride * FLOAT_BYTES
            _copy(key_at, token_stride, keys, keys_at, head_dim, one, head_dim, lanes)
            value_at = key_at + part_stride * FLOAT_BYTES
            _copy(value_at, token_stride, keys, values_at, head_dim, one, head_dim, lanes)
            dkeys, dvalues = floats_at(dkeys_at), floats_at(dvalues_at)
            for i in range(0, keys * head_dim, lanes):
                store(dkeys, i, nothing)
                store(dvalues, i, nothing)
            for query in range(0, tokens, block):
                count = min(block, tokens - query)
                query_at = first + query * token_stride * FLOAT_BYTES
                _turn_block(
                    query_at, token_stride, count, queries_at, scale * LOG2_E, block, head_dim,
                    lanes,
                )  # fmt: skip
                largest, shares = floats_at(largest_at), floats_at(shares_at)
                for j in range(block):
                    inside = j < count
                    largest[j] = stats[query + j] if inside else np.float32(0)
                    shares[j] = stats[tokens + query + j] if inside else np.float32(0)
                _scale_rows(
                    grad_at + query * grad_stride * FLOAT_BYTES, grad_stride, count, shares_at,
                    grads_at, head_dim, lanes,
                )  # fmt: skip
                _turn_block(grads_at, head_dim, count, turned_at, one, block, head_dim, lanes)
                row_at = out_at + query * out_stride * FLOAT_BYTES
                _turn_block(row_at, out_stride, count, outs_at, one, block, head_dim, lanes)
                _sum_products(turned_at, outs_at, deltas_at, block, head_dim, lanes)
                for pair in range(0, block, 2 * lanes):
                    offset = pair * FLOAT_BYTES
                    product_exp2(
                        keys_at, head_dim, 1, queries_at + offset, block, weights_at + offset,
                        block, keys, head_dim, largest_at + offset, 2, lanes,
                    )  # fmt: skip
                    product_times(
                        values_at, head_dim, 1, turned_at + offset, block, dscores_at + offset,
                        block, keys, head_dim, deltas_at + offset, weights_at + offset, 2, lanes,
                    )  # fmt: skip
                drow = dfirst + query * dtoken_stride * FLOAT_BYTES
                for column in range(0, head_dim, vectors * lanes):
                    offset = column * FLOAT_BYTES
                    product(
                        dscores_at, 1, block, keys_at + offset, head_dim, drow + offset,
                        dtoken_stride, count, keys, vectors, lanes,
                    )  # fmt: skip
                    product_added(
                        weights_at, block, 1, grads_at + offset, head_dim, dvalues_at + offset,
                        head_dim, keys, count, vectors, lanes,
                    )  # fmt: skip
                    product_added(
                        dscores_at, block, 1, query_at + offset, token_stride, dkeys_at + offset,
                        head_dim, keys, count, vectors, lanes,
                    )  # fmt: skip
                _copy(drow, dtoken_stride, count, drow, dtoken_stride, scale, head_dim, lanes)
            _copy(dkeys_at, head_dim, keys, dfirst + part, dtoken_stride, scale, head_dim, lanes)
            _copy(
                dvalues_at, head_dim, keys, dfirst + 2 * part, dtoken_stride, one, head_dim, lanes
            )
            for token in range(keys, tokens):
                for which in (1, 2):
                    beyond = floats_at(dfirst + which * part + token * dtoken_stride * FLOAT_BYTES)
                    for d in range(0, head_dim, lanes):
                        store(beyond, d, nothing)
            item = take(address, NEXT_ITEM)

    return backward


@stage
def _num_keys(task: Any, clip: int) -> int:
    """Return how many of a clip's tokens are keys that count."""
    keys: int = task[TOKENS]
    if task[LENGTHS] != 0:
        keys = min(max(indices_at(task[LENGTHS])[clip], 0), keys)
    return keys


@stage
def _turn_block(
    source: int,
    stride: int,
    count: int,
    target: int,
    factor: float,
    block: int,
    head_dim: int,
    lanes: int,
) -> None:
    """Transpose a block of rows, scaled, into a row for each dimension; missing rows are zero."""
    rows, turned = floats_at(source), floats_at(target)
    factors = splat(factor, lanes)
    for lane in range(0, block, lanes):
        if lane + lanes <= count:
            for d in range(0, head_dim, lanes):
                turn_scaled(
                    rows, lane * stride + d, stride, turned, d * block + lane, block, factors
                )
            continue
        for d in range(head_dim):
            store(turned, d * block + lane, splat(np.float32(0), lanes))
        for j in range(lane, count):
            for d in range(head_dim):
                turned[d * block + j] = rows[j * stride + d] * factor


@stage
def _soften(
    weights_at: int, keys: int, largest_at: int, sums_at: int, block: int, lanes: int
) -> None:
    """Replace two vectors' scores by 2^(score - largest); store each query's largest and sum."""
    rows, largest, sums = floats_at(weights_at), floats_at(largest_at), floats_at(sums_at)
    a = b = splat(np.float32(-np.inf), lanes)
    for key in range(keys):
        a = maximum(load(rows, key * block, lanes), a)
        b = maximum(load(rows, key * block + lanes, lanes), b)
    store(largest, 0, a)
    store(largest, lanes, b)
    total_a = total_b = splat(np.float32(0), lanes)
    for key in range(keys):
        weight_a = exp2(load(rows, key * block, lanes) - a)
        weight_b = exp2(load(rows, key * block + lanes, lanes) - b)
        store(rows, key * block, weight_a)
        store(rows, key * block + lanes, weight_b)
        total_a = total_a + weight_a
        total_b = total_b + weight_b
    store(sums, 0, total_a)
    store(sums, lanes, total_b)


@stage
def _scale_rows(
    source: int, stride: int, count: int, factors_at: int, target: int, head_dim: int, lanes: int
) -> None:
    """Write rows side by side, each times its own factor."""
    rows, factors, scaled = floats_at(source), floats_at(factors_at), floats_at(target)
    for j in range(count):
        factor = splat(factors[j], lanes)
        for d in range(0, head_dim, lanes):
            store(scaled, j * head_dim + d, load(rows, j * stride + d, lanes) * factor)


@stage
def _sum_products(
    grads_at: int, outs_at: int, deltas_at: int, block: int, head_dim: int, lanes: int
) -> None:
    """Write each query's sum of gradient times output."""
    grads, outs, deltas = floats_at(grads_at), floats_at(outs_at), floats_at(deltas_at)
    for lane in range(0, block, lanes):
        total = splat(np.float32(0), lanes)
        for d in range(head_dim):
            place = d * block + lane
            total = multiply_add(load(grads, place, lanes), load(outs, place, lanes), total)
        store(deltas, lane, total)


@stage
def _copy(
    source: int,
    stride: int,
    count: int,
    target: int,
    target_stride: int,
    factor: float,
    head_dim: int,
    lanes: int,
) -> None:
    """Copy rows of a head, each times the factor."""
    rows, copies, factors = floats_at(source), floats_at(target), splat(factor, lanes)
    for j in range(count):
        for d in range(0, head_dim, lanes):
            store(copies, j * target_stride + d, load(rows, j * stride + d, lanes) * factors)


def attention_numba(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> Tensor:
    """Return attention as these kernels compute it, in float32; arguments as the reference's."""
    out: Tensor = _attention_fwd(qkv, key_lengths, scale)[0]
    return out


_attention_fwd = define_attention(
    "attention_numba", launch_attention_fwd, launch_attention_bwd, (2,)
)
