"""A stem's cells on a CPU: norm, GELU and convolution in one pass over memory each way.

Cannot avoid, for each value: one read and one write forward; two reads and one write backward; and
nine multiply-adds forward, eighteen backward, besides about 35 operations of norm and GELU.
Measured for 32 clips of 4,096 cells of 32 in bfloat16 on one core: 3.5 ms forward, 9.8 ms forward
and backward, half the time of torch's operators
(`bench/history/2026-11-28-stem-epyc-avx512-2core.json`).

Intermediate values stay in rows that the second-level cache holds: a ring of three rows of the
grid, with a column of zeros at either end, moves along with the convolution. Arithmetic is in
float32 for any dtype of cells. A clip is one item of work. It has its own gradients of the
parameters, which are added up in the order of clips, so a result depends neither on the threads nor
on how they share the batch.
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
from ast_fast_kernels._cpu.simd import (
    LINE,
    aligned,
    exp2,
    floats_at,
    host_lanes,
    integers_at,
    load,
    load_bfloat16,
    maximum,
    multiply_add,
    select_less,
    shorts_at,
    splat,
    store,
    store_bfloat16,
    sum_lanes,
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
from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels.stem.ops import define_norm_gelu_conv

TAPS = 9
NUM_PARTIALS = TAPS + 3
"""Rows of the parameters: the taps, the convolution's bias, the norm's weight and bias."""

COUNT, FREQ, TIME, PARAMETERS, EPS, SCRATCH, SLAB, CELLS, OUT = range(HEADER, HEADER + 9)
GRAD, PARTIALS = OUT + 1, OUT + 2
"""For backward only; there, OUT is the cells' gradient."""

ROWS = {"forward": 4, "backward": 8}
"""Padded rows of a thread's scratch."""


def launch_norm_gelu_conv_fwd(cells: Tensor, parameters: Tensor, eps: float) -> Tensor:
    """Return cells normalised, activated, convolved, and joined 2 × 2.

    Args:
        cells: Shape (batch, freq, time, width), float32 or bfloat16.
        parameters: Nine taps, the convolution's bias, the norm's weight and bias, float32, shape
            (12, width).
        eps: Added to the variance.
    Returns:
        Shape (batch, freq / 2, time / 2, 4 * width), of the cells' dtype.
    """
    batch, freq, time, width = cells.shape
    out = cells.new_empty(batch, freq // 2, time // 2, 4 * width)
    _run("forward", cells, parameters, eps, (out.data_ptr(),))
    return out


def launch_norm_gelu_conv_bwd(
    grad: Tensor, cells: Tensor, parameters: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the cells and of the parameters, float32, shape (12, width).

    Args:
        grad: Gradient of forward's result.
        cells: What forward was given.
        parameters: What forward was given.
        eps: What forward was given.
    """
    batch, _, _, width = cells.shape
    dcells = cells.new_empty(cells.shape)
    with one_thread_if_forked():
        grad = checks.dense(grad.to(cells.dtype))
    # By numpy: torch sums on its threads, which a forked process lacks and would wait for.
    partials = np.empty((batch, NUM_PARTIALS, width), np.float32)
    addresses = (dcells.data_ptr(), grad.data_ptr(), partials.ctypes.data)
    _run("backward", cells, parameters, eps, addresses)
    return dcells, torch.from_numpy(partials.sum(axis=0))


def _run(
    direction: str, cells: Tensor, parameters: Tensor, eps: float, others: tuple[int, ...]
) -> None:
    batch, freq, time, width = cells.shape
    team = torch.get_num_threads()
    threads = min(team, batch)
    if threads == 0:
        return
    cells, parameters = checks.dense(cells), checks.dense(parameters)
    slab = -(-ROWS[direction] * (time + 2) * width // LINE) * LINE
    scratch = aligned(threads * slab)
    floor = np.array([eps], np.float32)
    numbers = (
        batch, freq, time, parameters.data_ptr(), floor.ctypes.data,
        scratch.ctypes.data, slab * FLOAT_BYTES,
        cells.data_ptr(), *others,
    )  # fmt: skip
    lanes = math.gcd(width, host_lanes())
    half = int(cells.dtype == torch.bfloat16)
    run_items(_worker(direction, lanes, width, half), numbers, threads, team)


@cache
def _worker(direction: str, lanes: int, width: int, half: int) -> Any:
    """Return the compiled worker of a direction, for one vector width, grid width and dtype."""
    build = {"forward": _build_forward, "backward": _build_backward}[direction]
    return compile_worker(build(lanes, width, half, source_digest()))


def _build_forward(lanes: int, width: int, half: int, digest: str) -> Any:
    def forward(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        freq, time = task[FREQ], task[TIME]
        item = take(address, NEXT_ITEM)
        if item >= task[COUNT]:
            return
        eps = floats_at(task[EPS])[0]
        padded = (time + 2) * width * FLOAT_BYTES
        ring_at = task[SCRATCH] + take(address, NEXT_WORKER) * task[SLAB]
        row_bytes = time * width * (2 if half else FLOAT_BYTES)
        _clear(ring_at, 4 * (time + 2) * width, lanes)
        while item < task[COUNT]:
            clip_at = task[CELLS] + item * freq * row_bytes
            out_at = task[OUT] + item * freq * row_bytes
            for row in range(-1, freq):
                if row + 1 < freq:
                    target = ring_at + (row + 1) % 3 * padded + width * FLOAT_BYTES
                    _activate(
                        clip_at + (row + 1) * row_bytes, task[PARAMETERS], target, time, eps, width,
                        half, lanes,
                    )  # fmt: skip
                if row >= 0:
                    above = _in_ring(ring_at, row - 1, freq, padded)
                    below = _in_ring(ring_at, row + 1, freq, padded)
                    place_at = out_at + row // 2 * 2 * row_bytes
                    _convolve(
                        above, ring_at + row % 3 * padded, below, task[PARAMETERS], place_at,
                        row % 2, time, width, half, lanes,
                    )  # fmt: skip
            item = take(address, NEXT_ITEM)

    return forward


def _build_backward(lanes: int, width: int, half: int, digest: str) -> Any:
    def backward(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        freq, time = task[FREQ], task[TIME]
        item = take(address, NEXT_ITEM)
        if item >= task[COUNT]:
            return
        eps = floats_at(task[EPS])[0]
        padded = (time + 2) * width * FLOAT_BYTES
        ring_at = task[SCRATCH] + take(address, NEXT_WORKER) * task[SLAB]
        active_at = ring_at + 4 * padded
        row_bytes = time * width * (2 if half else FLOAT_BYTES)
        _clear(ring_at, 4 * (time + 2) * width, lanes)
        while item < task[COUNT]:
            offset = item * freq * row_bytes
            partials_at = task[PARTIALS] + item * NUM_PARTIALS * width * FLOAT_BYTES
            _clear(partials_at, NUM_PARTIALS * width, lanes)
            for row in range(-1, freq):
                if row + 1 < freq:
                    source = task[GRAD] + offset + (row + 1) // 2 * 2 * row_bytes
                    target = ring_at + (row + 1) % 3 * padded + width * FLOAT_BYTES
                    _separate(source, (row + 1) % 2, target, time, width, half, lanes)
                if row >= 0:
                    above = _in_ring(ring_at, row - 1, freq, padded)
                    below = _in_ring(ring_at, row + 1, freq, padded)
                    _activate_with_slope(
                        task[CELLS] + offset + row * row_bytes, task[PARAMETERS], active_at, padded,
                        time, eps, width, half, lanes,
                    )  # fmt: skip
                    _convolve_back(
                        above, ring_at + row % 3 * padded, below, task[PARAMETERS], active_at,
                        padded, partials_at, time, width, lanes,
                    )  # fmt: skip
                    _normalise_back(
                        task[PARAMETERS], active_at, padded, task[OUT] + offset + row * row_bytes,
                        time, width, half, lanes,
                    )  # fmt: skip
            item = take(address, NEXT_ITEM)

    return backward


@stage
def _in_ring(ring_at: int, row: int, freq: int, padded: int) -> int:
    """Return the address of a grid's row in the ring; beyond the grid, that of the row of zeros."""
    return ring_at + (row % 3 if 0 <= row < freq else 3) * padded


@stage
def _clear(address: int, count: int, lanes: int) -> None:
    floats, nothing = floats_at(address), splat(np.float32(0), lanes)
    for i in range(0, count, lanes):
        store(floats, i, nothing)


@stage
def _read(address: int, index: int, half: int, lanes: int) -> Any:
    """Load lanes of an array of float32, or of bfloat16."""
    if half:
        return load_bfloat16(shorts_at(address), index, lanes)
    return load(floats_at(address), index, lanes)


@stage
def _write(address: int, index: int, vector: Any, half: int) -> None:
    if half:
        store_bfloat16(shorts_at(address), index, vector)
    else:
        store(floats_at(address), index, vector)


@stage
def _moments(address: int, first: int, eps: float, width: int, half: int, lanes: int) -> Any:
    """Return a cell's mean and one over its deviation."""
    total = splat(np.float32(0), lanes)
    for c in range(0, width, lanes):
        total = total + _read(address, first + c, half, lanes)
    mean = sum_lanes(total) / np.float32(width)
    means = splat(mean, lanes)
    total = splat(np.float32(0), lanes)
    for c in range(0, width, lanes):
        apart = _read(address, first + c, half, lanes) - means
        total = multiply_add(apart, apart, total)
    return mean, np.float32(1) / np.sqrt(sum_lanes(total) / np.float32(width) + eps)


@stage
def _tail(x: Any, lanes: int) -> Any:
    """Return |x|, the probability that a normal variable exceeds it, and exp(-x² / 2).

    Source: Abramowitz, Stegun, "Handbook of Mathematical Functions", 7.1.26 (off by 1.5e-7 at most
        in the error function).
    """
    size = maximum(x, splat(np.float32(0), lanes) - x)
    bell = exp2(x * x * splat(np.float32(-0.7213475204444817), lanes))  # -log2(e) / 2
    one = splat(np.float32(1), lanes)
    t = one / multiply_add(size, splat(np.float32(0.3275911 * 0.7071067811865476), lanes), one)
    sums = multiply_add(
        t, splat(np.float32(1.061405429), lanes), splat(np.float32(-1.453152027), lanes)
    )
    sums = multiply_add(t, sums, splat(np.float32(1.421413741), lanes))
    sums = multiply_add(t, sums, splat(np.float32(-0.284496736), lanes))
    sums = multiply_add(t, sums, splat(np.float32(0.254829592), lanes))
    return size, t * sums * bell * splat(np.float32(0.5), lanes), bell


@stage
def _activate(
    cells_at: int, parameters_at: int, target: int, time: int, eps: float, width: int, half: int,
    lanes: int,
) -> None:  # fmt: skip
    """Write the GELU of a row's normalised cells."""
    parameters, active = floats_at(parameters_at), floats_at(target)
    zero = splat(np.float32(0), lanes)
    for t in range(time):
        mean, scale = _moments(cells_at, t * width, eps, width, half, lanes)
        means, scales = splat(mean, lanes), splat(scale, lanes)
        for c in range(0, width, lanes):
            apart = (_read(cells_at, t * width + c, half, lanes) - means) * scales
            weight = load(parameters, (TAPS + 1) * width + c, lanes)
            x = multiply_add(apart, weight, load(parameters, (TAPS + 2) * width + c, lanes))
            size, tail, _ = _tail(x, lanes)
            store(active, t * width + c, maximum(x, zero) - size * tail)


@stage
def _nine(address: int, c: int, width: int, lanes: int) -> Any:
    """Load a vector of each of nine rows."""
    rows = floats_at(address)
    return (
        load(rows, c, lanes),
        load(rows, width + c, lanes),
        load(rows, 2 * width + c, lanes),
        load(rows, 3 * width + c, lanes),
        load(rows, 4 * width + c, lanes),
        load(rows, 5 * width + c, lanes),
        load(rows, 6 * width + c, lanes),
        load(rows, 7 * width + c, lanes),
        load(rows, 8 * width + c, lanes),
    )


@stage
def _add(rows: Any, index: int, vector: Any, lanes: int) -> None:
    store(rows, index, load(rows, index, lanes) + vector)


@stage
def _joined(t: int, lower: int, width: int) -> int:
    """Return where a cell of the upper or lower of two rows begins among their joined cells."""
    return (t // 2 * 4 + lower * 2 + t % 2) * width


@stage
def _convolve(
    above_at: int, row_at: int, below_at: int, parameters_at: int, out_at: int, lower: int,
    time: int, width: int, half: int, lanes: int,
) -> None:  # fmt: skip
    """Write a row plus its convolution to its place among the joined cells."""
    above, row, below = floats_at(above_at), floats_at(row_at), floats_at(below_at)
    parameters = floats_at(parameters_at)
    for c in range(0, width, lanes):
        w0, w1, w2, w3, w4, w5, w6, w7, w8 = _nine(parameters_at, c, width, lanes)
        w4 = w4 + splat(np.float32(1), lanes)
        bias = load(parameters, TAPS * width + c, lanes)
        for t in range(time):
            left = t * width + c
            middle, right = left + width, left + 2 * width
            total = multiply_add(w0, load(above, left, lanes), bias)
            total = multiply_add(w1, load(above, middle, lanes), total)
            total = multiply_add(w2, load(above, right, lanes), total)
            other = w3 * load(row, left, lanes)
            other = multiply_add(w4, load(row, middle, lanes), other)
            other = multiply_add(w5, load(row, right, lanes), other)
            total = multiply_add(w6, load(below, left, lanes), total)
            total = multiply_add(w7, load(below, middle, lanes), total)
            total = multiply_add(w8, load(below, right, lanes), total)
            place = _joined(t, lower, width) + c
            _write(out_at, place, total + other, half)


@stage
def _separate(
    grad_at: int, lower: int, target: int, time: int, width: int, half: int, lanes: int
) -> None:
    """Copy a row's gradient out of the gradient of the joined cells."""
    row = floats_at(target)
    for t in range(time):
        place = _joined(t, lower, width)
        for c in range(0, width, lanes):
            store(row, t * width + c, _read(grad_at, place + c, half, lanes))


@stage
def _activate_with_slope(
    cells_at: int, parameters_at: int, active_at: int, padded: int, time: int, eps: float,
    width: int, half: int, lanes: int,
) -> None:  # fmt: skip
    """Write a row's GELU, its derivative, the norm before its weight, and each cell's scale."""
    parameters, active = floats_at(parameters_at), floats_at(active_at)
    slopes, normed = floats_at(active_at + padded), floats_at(active_at + 2 * padded)
    kept = floats_at(active_at + 3 * padded)
    zero, one = splat(np.float32(0), lanes), splat(np.float32(1), lanes)
    density = splat(np.float32(0.3989422804014327), lanes)  # 1 / sqrt(2π)
    for t in range(time):
        mean, scale = _moments(cells_at, t * width, eps, width, half, lanes)
        means, scales = splat(mean, lanes), splat(scale, lanes)
        kept[t] = scale
        for c in range(0, width, lanes):
            place = t * width + c
            apart = (_read(cells_at, place, half, lanes) - means) * scales
            weight = load(parameters, (TAPS + 1) * width + c, lanes)
            x = multiply_add(apart, weight, load(parameters, (TAPS + 2) * width + c, lanes))
            size, tail, bell = _tail(x, lanes)
            below = select_less(x, zero, tail, one - tail)
            store(active, place, maximum(x, zero) - size * tail)
            store(slopes, place, multiply_add(x * density, bell, below))
            store(normed, place, apart)


@stage
def _convolve_back(
    above_at: int, row_at: int, below_at: int, parameters_at: int, active_at: int, padded: int,
    partials_at: int, time: int, width: int, lanes: int,
) -> None:  # fmt: skip
    """Replace a row's derivatives by its norm's gradient; add to the parameters' gradients."""
    above, row, below = floats_at(above_at), floats_at(row_at), floats_at(below_at)
    partials, active = floats_at(partials_at), floats_at(active_at)
    slopes, normed = floats_at(active_at + padded), floats_at(active_at + 2 * padded)
    for c in range(0, width, lanes):
        w0, w1, w2, w3, w4, w5, w6, w7, w8 = _nine(parameters_at, c, width, lanes)
        w4 = w4 + splat(np.float32(1), lanes)
        # Sums for each row, which lose less than one sum over the clip would.
        d0 = d1 = d2 = d3 = d4 = d5 = d6 = d7 = d8 = splat(np.float32(0), lanes)
        dbias = dweight = dshift = d0
        for t in range(time):
            left = t * width + c
            middle, right = left + width, left + 2 * width
            z = load(active, left, lanes)
            # A tap that read this cell wrote to the cell on its opposite side.
            g = load(below, right, lanes)
            total, d0 = w0 * g, multiply_add(z, g, d0)
            g = load(below, middle, lanes)
            total, d1 = multiply_add(w1, g, total), multiply_add(z, g, d1)
            g = load(below, left, lanes)
            total, d2 = multiply_add(w2, g, total), multiply_add(z, g, d2)
            g = load(row, right, lanes)
            other, d3 = w3 * g, multiply_add(z, g, d3)
            g = load(row, middle, lanes)
            other, d4 = multiply_add(w4, g, other), multiply_add(z, g, d4)
            dbias = dbias + g
            g = load(row, left, lanes)
            other, d5 = multiply_add(w5, g, other), multiply_add(z, g, d5)
            g = load(above, right, lanes)
            total, d6 = multiply_add(w6, g, total), multiply_add(z, g, d6)
            g = load(above, middle, lanes)
            total, d7 = multiply_add(w7, g, total), multiply_add(z, g, d7)
            g = load(above, left, lanes)
            total, d8 = multiply_add(w8, g, total), multiply_add(z, g, d8)
            dx = (total + other) * load(slopes, left, lanes)
            dshift = dshift + dx
            dweight = multiply_add(dx, load(normed, left, lanes), dweight)
            store(slopes, left, dx)
        _add(partials, c, d0, lanes)
        _add(partials, width + c, d1, lanes)
        _add(partials, 2 * width + c, d2, lanes)
        _add(partials, 3 * width + c, d3, lanes)
        _add(partials, 4 * width + c, d4, lanes)
        _add(partials, 5 * width + c, d5, lanes)
        _add(partials, 6 * width + c, d6, lanes)
        _add(partials, 7 * width + c, d7, lanes)
        _add(partials, 8 * width + c, d8, lanes)
        _add(partials, TAPS * width + c, dbias, lanes)
        _add(partials, (TAPS + 1) * width + c, dweight, lanes)
        _add(partials, (TAPS + 2) * width + c, dshift, lanes)


@stage
def _normalise_back(
    parameters_at: int, active_at: int, padded: int, out_at: int, time: int, width: int, half: int,
    lanes: int,
) -> None:  # fmt: skip
    """Write a row's gradient from that of its norm."""
    parameters = floats_at(parameters_at)
    grads, normed = floats_at(active_at + padded), floats_at(active_at + 2 * padded)
    kept = floats_at(active_at + 3 * padded)
    for t in range(time):
        total = along = splat(np.float32(0), lanes)
        for c in range(0, width, lanes):
            weight = load(parameters, (TAPS + 1) * width + c, lanes)
            d = load(grads, t * width + c, lanes) * weight
            total = total + d
            along = multiply_add(d, load(normed, t * width + c, lanes), along)
        means = splat(sum_lanes(total) / np.float32(width), lanes)
        along = splat(sum_lanes(along) / np.float32(width), lanes)
        scale = splat(kept[t], lanes)
        for c in range(0, width, lanes):
            weight = load(parameters, (TAPS + 1) * width + c, lanes)
            d = load(grads, t * width + c, lanes) * weight
            apart = load(normed, t * width + c, lanes)
            _write(out_at, t * width + c, scale * (d - means - apart * along), half)


def norm_gelu_conv_numba(
    cells: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    eps: float,
) -> Tensor:
    """Return the cells as these kernels compute them; arguments as the reference's."""
    taps = conv_weight.flatten(1).t()
    parameters = torch.cat((taps, torch.stack((conv_bias, norm_weight, norm_bias))))
    joined: Tensor = _forward(cells, parameters, eps)
    return joined


_forward = define_norm_gelu_conv(
    "norm_gelu_conv_numba", launch_norm_gelu_conv_fwd, launch_norm_gelu_conv_bwd
)
