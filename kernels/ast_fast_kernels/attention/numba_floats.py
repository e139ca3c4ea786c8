"""Attention's CPU kernels in float32 arithmetic, for inputs and results of any format.

Keys and values are widened side by side once per part of a head. Each block of queries is
transposed, so that a vector holds one dimension of every query. It gets its scores (a row for each
key), their softmax down the rows, lane by lane, and the weighted values. Backward computes the
weights again from each query's maximum and sum. Scores are in powers of two: log2(e) is multiplied
into the queries. The weights are not divided by their sum: forward divides the result, backward the
incoming gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ast_fast_kernels._cpu.compile import stage
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.products import product, product_added, product_exp2, product_times
from ast_fast_kernels._cpu.simd import (
    LINE,
    exp2,
    floats_at,
    integers_at,
    load,
    load_as,
    maximum,
    multiply_add,
    splat,
    store,
    turn_scaled,
)
from ast_fast_kernels._cpu.team import NEXT_ITEM, NEXT_WORKER, take
from ast_fast_kernels.attention.numba_task import (
    COUNT,
    GRAD_STRIDES,
    HEADS,
    LOG2_E,
    PART,
    PARTS,
    SCALE,
    SCRATCH,
    SLAB,
    STRIDES,
    TOKENS,
    clear,
    copy_rows,
    gradients_of,
    item_of,
    num_keys,
    partial_sums,
    read_stats,
    write_outputs,
    write_part,
    write_rows,
)

ELEMENT_BYTES = (4, 2, 2)
"""Bytes of a number in each of the formats of simd.py."""


def scratch_floats(direction: str, tokens: int, part: int, head_dim: int, block: int) -> int:
    """Return the size of one thread's buffers in floats; each is a whole number of cache lines.

    Forward: keys and values; a block's queries, as rows and transposed; its weights; two rows with
    a number for each query. Backward: keys, values and their gradients, of a part; a block's
    queries, gradients and outputs, as rows and transposed; its weights and the scores' gradients;
    four rows.
    """
    keys, over_keys, of_block, over_weights, rows = {
        "forward": (tokens, 2, 2, 1, 2), "backward": (min(tokens, part), 4, 6, 2, 4),
    }[direction]  # fmt: skip
    padded = -(-keys // LINE) * LINE
    matrices = (over_keys * padded + of_block * block) * head_dim
    return matrices + over_weights * padded * block + rows * block


def build_forward(lanes: int, head_dim: int, kind: int, query_vectors: int, digest: str) -> Any:
    """Return the forward worker's function; its buffers are in the order of `scratch_floats`."""
    block, size = query_vectors * lanes, ELEMENT_BYTES[kind]
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
        rows_at = values_at + over_keys
        turned_at = rows_at + block * head_dim * FLOAT_BYTES
        largest_at = turned_at + block * head_dim * FLOAT_BYTES
        sums_at = largest_at + block * FLOAT_BYTES
        weights_at = sums_at + block * FLOAT_BYTES
        out_stride = heads * head_dim * size
        while item < task[COUNT]:
            its = item_of(task, item, head_dim, size)
            keys = num_keys(task, its.clip)
            first, out_at, stats_at = its.queries, its.out, its.stats
            key_at = first + part_stride
            copy_rows(key_at, token_stride, keys, keys_at, keys, head_dim, kind, lanes)
            value_at = key_at + part_stride
            copy_rows(value_at, token_stride, keys, values_at, keys, head_dim, kind, lanes)
            for query in range(its.begin, its.end, block):
                count = min(block, its.end - query)
                copy_rows(
                    first + query * token_stride, token_stride, count, rows_at, block, head_dim,
                    kind, lanes,
                )  # fmt: skip
                _turn_rows(rows_at, turned_at, scale * LOG2_E, block, head_dim, lanes)
                for pair in range(0, block, 2 * lanes):
                    offset = pair * FLOAT_BYTES
                    product(
                        keys_at, head_dim, 1, turned_at + offset, block, weights_at + offset,
                        block, keys, head_dim, 2, lanes,
                    )  # fmt: skip
                    _soften(
                        weights_at + offset, keys, largest_at + offset, sums_at + offset, block,
                        lanes,
                    )  # fmt: skip
                for column in range(0, head_dim, vectors * lanes):
                    offset = column * FLOAT_BYTES
                    product(
                        weights_at, 1, block, values_at + offset, head_dim, rows_at + offset,
                        head_dim, count, keys, vectors, lanes,
                    )  # fmt: skip
                write_outputs(
                    rows_at, count, out_at + query * out_stride, out_stride, largest_at, sums_at,
                    stats_at + query * FLOAT_BYTES, tokens, keys, head_dim, kind, lanes,
                )  # fmt: skip
            item = take(address, NEXT_ITEM)

    return forward


def build_backward(lanes: int, head_dim: int, kind: int, query_vectors: int, digest: str) -> Any:
    """Return the backward worker's function; its buffers are in the order of `scratch_floats`."""
    block, size = query_vectors * lanes, ELEMENT_BYTES[kind]
    vectors = 2 if head_dim >= 2 * lanes else 1

    def backward(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        heads, tokens, parts = task[HEADS], task[TOKENS], task[PARTS]
        token_stride, part_stride = task[STRIDES + 1], task[STRIDES + 2]
        grad_stride = task[GRAD_STRIDES + 1]
        scale = floats_at(task[SCALE])[0]
        item = take(address, NEXT_ITEM)
        if item >= task[COUNT]:
            return
        padded = (min(tokens, task[PART]) + LINE - 1) // LINE * LINE
        over_keys = padded * head_dim * FLOAT_BYTES
        of_block = block * head_dim * FLOAT_BYTES
        keys_at = task[SCRATCH] + take(address, NEXT_WORKER) * task[SLAB]
        values_at = keys_at + over_keys
        dkeys_at = values_at + over_keys
        dvalues_at = dkeys_at + over_keys
        rows_at = dvalues_at + over_keys
        turned_at = rows_at + of_block
        grads_at = turned_at + of_block
        dturned_at = grads_at + of_block
        drows_at = dturned_at + of_block
        outs_at = drows_at + of_block
        largest_at = outs_at + of_block
        shares_at = largest_at + block * FLOAT_BYTES
        deltas_at = shares_at + block * FLOAT_BYTES
        weights_at = deltas_at + 2 * block * FLOAT_BYTES
        dscores_at = weights_at + padded * block * FLOAT_BYTES
        out_stride, dstride, one = (
            heads * head_dim * size,
            3 * heads * head_dim * size,
            np.float32(1),
        )
        while item < task[COUNT]:
            its = item_of(task, item, head_dim, size)
            keys = max(min(num_keys(task, its.clip), its.end) - its.begin, 0)
            first, out_at, stats_at = its.queries, its.out, its.stats
            grad_at, dfirst = gradients_of(task, its.head, head_dim, size)
            key_at = first + part_stride + its.begin * token_stride
            copy_rows(key_at, token_stride, keys, keys_at, keys, head_dim, kind, lanes)
            value_at = key_at + part_stride
            copy_rows(value_at, token_stride, keys, values_at, keys, head_dim, kind, lanes)
            clear(dkeys_at, keys * head_dim, lanes)
            clear(dvalues_at, keys * head_dim, lanes)
            sums_at = 0
            if parts > 1:
                sums_at = partial_sums(address, its.head, its.part, head_dim)
            for query in range(0, tokens, block):
                count = min(block, tokens - query)
                copy_rows(
                    first + query * token_stride, token_stride, count, rows_at, block, head_dim,
                    kind, lanes,
                )  # fmt: skip
                _turn_rows(rows_at, turned_at, scale * LOG2_E, block, head_dim, lanes)
                read_stats(
                    stats_at + query * FLOAT_BYTES, tokens, count, largest_at, shares_at, block
                )
                _share_rows(
                    grad_at + query * grad_stride, grad_stride, count, shares_at, grads_at, block,
                    head_dim, kind, lanes,
                )  # fmt: skip
                _turn_rows(grads_at, dturned_at, one, block, head_dim, lanes)
                copy_rows(
                    out_at + query * out_stride, out_stride, count, drows_at, block, head_dim,
                    kind, lanes,
                )  # fmt: skip
                _turn_rows(drows_at, outs_at, one, block, head_dim, lanes)
                _sum_products(dturned_at, outs_at, deltas_at, block, head_dim, lanes)
                for pair in range(0, block, 2 * lanes):
                    offset = pair * FLOAT_BYTES
                    product_exp2(
                        keys_at, head_dim, 1, turned_at + offset, block, weights_at + offset,
                        block, keys, head_dim, largest_at + offset, 2, lanes,
                    )  # fmt: skip
                    product_times(
                        values_at, head_dim, 1, dturned_at + offset, block, dscores_at + offset,
                        block, keys, head_dim, deltas_at + offset, weights_at + offset, 2, lanes,
                    )  # fmt: skip
                dqueries_at = drows_at
                if parts > 1:
                    dqueries_at = sums_at + query * head_dim * FLOAT_BYTES
                for column in range(0, head_dim, vectors * lanes):
                    offset = column * FLOAT_BYTES
                    product(
                        dscores_at, 1, block, keys_at + offset, head_dim, dqueries_at + offset,
                        head_dim, count, keys, vectors, lanes,
                    )  # fmt: skip
                    product_added(
                        weights_at, block, 1, grads_at + offset, head_dim, dvalues_at + offset,
                        head_dim, keys, count, vectors, lanes,
                    )  # fmt: skip
                    product_added(
                        dscores_at, block, 1, rows_at + offset, head_dim, dkeys_at + offset,
                        head_dim, keys, count, vectors, lanes,
                    )  # fmt: skip
                if parts == 1:
                    write_rows(
                        drows_at, count, dfirst + query * dstride, dstride, scale, head_dim, kind,
                        lanes,
                    )  # fmt: skip
            write_part(
                address, its, keys, dkeys_at, dvalues_at, dfirst, size, scale, head_dim,
                kind, lanes,
            )  # fmt: skip
            item = take(address, NEXT_ITEM)

    return backward


@stage
def _turn_rows(
    source: int, target: int, factor: float, block: int, head_dim: int, lanes: int
) -> None:
    """Transpose a block of rows, scaled, into a row for each dimension."""
    rows, turned, factors = floats_at(source), floats_at(target), splat(factor, lanes)
    for lane in range(0, block, lanes):
        for d in range(0, head_dim, lanes):
            turn_scaled(
                rows, lane * head_dim + d, head_dim, turned, d * block + lane, block, factors
            )


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
def _share_rows(
    source: int, stride: int, count: int, shares_at: int, target: int, rows: int, head_dim: int,
    kind: int, lanes: int,
) -> None:  # fmt: skip
    """Write rows times their query's share; those from `count` to `rows` are zeros."""
    shares, shared = floats_at(shares_at), floats_at(target)
    for j in range(count):
        factor = splat(shares[j], lanes)
        for d in range(0, head_dim, lanes):
            vector = load_as(source + j * stride, d, kind, lanes) * factor
            store(shared, j * head_dim + d, vector)
    clear(target + count * head_dim * FLOAT_BYTES, (rows - count) * head_dim, lanes)


@stage
def _sum_products(
    grads_at: int, outs_at: int, deltas_at: int, block: int, head_dim: int, lanes: int
) -> None:
    """Write each query's sum of gradient times output, in the order of a product's terms.

    So where a query sees one value alone, the sum is the weight's gradient to the last bit.
    """
    grads, outs, deltas = floats_at(grads_at), floats_at(outs_at), floats_at(deltas_at)
    for lane in range(0, block, lanes):
        total = splat(np.float32(0), lanes)
        for d in range(head_dim):
            place = d * block + lane
            total = multiply_add(load(grads, place, lanes), load(outs, place, lanes), total)
        store(deltas, lane, total)
