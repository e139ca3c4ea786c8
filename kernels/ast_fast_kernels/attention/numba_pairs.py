"""Attention's CPU kernels of bfloat16, by dot products of pairs: two terms of a sum at once.

A 32-bit word holds two neighbours along the dimension that is summed. Scores sum over head_dim,
whose pairs lie so in queries and keys. The other sums are over keys or queries: their pairs are
made of two rows, once per part of a head for keys and values, once per block for queries and
gradients. Weights and the scores' gradients are rounded to bfloat16 for the second products, as
inputs are. The rest is in float32; the scale is multiplied into the scores, so nothing else is
rounded. Blocks, parts and sums are as in `numba_floats.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ast_fast_kernels._cpu.compile import stage
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.products import pair_product, pair_product_added
from ast_fast_kernels._cpu.simd import (
    BFLOAT16,
    LINE,
    add_pairs,
    exp2_short,
    floats_at,
    integers_at,
    join_shorts,
    load,
    load_shorts,
    maximum,
    round_bfloat16,
    rounded_product,
    shorts_at,
    splat,
    store,
    store_shorts,
    turn,
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
    gradients_of,
    item_of,
    num_keys,
    partial_sums,
    read_stats,
    write_outputs,
    write_part,
    write_rows,
)

SHORT_BYTES = 2


def scratch_floats(direction: str, tokens: int, part: int, head_dim: int, block: int) -> int:
    """Return the size of one thread's buffers in words; each is a whole number of cache lines.

    Forward: keys, and pairs of values; a block's queries, as rows, transposed, and its results; two
    vectors' scores; weights in pairs; two rows with a number for each query. Backward: keys, values
    and pairs of keys, and gradients of keys and values, of a part; a block's rows, queries and
    gradients transposed and in pairs, outputs transposed, and its results; two vectors' scores and
    their weights' gradients; weights, and the scores' gradients twice; four rows.
    """
    keys, over_keys, of_block, over_scores, rows = {
        # In halves, for what has two numbers to a word; scores are of half a block at least.
        "forward": (tokens, 2, 4, 3, 2), "backward": (min(tokens, part), 7, 8, 7, 4),
    }[direction]  # fmt: skip
    padded = -(-keys // LINE) * LINE
    width = max(head_dim, 2 * LINE)  # rows that are transposed have a whole square of words
    return (
        over_keys * padded * head_dim // 2
        + of_block * block * width // 2
        + over_scores * padded * block // 2
        + rows * block
    )


def build_forward(lanes: int, head_dim: int, native: int, query_vectors: int, digest: str) -> Any:
    """Return the forward worker's function; its buffers are in the order of `scratch_floats`."""
    block, words = query_vectors * lanes, head_dim // 2
    width = max(words, LINE)
    vectors = 2 if head_dim >= 2 * lanes else 1

    def forward(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        heads, tokens = task[HEADS], task[TOKENS]
        token_stride, part_stride = task[STRIDES + 1], task[STRIDES + 2]
        factor = floats_at(task[SCALE])[0] * LOG2_E
        item = take(address, NEXT_ITEM)
        if item >= task[COUNT]:
            return
        padded = (tokens + LINE - 1) // LINE * LINE
        keys_at = task[SCRATCH] + take(address, NEXT_WORKER) * task[SLAB]
        values_at = keys_at + padded * words * FLOAT_BYTES
        rows_at = values_at + padded * words * FLOAT_BYTES
        turned_at = rows_at + block * width * FLOAT_BYTES
        results_at = turned_at + block * width * FLOAT_BYTES
        scores_at = results_at + block * 2 * width * FLOAT_BYTES
        weights_at = scores_at + padded * 2 * lanes * FLOAT_BYTES
        largest_at = weights_at + padded * block // 2 * FLOAT_BYTES
        sums_at = largest_at + block * FLOAT_BYTES
        out_stride = heads * head_dim * SHORT_BYTES
        while item < task[COUNT]:
            its = item_of(task, item, head_dim, SHORT_BYTES)
            keys = num_keys(task, its.clip)
            pairs = (keys + 1) // 2
            first, out_at, stats_at = its.queries, its.out, its.stats
            key_at = first + part_stride
            _copy_shorts(key_at, token_stride, keys, keys_at, words, keys, head_dim, lanes)
            _pair_rows(key_at + part_stride, token_stride, keys, values_at, head_dim, lanes)
            for query in range(its.begin, its.end, block):
                count = min(block, its.end - query)
                query_at = first + query * token_stride
                _copy_shorts(query_at, token_stride, count, rows_at, width, block, head_dim, lanes)
                _turn_words(rows_at, turned_at, width, block, lanes)
                for pair in range(0, block, 2 * lanes):
                    offset = pair * FLOAT_BYTES
                    pair_product(
                        keys_at, words, 1, turned_at + offset, block, scores_at, 2 * lanes, keys,
                        words, 2, lanes, native,
                    )  # fmt: skip
                    _soften_pairs(
                        scores_at, keys, factor, largest_at + offset, sums_at + offset,
                        weights_at + offset, block, lanes, native,
                    )  # fmt: skip
                for column in range(0, head_dim, vectors * lanes):
                    offset = column * FLOAT_BYTES
                    pair_product(
                        weights_at, 1, block, values_at + offset, head_dim, results_at + offset,
                        head_dim, count, pairs, vectors, lanes, native,
                    )  # fmt: skip
                write_outputs(
                    results_at, count, out_at + query * out_stride, out_stride, largest_at,
                    sums_at, stats_at + query * FLOAT_BYTES, tokens, keys, head_dim, BFLOAT16,
                    lanes,
                )  # fmt: skip
            item = take(address, NEXT_ITEM)

    return forward


def build_backward(lanes: int, head_dim: int, native: int, query_vectors: int, digest: str) -> Any:
    """Return the backward worker's function; its buffers are in the order of `scratch_floats`."""
    block, words = query_vectors * lanes, head_dim // 2
    width = max(words, LINE)
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
        over_keys = padded * words * FLOAT_BYTES
        of_block = block * width * FLOAT_BYTES
        over_scores = padded * 2 * lanes * FLOAT_BYTES
        over_weights = padded * block // 2 * FLOAT_BYTES
        keys_at = task[SCRATCH] + take(address, NEXT_WORKER) * task[SLAB]
        values_at = keys_at + over_keys
        key_pairs_at = values_at + over_keys
        dkeys_at = key_pairs_at + over_keys
        dvalues_at = dkeys_at + 2 * over_keys
        rows_at = dvalues_at + 2 * over_keys
        turned_at = rows_at + of_block
        query_pairs_at = turned_at + of_block
        outs_at = query_pairs_at + of_block
        dturned_at = outs_at + of_block
        grad_pairs_at = dturned_at + of_block
        results_at = grad_pairs_at + of_block
        scores_at = results_at + 2 * of_block
        dweights_at = scores_at + over_scores
        weights_at = dweights_at + over_scores
        dscores_at = weights_at + over_weights
        dscore_pairs_at = dscores_at + over_weights
        largest_at = dscore_pairs_at + over_weights
        shares_at = largest_at + block * FLOAT_BYTES
        deltas_at = shares_at + block * FLOAT_BYTES
        out_stride, dstride = heads * head_dim * SHORT_BYTES, 3 * heads * head_dim * SHORT_BYTES
        while item < task[COUNT]:
            its = item_of(task, item, head_dim, SHORT_BYTES)
            keys = max(min(num_keys(task, its.clip), its.end) - its.begin, 0)
            pairs = (keys + 1) // 2
            first, out_at, stats_at = its.queries, its.out, its.stats
            grad_at, dfirst = gradients_of(task, its.head, head_dim, SHORT_BYTES)
            key_at = first + part_stride + its.begin * token_stride
            value_at = key_at + part_stride
            _copy_shorts(key_at, token_stride, keys, keys_at, words, keys, head_dim, lanes)
            _copy_shorts(value_at, token_stride, keys, values_at, words, keys, head_dim, lanes)
            _pair_rows(key_at, token_stride, keys, key_pairs_at, head_dim, lanes)
            clear(dkeys_at, keys * head_dim, lanes)
            clear(dvalues_at, keys * head_dim, lanes)
            sums_at = 0
            if parts > 1:
                sums_at = partial_sums(address, its.head, its.part, head_dim)
            for query in range(0, tokens, block):
                count = min(block, tokens - query)
                query_at = first + query * token_stride
                _copy_shorts(query_at, token_stride, count, rows_at, width, block, head_dim, lanes)
                _turn_words(rows_at, turned_at, width, block, lanes)
                _pair_rows(rows_at, width * FLOAT_BYTES, block, query_pairs_at, head_dim, lanes)
                upstream_at = grad_at + query * grad_stride
                _copy_shorts(
                    upstream_at, grad_stride, count, rows_at, width, block, head_dim, lanes
                )
                _turn_words(rows_at, dturned_at, width, block, lanes)
                _pair_rows(rows_at, width * FLOAT_BYTES, block, grad_pairs_at, head_dim, lanes)
                outputs_at = out_at + query * out_stride
                _copy_shorts(outputs_at, out_stride, count, rows_at, width, block, head_dim, lanes)
                _turn_words(rows_at, outs_at, width, block, lanes)
                _sum_products(dturned_at, outs_at, deltas_at, words, block, lanes, native)
                read_stats(
                    stats_at + query * FLOAT_BYTES, tokens, count, largest_at, shares_at, block
                )
                for pair in range(0, block, 2 * lanes):
                    offset = pair * FLOAT_BYTES
                    pair_product(
                        keys_at, words, 1, turned_at + offset, block, scores_at, 2 * lanes, keys,
                        words, 2, lanes, native,
                    )  # fmt: skip
                    pair_product(
                        values_at, words, 1, dturned_at + offset, block, dweights_at, 2 * lanes,
                        keys, words, 2, lanes, native,
                    )  # fmt: skip
                    for lane in range(0, 2 * lanes, lanes):
                        place = lane * FLOAT_BYTES
                        shorts = (pair + lane) * SHORT_BYTES
                        _grade(
                            scores_at + place, dweights_at + place, keys, scale * LOG2_E,
                            largest_at + offset + place, shares_at + offset + place,
                            deltas_at + offset + place, weights_at + shorts, dscores_at + shorts,
                            dscore_pairs_at + offset + place, block, lanes, native,
                        )  # fmt: skip
                dqueries_at = results_at
                if parts > 1:
                    dqueries_at = sums_at + query * head_dim * FLOAT_BYTES
                for column in range(0, head_dim, vectors * lanes):
                    offset = column * FLOAT_BYTES
                    pair_product(
                        dscore_pairs_at, 1, block, key_pairs_at + offset, head_dim,
                        dqueries_at + offset, head_dim, count, pairs, vectors, lanes, native,
                    )  # fmt: skip
                    pair_product_added(
                        weights_at, block // 2, 1, grad_pairs_at + offset, head_dim,
                        dvalues_at + offset, head_dim, keys, block // 2, vectors, lanes, native,
                    )  # fmt: skip
                    pair_product_added(
                        dscores_at, block // 2, 1, query_pairs_at + offset, head_dim,
                        dkeys_at + offset, head_dim, keys, block // 2, vectors, lanes, native,
                    )  # fmt: skip
                if parts == 1:
                    write_rows(
                        results_at, count, dfirst + query * dstride, dstride, scale, head_dim,
                        BFLOAT16, lanes,
                    )  # fmt: skip
            write_part(
                address, its, keys, dkeys_at, dvalues_at, dfirst, SHORT_BYTES, scale, head_dim,
                BFLOAT16, lanes,
            )  # fmt: skip
            item = take(address, NEXT_ITEM)

    return backward


@stage
def _copy_shorts(
    source: int, stride: int, count: int, target: int, target_words: int, rows: int,
    head_dim: int, lanes: int,
) -> None:  # fmt: skip
    """Copy rows as they are, `target_words` apart; those from `count` to `rows` are zeros."""
    copies, nothing = shorts_at(target), splat(np.float32(0), lanes)
    for j in range(count):
        row = shorts_at(source + j * stride)
        for d in range(0, head_dim, lanes):
            store_shorts(copies, j * 2 * target_words + d, load_shorts(row, d, lanes))
    for j in range(count, rows):
        for d in range(0, head_dim, lanes):
            store_shorts(copies, j * 2 * target_words + d, nothing)


@stage
def _pair_rows(
    source: int, stride: int, count: int, target: int, head_dim: int, lanes: int
) -> None:
    """Write pairs of neighbouring rows, side by side; an odd last one is paired with zeros."""
    pairs = floats_at(target)
    for j in range(0, count, 2):
        row, following = shorts_at(source + j * stride), shorts_at(source + (j + 1) * stride)
        for d in range(0, head_dim, lanes):
            high = splat(np.float32(0), lanes)
            if j + 1 < count:
                high = load_shorts(following, d, lanes)
            low = load_shorts(row, d, lanes)
            store(pairs, j // 2 * head_dim + d, join_shorts(low, high))


@stage
def _turn_words(source: int, target: int, width: int, block: int, lanes: int) -> None:
    """Transpose a block of rows of `width` words into a row for each word."""
    rows, turned = floats_at(source), floats_at(target)
    for lane in range(0, block, lanes):
        for d in range(0, width, lanes):
            turn(rows, lane * width + d, width, turned, d * block + lane, block, lanes)


@stage
def _soften_pairs(
    scores_at: int, keys: int, factor: float, largest_at: int, sums_at: int, weights_at: int,
    block: int, lanes: int, native: int,
) -> None:  # fmt: skip
    """Write two vectors' weights, 2^(score · factor - largest), for pairs of keys.

    Stores each query's largest, and the sum of its weights before they are rounded. The product is
    rounded as the largest was: fused, the largest of huge scores would differ from itself.
    """
    scores, largest, sums = floats_at(scores_at), floats_at(largest_at), floats_at(sums_at)
    factors, nothing = splat(factor, lanes), splat(np.float32(0), lanes)
    for lane in range(0, 2 * lanes, lanes):
        weights = floats_at(weights_at + lane * FLOAT_BYTES)
        most = splat(np.float32(-np.inf), lanes)
        for key in range(keys):
            score = load(scores, key * 2 * lanes + lane, lanes)
            most = maximum(rounded_product(score, factors), most)
        store(largest, lane, most)
        total, other = nothing, nothing
        for key in range(0, keys - 1, 2):
            place = key * 2 * lanes + lane
            low = exp2_short(rounded_product(load(scores, place, lanes), factors) - most)
            above = load(scores, place + 2 * lanes, lanes)
            high = exp2_short(rounded_product(above, factors) - most)
            total, other = total + low, other + high
            pair = join_shorts(round_bfloat16(low, native), round_bfloat16(high, native))
            store(weights, key // 2 * block, pair)
        if keys % 2 == 1:
            score = load(scores, (keys - 1) * 2 * lanes + lane, lanes)
            low = exp2_short(rounded_product(score, factors) - most)
            total = total + low
            store(weights, keys // 2 * block, round_bfloat16(low, native))
        store(sums, lane, total + other)


@stage
def _sum_products(
    grads_at: int, outs_at: int, deltas_at: int, words: int, block: int, lanes: int, native: int
) -> None:
    """Write each query's sum of gradient times output, in the order of a product's terms.

    So where a query sees one value alone, the sum is the weight's gradient to the last bit.
    """
    grads, outs, deltas = floats_at(grads_at), floats_at(outs_at), floats_at(deltas_at)
    for lane in range(0, block, lanes):
        total = splat(np.float32(0), lanes)
        for d in range(words):
            place = d * block + lane
            grad, out = load(grads, place, lanes), load(outs, place, lanes)
            total = add_pairs(grad, out, total, native)
        store(deltas, lane, total)


@stage
def _grade(
    scores_at: int, dweights_at: int, keys: int, factor: float, largest_at: int, shares_at: int,
    deltas_at: int, weights_at: int, dscores_at: int, pairs_at: int, block: int, lanes: int,
    native: int,
) -> None:  # fmt: skip
    """Write one vector's weights and the scores' gradients as rows, and these in pairs of keys.

    A score's gradient is its weight times what the weight's gradient has above the query's delta.
    """
    scores, dweights = floats_at(scores_at), floats_at(dweights_at)
    weights, dscores, pairs = shorts_at(weights_at), shorts_at(dscores_at), floats_at(pairs_at)
    nothing, factors = splat(np.float32(0), lanes), splat(factor, lanes)
    most = load(floats_at(largest_at), 0, lanes)
    share = load(floats_at(shares_at), 0, lanes)
    delta = load(floats_at(deltas_at), 0, lanes)
    for key in range(0, keys, 2):
        place = key * 2 * lanes
        score = rounded_product(load(scores, place, lanes), factors)
        low = exp2_short(score - most) * share
        dlow = round_bfloat16(low * (load(dweights, place, lanes) - delta), native)
        store_shorts(weights, key * block, round_bfloat16(low, native))
        store_shorts(dscores, key * block, dlow)
        dhigh = nothing
        if key + 1 < keys:
            place = place + 2 * lanes
            score = rounded_product(load(scores, place, lanes), factors)
            high = exp2_short(score - most) * share
            dhigh = round_bfloat16(high * (load(dweights, place, lanes) - delta), native)
            store_shorts(weights, (key + 1) * block, round_bfloat16(high, native))
            store_shorts(dscores, (key + 1) * block, dhigh)
        store(pairs, key // 2 * block, join_shorts(dlow, dhigh))
