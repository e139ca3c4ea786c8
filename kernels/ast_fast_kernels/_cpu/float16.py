"""Rounding to float16 by vectors: numpy's own loop takes longer than a clip's filterbank."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.core import types

from ast_fast_kernels._cpu.compile import callback, source_digest
from ast_fast_kernels._cpu.simd import (
    FLOAT16,
    FLOAT32,
    address_of,
    floats_at,
    has_float16,
    host_lanes,
    load_as,
    select_less,
    splat,
    store_as,
    sum_lanes,
)
from ast_fast_kernels._cpu.threads import compile_lock

BEYOND = 65520.0
"""The smallest float32 that float16 rounds to infinity."""
LARGEST = float(np.nextafter(np.float32(BEYOND), np.float32(0)))


def to_float16(
    values: npt.NDArray[np.float32], out: npt.NDArray[Any] | None = None
) -> tuple[npt.NDArray[np.float16], int]:
    """Return values rounded to the nearest float16, ties to even, as numpy rounds them.

    Args:
        values: Any shape.
        out: Contiguous float16 array of that shape, which receives the rounded values.
    Returns:
        The rounded values, and how many finite ones became infinite.
    """
    rounded = np.empty(values.shape, np.float16) if out is None else out
    if values.size >= host_lanes() and has_float16():
        source = np.ascontiguousarray(values)
        places = address_of(source), address_of(rounded)
        return rounded, int(_kernel(source_digest())(*places, values.size))
    with np.errstate(over="ignore"):
        rounded[...] = values
    return rounded, int(np.count_nonzero(np.isinf(rounded) & np.isfinite(values)))


@cache
def _kernel(digest: str) -> Any:
    lanes = host_lanes()

    def halves(source: int, target: int, count: int) -> int:
        digest  # noqa: B018 - a closure variable only counts if it is used
        none, one = splat(np.float32(0.0), lanes), splat(np.float32(1.0), lanes)
        lowest, highest = none, none
        for i in range(0, count - lanes + 1, lanes):
            vector = load_as(source, i, FLOAT32, lanes)
            store_as(target, i, vector, FLOAT16)
            lowest = select_less(vector, lowest, vector, lowest)  # a NaN is less than nothing
            highest = select_less(highest, vector, vector, highest)
        last = count - lanes  # the same values again where the last vector overlaps
        vector = load_as(source, last, FLOAT32, lanes)
        store_as(target, last, vector, FLOAT16)
        lowest = select_less(vector, lowest, vector, lowest)
        highest = select_less(highest, vector, vector, highest)
        limit = splat(np.float32(LARGEST), lanes)
        large = select_less(limit, highest, one, none) + select_less(
            lowest, none - limit, one, none
        )
        beyond = 0
        if sum_lanes(large) == np.float32(0.0):
            return beyond
        values = floats_at(source)
        for i in range(count):
            size = abs(values[i])
            beyond += (size >= np.float32(BEYOND)) & (size < np.float32(np.inf))
        return beyond

    with compile_lock:
        return callback(types.intp(types.intp, types.intp, types.intp), halves).ctypes
