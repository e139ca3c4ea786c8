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
    store_as,
)
from ast_fast_kernels._cpu.threads import compile_lock

BEYOND = 65520.0
"""The smallest float32 that float16 rounds to infinity."""


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
        for i in range(0, count - lanes + 1, lanes):
            store_as(target, i, load_as(source, i, FLOAT32, lanes), FLOAT16)
        last = count - lanes  # the same values again where the last vector overlaps
        store_as(target, last, load_as(source, last, FLOAT32, lanes), FLOAT16)
        values, beyond = floats_at(source), 0
        for i in range(count):
            size = abs(values[i])
            beyond += (size >= np.float32(BEYOND)) & (size < np.float32(np.inf))
        return beyond

    with compile_lock:
        return callback(types.intp(types.intp, types.intp, types.intp), halves).ctypes
