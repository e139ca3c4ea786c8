"""Power spectra of real signals of any even length: which way, and where bins then lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from ast_fast_kernels._cpu import chirp, fft
from ast_fast_kernels._cpu.compile import intrinsic, stage
from ast_fast_kernels._cpu.simd import load, splat, sqrt, store

MAX_SIZE = fft.MAX_SIZE
"""Longest FFT."""


def is_supported(n_fft: int) -> bool:
    """Whether `n_fft` is a length that is served."""
    return 2 <= n_fft <= MAX_SIZE and n_fft % 2 == 0


def grid_vectors(n_fft: int) -> int:
    """Return how many vectors the grid of `power_spectrum` has."""
    return n_fft if fft.is_supported(n_fft) else 2 * chirp.Convolution.of(n_fft).points


def bin_places(n_fft: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the vector of the grid that holds the power of each bin, (n_fft // 2 + 1,)."""
    if fft.is_supported(n_fft):
        return fft.bin_places(n_fft)
    return np.arange(n_fft // 2 + 1, dtype=np.intp)


def used_rows(n_fft: int, window_size: int) -> int:
    """Return `fft.used_rows`; 0 for lengths that have none."""
    return fft.used_rows(n_fft, window_size) if fft.is_supported(n_fft) else 0


def twiddles(n_fft: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the table of a length's rotations, flat."""
    return fft.twiddles(n_fft) if fft.is_supported(n_fft) else chirp.chirps(n_fft)


def power_spectrum(
    source: Any,
    places: Any,
    window: Any,
    shift: Any,
    grid: Any,
    table: Any,
    upcoming: tuple[int, int, int, int],
    n_fft: int,
    used_rows: int,
    lanes: int,
) -> None:
    """Leave the power spectra of `lanes` windowed real signals in the grid, at `bin_places`.

    For compiled code, with the arguments of `fft.power_spectrum`; the grid has
    `grid_vectors(n_fft)` vectors, and `table` is `twiddles(n_fft)`.
    """
    raise TypeError("power_spectrum can be called by compiled code only")


@overload(power_spectrum, prefer_literal=True, strict=False, jit_options={"error_model": "numpy"})
def _power_spectrum(
    source: Any,
    places: Any,
    window: Any,
    shift: Any,
    grid: Any,
    table: Any,
    upcoming: Any,
    n_fft: Any,
    used_rows: Any,
    lanes: Any,
) -> Any:
    if not isinstance(n_fft, types.IntegerLiteral):
        return None
    two_passes, convolve = fft.power_spectrum, chirp.chirp_spectrum

    def in_two_passes(  # type: ignore[no-untyped-def]
        source, places, window, shift, grid, table, upcoming, n_fft, used_rows, lanes
    ) -> None:
        two_passes(source, places, window, shift, grid, table, upcoming, n_fft, used_rows, lanes)

    def by_chirps(  # type: ignore[no-untyped-def]
        source, places, window, shift, grid, table, upcoming, n_fft, used_rows, lanes
    ) -> None:
        convolve(source, places, window, shift, grid, table, n_fft, lanes)

    return in_two_passes if fft.is_supported(n_fft.literal_value) else by_chirps


@stage
def take_magnitudes(grid: Any, factor: Any, n_fft: int, lanes: int) -> Any:
    """Replace the powers that `power_spectrum` left by their square roots times a vector.

    Returns each lane's sum of powers: NaN where one is, infinite where one has overflowed.
    """
    rows, columns = _layout(n_fft)
    total = splat(np.float32(0.0), lanes)
    for row in range(rows):
        for column in range((n_fft // 2 - row) // rows + 1):
            place = (row * columns + column) * lanes
            power = load(grid, place, lanes)
            total = total + power
            store(grid, place, sqrt(power) * factor)
    return total


@intrinsic
def _layout(typing_context: Any, n_fft: Any) -> Any:
    """Return the rows and columns in which bins lie, row by row, every `rows`-th one in a row."""
    if not isinstance(n_fft, types.IntegerLiteral):
        return None
    size = n_fft.literal_value
    in_order = fft.Plan(rows=1, columns=size)
    return fft.constant_pair(n_fft, fft.Plan.of(size) if fft.is_supported(size) else in_order)
