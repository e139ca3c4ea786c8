"""Power spectra of real signals of any even length: which way, and where bins then lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from ast_fast_kernels._cpu import chirp, coprime, fft, halves
from ast_fast_kernels._cpu.compile import stage
from ast_fast_kernels._cpu.simd import load, splat, sqrt, store

MAX_SIZE = fft.MAX_SIZE
"""Longest FFT."""


def is_supported(n_fft: int) -> bool:
    """Whether `n_fft` is a length that is served."""
    return 2 <= n_fft <= MAX_SIZE and n_fft % 2 == 0


def can_halve(n_fft: int) -> bool:
    """Whether half of the bins can be transformed after the other, in a grid half as large."""
    return halves.is_supported(n_fft)


def grid_vectors(n_fft: int, in_halves: int) -> int:
    """Return how many vectors the grid of `power_spectrum` has."""
    if halves.is_supported(n_fft):
        return halves.grid_size(n_fft, in_halves)
    if coprime.is_supported(n_fft):
        return coprime.grid_size(n_fft)
    return n_fft if fft.is_supported(n_fft) else 2 * chirp.Convolution.of(n_fft).points


def bin_places(n_fft: int, in_halves: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the vector of the grid that holds the power of each bin, (n_fft // 2 + 1,)."""
    if halves.is_supported(n_fft):
        return halves.bin_places(n_fft, in_halves)
    if coprime.is_supported(n_fft):
        return coprime.bin_places(n_fft)
    if fft.is_supported(n_fft):
        return fft.bin_places(n_fft)
    return np.arange(n_fft // 2 + 1, dtype=np.intp)


def input_order(n_fft: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return which samples `power_spectrum` reads, one after the other, (n_fft,)."""
    return coprime.input_order(n_fft) if coprime.is_supported(n_fft) else np.arange(n_fft)


def can_leave_shift(n_fft: int) -> bool:
    """Whether a shift of zero can be left out: of lengths that are seldom centred."""
    return coprime.is_supported(n_fft)


def used_rows(n_fft: int, window_size: int) -> int:
    """Return `halves.used_rows`; 0 for lengths that are transformed whole, whatever the window."""
    return halves.used_rows(n_fft, window_size) if halves.is_supported(n_fft) else 0


def used_inputs(n_fft: int, used_rows: int) -> int:
    """Return how many samples of a signal `power_spectrum` reads."""
    return halves.used_inputs(n_fft, used_rows) if halves.is_supported(n_fft) else n_fft


def twiddles(n_fft: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the table of a length's rotations, flat."""
    if halves.is_supported(n_fft):
        return halves.twiddles(n_fft)
    if coprime.is_supported(n_fft):
        return np.zeros(0, np.float32)
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
    in_halves: int,
    unshifted: int,
    lanes: int,
) -> None:
    """Leave the power spectra of `lanes` windowed real signals in the grid, at `bin_places`.

    For compiled code, with the arguments of `halves.power_spectrum`; the grid has
    `grid_vectors(n_fft, in_halves)` vectors, and `table` is `twiddles(n_fft)`. Item n of `places`
    and of `window` is of sample `input_order(n_fft)[n]`. `unshifted`, a literal, may be 1 if the
    shift is zero and `can_leave_shift(n_fft)`; else it is 0.
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
    in_halves: Any,
    unshifted: Any,
    lanes: Any,
) -> Any:
    if not isinstance(n_fft, types.IntegerLiteral):
        return None
    by_halves, by_remainders, two_passes, convolve = (
        halves.power_spectrum, coprime.power_spectrum, fft.power_spectrum, chirp.chirp_spectrum,
    )  # fmt: skip

    def in_order(  # type: ignore[no-untyped-def]
        source, places, window, shift, grid, table, upcoming, n_fft, used_rows, in_halves,
        unshifted, lanes,
    ) -> None:  # fmt: skip
        by_halves(
            source, places, window, shift, grid, table, upcoming, n_fft, used_rows, in_halves, lanes
        )

    def in_coprimes(  # type: ignore[no-untyped-def]
        source, places, window, shift, grid, table, upcoming, n_fft, used_rows, in_halves,
        unshifted, lanes,
    ) -> None:  # fmt: skip
        by_remainders(source, places, window, shift, grid, upcoming, n_fft, unshifted, lanes)

    def in_two_passes(  # type: ignore[no-untyped-def]
        source, places, window, shift, grid, table, upcoming, n_fft, used_rows, in_halves,
        unshifted, lanes,
    ) -> None:  # fmt: skip
        two_passes(source, places, window, shift, grid, table, upcoming, n_fft, lanes)

    def by_chirps(  # type: ignore[no-untyped-def]
        source, places, window, shift, grid, table, upcoming, n_fft, used_rows, in_halves,
        unshifted, lanes,
    ) -> None:  # fmt: skip
        convolve(source, places, window, shift, grid, table, n_fft, lanes)

    length = n_fft.literal_value
    if halves.is_supported(length):
        return in_order
    if coprime.is_supported(length):
        return in_coprimes
    return in_two_passes if fft.is_supported(length) else by_chirps


@stage
def take_magnitudes(grid: Any, places: Any, factor: Any, n_fft: int, lanes: int) -> Any:
    """Replace the powers that `power_spectrum` left by their square roots times a vector.

    `places` is where they are, `bin_places` times lanes as int32. Returns each lane's sum of
    powers: NaN where one is, infinite where one has overflowed.
    """
    total = splat(np.float32(0.0), lanes)
    for k in range(n_fft // 2 + 1):
        power = load(grid, places[k], lanes)
        total = total + power
        store(grid, places[k], sqrt(power) * factor)
    return total
