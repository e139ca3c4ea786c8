"""What attention's CPU kernels share: the layout of a task, its parts, and rows of heads.

A head of a long clip is cut into parts, which are items of their own: forward by queries, backward
by keys, whose results are independent. The one sum over keys, the gradient of the queries, is kept
apart for each part; whoever finishes a head's last part adds them, first to last. The parts follow
from the number of tokens alone, so a result depends neither on the batch nor on the threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ast_fast_kernels._cpu.atomics import read_shared, write_shared
from ast_fast_kernels._cpu.compile import stage
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.simd import (
    floats_at,
    indices_at,
    integers_at,
    load,
    load_as,
    splat,
    store,
    store_as,
)
from ast_fast_kernels._cpu.team import HEADER, take

MOST_ROWS = 320
"""Queries or keys of a part: at head_dim 64, four such matrices take 320 KiB of a second cache."""

PART_STEP = 64
"""Parts are multiples of this, so that only a head's last block of queries has fewer."""

MOST_PARTS = 8
"""Backward, each part of a head that a thread is at has its own gradient of the queries."""

(
    COUNT, HEADS, TOKENS, PARTS, PART, LENGTHS, SCALE, SCRATCH, SLAB, SHARED, CONTROL, SLOTS, QKV,
) = range(HEADER, HEADER + 13)  # fmt: skip
"""Numbers of a task: items, heads of a clip, tokens, parts of a head and their size; addresses."""
STRIDES = QKV + 1
"""Strides of clips, tokens, the three parts and heads, in bytes."""
OUT, STATS, DQKV, GRAD, GRAD_STRIDES = range(STRIDES + 4, STRIDES + 9)
"""The last three are for backward only; GRAD_STRIDES are those of clips, tokens and heads."""

LOG2_E = np.float32(math.log2(math.e))


def parts_of(tokens: int) -> tuple[int, int]:
    """Return how many parts a head is cut into, and the size of each but the last."""
    parts = min(-(-tokens // MOST_ROWS), MOST_PARTS)
    size = -(-tokens // (parts * PART_STEP)) * PART_STEP
    return -(-tokens // size), size


@stage
def num_keys(task: Any, clip: int) -> int:
    """Return how many of a clip's tokens are keys that count."""
    keys: int = task[TOKENS]
    if task[LENGTHS] != 0:
        keys = min(max(indices_at(task[LENGTHS])[clip], 0), keys)
    return keys


class Item(NamedTuple):
    """A part of a head, and the addresses of its head's first token."""

    head: int  # of all clips
    part: int
    clip: int
    begin: int  # its first query or key
    end: int  # the one after its last
    queries: int
    out: int
    stats: int


@stage
def item_of(task: Any, item: int, head_dim: int, size: int) -> Item:
    """Return an item of a task, for numbers of `size` bytes."""
    heads, tokens, parts = task[HEADS], task[TOKENS], task[PARTS]
    head, part = item // parts, item % parts
    clip, of_clip = head // heads, head % heads
    return Item(
        head,
        part,
        clip,
        part * task[PART],
        min((part + 1) * task[PART], tokens),
        task[QKV] + clip * task[STRIDES] + of_clip * task[STRIDES + 3],
        task[OUT] + (clip * tokens * heads + of_clip) * head_dim * size,
        task[STATS] + head * 2 * tokens * FLOAT_BYTES,
    )


@stage
def gradients_of(task: Any, head: int, head_dim: int, size: int) -> tuple[int, int]:
    """Return where a head's gradient of the output begins, and that of its queries."""
    heads, tokens = task[HEADS], task[TOKENS]
    clip, of_clip = head // heads, head % heads
    return (
        task[GRAD] + clip * task[GRAD_STRIDES] + of_clip * task[GRAD_STRIDES + 2],
        task[DQKV] + (clip * tokens * 3 * heads + of_clip) * head_dim * size,
    )


@stage
def copy_rows(
    source: int, stride: int, count: int, target: int, rows: int, head_dim: int, kind: int,
    lanes: int,
) -> None:  # fmt: skip
    """Copy rows of a head side by side as float32; those from `count` to `rows` are zeros."""
    copies, nothing = floats_at(target), splat(np.float32(0), lanes)
    for j in range(count):
        for d in range(0, head_dim, lanes):
            store(copies, j * head_dim + d, load_as(source + j * stride, d, kind, lanes))
    for i in range(count * head_dim, rows * head_dim, lanes):
        store(copies, i, nothing)


@stage
def write_rows(
    source: int, count: int, target: int, stride: int, factor: float, head_dim: int, kind: int,
    lanes: int,
) -> None:  # fmt: skip
    """Write rows of float32, each times the factor, as a head's."""
    rows, factors = floats_at(source), splat(factor, lanes)
    for j in range(count):
        for d in range(0, head_dim, lanes):
            vector = load(rows, j * head_dim + d, lanes) * factors
            store_as(target + j * stride, d, vector, kind)


@stage
def write_outputs(
    source: int, count: int, target: int, stride: int, largest_at: int, sums_at: int,
    stats_at: int, tokens: int, keys: int, head_dim: int, kind: int, lanes: int,
) -> None:  # fmt: skip
    """Write weighted values over their weights' sum, and what backward needs of each query."""
    rows, stats = floats_at(source), floats_at(stats_at)
    largest, sums = floats_at(largest_at), floats_at(sums_at)
    for j in range(count):
        share = np.float32(1) / sums[j] if keys > 0 else np.float32(0)
        stats[j], stats[tokens + j] = largest[j], share
        shares = splat(share, lanes)
        for d in range(0, head_dim, lanes):
            vector = load(rows, j * head_dim + d, lanes) * shares
            store_as(target + j * stride, d, vector, kind)


@stage
def read_stats(
    stats_at: int, tokens: int, count: int, largest_at: int, shares_at: int, block: int
) -> None:
    """Read what forward left of a block's queries; zeros for missing ones."""
    stats, largest, shares = floats_at(stats_at), floats_at(largest_at), floats_at(shares_at)
    for j in range(block):
        inside = j < count
        largest[j] = stats[j] if inside else np.float32(0)
        shares[j] = stats[tokens + j] if inside else np.float32(0)


@stage
def clear(address: int, count: int, lanes: int) -> None:
    """Write zeros."""
    floats, nothing = floats_at(address), splat(np.float32(0), lanes)
    for i in range(0, count, lanes):
        store(floats, i, nothing)


@stage
def clear_gradients(
    target: int, stride: int, first: int, last: int, head_dim: int, kind: int, lanes: int
) -> None:
    """Write zeros as the gradients of keys or values that do not count."""
    nothing = splat(np.float32(0), lanes)
    for token in range(first, last):
        for d in range(0, head_dim, lanes):
            store_as(target + token * stride, d, nothing, kind)


@stage
def partial_sums(address: int, head: int, part: int, head_dim: int) -> int:
    """Return where a part of a head sums its gradient of the queries, (tokens, head_dim).

    The first part takes memory for all of a head's. There is as much as for all threads, or for all
    heads if these are fewer: a head has memory only while a thread is at it, as heads begin in
    order.
    """
    task = integers_at(address)
    control, slots = task[CONTROL], task[SLOTS]
    if part == 0:
        free = 0
        while take(control, free) != 0:
            free = (free + 1) % slots
        write_shared(control, slots + head, free + 1)
    slot = read_shared(control, slots + head)
    while slot == 0:
        slot = read_shared(control, slots + head)
    which = (slot - 1) * task[PARTS] + part
    sums_at: int = task[SHARED] + which * task[TOKENS] * head_dim * FLOAT_BYTES
    return sums_at


@stage
def add_parts(
    address: int, head: int, target: int, stride: int, factor: float, head_dim: int, kind: int,
    lanes: int,
) -> None:  # fmt: skip
    """Count a finished part; after a head's last one, write the sum of all and free the memory."""
    task = integers_at(address)
    control, slots, parts, tokens = task[CONTROL], task[SLOTS], task[PARTS], task[TOKENS]
    if take(control, slots + task[COUNT] // parts + head) != parts - 1:
        return
    slot, factors = read_shared(control, slots + head) - 1, splat(factor, lanes)
    size = tokens * head_dim
    sums = floats_at(task[SHARED] + slot * parts * size * FLOAT_BYTES)
    for token in range(tokens):
        for d in range(0, head_dim, lanes):
            place = token * head_dim + d
            total = load(sums, place, lanes)
            for part in range(1, parts):
                total = total + load(sums, part * size + place, lanes)
            store_as(target + token * stride, d, total * factors, kind)
    write_shared(control, slot, 0)


@stage
def write_part(
    address: int, item: Item, keys: int, dkeys_at: int, dvalues_at: int, target: int, size: int,
    factor: float, head_dim: int, kind: int, lanes: int,
) -> None:  # fmt: skip
    """Write the gradients of a part's keys and values, and with the last part the queries'.

    Args:
        address: The task's.
        item: The part; of its keys the first `keys` count.
        keys: Likewise.
        dkeys_at: Sums for the keys, side by side.
        dvalues_at: Those for the values.
        target: Where the gradient of the head's first query begins.
        size: Bytes of a number.
        factor: What gradients of queries and keys are multiplied by.
        head_dim: Numbers of a row; like what follows, a literal.
        kind: Format of the result.
        lanes: Lanes of a vector.
    """
    task = integers_at(address)
    part_stride = task[HEADS] * head_dim * size
    stride = 3 * part_stride
    for sums_at, scale, first in (
        (dkeys_at, factor, target + part_stride),
        (dvalues_at, np.float32(1), target + 2 * part_stride),
    ):
        write_rows(sums_at, keys, first + item.begin * stride, stride, scale, head_dim, kind, lanes)
        clear_gradients(first, stride, item.begin + keys, item.end, head_dim, kind, lanes)
    if task[PARTS] > 1:
        add_parts(address, item.head, target, stride, factor, head_dim, kind, lanes)
