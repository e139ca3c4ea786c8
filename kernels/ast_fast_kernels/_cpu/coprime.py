"""Power spectra of 25 times a power of two points, with no rotations between the passes.

A DFT of n points, where n has two factors without a common divisor, is a DFT of two dimensions if
its points are dealt out by remainders (Good, 1958; Thomas, 1963): input i of column c is sample
25 i + n / 25 · c, and bin k is in row k mod n / 25, as output k mod 25. A real DFT goes down each
of 25 columns, then a complex one of 25 points along each of its outputs: a DFT of five points over
every fifth, and another over the results, rotated. So three times each number is loaded, goes
through a few operations that fit 16 registers, and is stored.

A row lies in one slot of the grid: real parts, then imaginary parts. Outputs 0 and n / 50 of the
columns are real, and share slot 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import intrinsic, stage
from ast_fast_kernels._cpu.dft import multiply_add, real_dft
from ast_fast_kernels._cpu.fft import power, prefetch_share
from ast_fast_kernels._cpu.lanes import Lanes, Value
from ast_fast_kernels._cpu.simd import data_pointer

Complex = tuple[Any, Any]
"""Real and imaginary part."""

COLUMNS = 25
WIDTH = 2 * COLUMNS
"""Vectors of a slot."""


def is_supported(n_fft: int) -> bool:
    """Whether `n_fft` is a length for these passes: 25 times 8, 16, 32 or 64."""
    return n_fft in (200, 400, 800, 1600)


def grid_size(n_fft: int) -> int:
    """Return the vectors that the grid needs."""
    return n_fft


def input_order(n_fft: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return which samples the columns read, one column after the other, (n_fft,)."""
    rows = n_fft // COLUMNS
    column, i = np.divmod(np.arange(n_fft), rows)
    samples: np.ndarray[Any, np.dtype[np.intp]] = (COLUMNS * i + rows * column) % n_fft
    return samples


def bin_places(n_fft: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the vector of the grid that holds the power of each bin, (n_fft // 2 + 1,)."""
    rows = n_fft // COLUMNS
    k = np.arange(n_fft // 2 + 1)
    k = np.where(k % rows > rows // 2, n_fft - k, k)
    row, output = k % rows, k % COLUMNS
    of_real = np.minimum(output, COLUMNS - output) + np.where(row == 0, 0, COLUMNS)
    of_complex = row * WIDTH + output % 5 * 5 + output // 5
    return np.where(row % (rows // 2) == 0, of_real, of_complex)


def five_point_dft(z: Sequence[Complex]) -> list[Complex]:
    """Return the DFT of five complex numbers."""
    return _five(z[0], z[1:], 1.0, [1.0, 1.0, 1.0])


def rotated_five_point_dft(z: Sequence[Complex], numerator: int, denominator: int) -> list[Complex]:
    """Return the DFT of z[j] · exp(-2πi · j · numerator / denominator) for five numbers.

    Cosines are taken out of the rotations, and multiplied where sums are multiplied anyway.
    """
    if numerator == 0:
        return five_point_dft(z)
    turned, cosines = [], []
    for j in range(1, 5):
        re, im = z[j]
        angle = -2.0 * math.pi * j * numerator / denominator
        quarters = round(angle / (0.5 * math.pi))
        for _ in range(quarters % 4):
            re, im = -im, re
        tangent = math.tan(angle - 0.5 * math.pi * quarters)
        cosines.append(math.cos(angle - 0.5 * math.pi * quarters))
        turned.append((multiply_add(-tangent, im, re), multiply_add(tangent, re, im)))
    first, second, third, fourth = cosines
    return _five(z[0], turned, first, [second / first, third / second, fourth / first])


def _five(
    zero: Complex, others: Sequence[Complex], scale: float, ratios: Sequence[float]
) -> list[Complex]:
    """Return the DFT of `zero` and of the others times scales.

    These are `scale` for the first, `scale` times ratio 0 for the second, ratio 1 of the second's
    for the third, and ratio 2 of the first's for the fourth.
    """
    to_second, to_third, to_fourth = ratios
    root, short = math.sqrt(5.0) / 4.0, 2.0 * math.cos(0.4 * math.pi)  # sine 144° / sine 72°
    sine = scale * math.sin(0.4 * math.pi)
    sum_1, difference_1 = _both(others[0], others[3], to_fourth)
    sum_2, difference_2 = _both(others[1], others[2], to_third)
    total, apart = _both(sum_1, sum_2, to_second)
    middle = _plus(zero, total, -0.25 * scale)
    even_1, even_2 = _both(middle, apart, root * scale)
    odd_1 = _plus(difference_1, difference_2, short * to_second)
    odd_2 = _plus(difference_1, difference_2, -to_second / short)
    one, four = _both(even_1, (odd_1[1], -odd_1[0]), sine)
    two, three = _both(even_2, (odd_2[1], -odd_2[0]), sine * short)
    return [_plus(zero, total, scale), one, two, three, four]


def _plus(a: Complex, b: Complex, factor: float) -> Complex:
    """Return a + factor · b."""
    if factor == 1.0:
        return a[0] + b[0], a[1] + b[1]
    return multiply_add(factor, b[0], a[0]), multiply_add(factor, b[1], a[1])


def _both(a: Complex, b: Complex, factor: float) -> tuple[Complex, Complex]:
    """Return a + factor · b and a - factor · b."""
    if factor == 1.0:
        return _plus(a, b, 1.0), (a[0] - b[0], a[1] - b[1])
    return _plus(a, b, factor), _plus(a, b, -factor)


@intrinsic
def _column_pass(
    typing_context: Any,
    source: Any,
    places: Any,
    window: Any,
    shift: Any,
    grid: Any,
    column: Any,
    n_fft: Any,
    unshifted: Any,
    lanes: Any,
) -> Any:
    """Window one column of the signals and write its real DFT to the same column of the slots."""
    literals = (n_fft, unshifted, lanes)
    if not all(isinstance(size, types.IntegerLiteral) for size in literals):
        return None
    rows, count = n_fft.literal_value // COLUMNS, lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        samples, offsets, factors, target = (
            data_pointer(context, builder, array_type, array)
            for array_type, array in zip(
                (source, places, window, grid), (args[0], args[1], args[2], args[4]), strict=True
            )
        )
        offset, k = Value(vectors, args[3]), args[5]
        first = builder.mul(k, k.type(rows))
        start = builder.mul(k, k.type(count))

        def windowed(i: int) -> Value:
            n = builder.add(first, k.type(i))
            place = builder.sext(builder.load(builder.gep(offsets, [n])), n.type)
            sample = vectors.load(samples, place)
            if not unshifted.literal_value:
                sample = sample - offset
            return vectors.product(sample, vectors.load_splat(factors, n))

        def write(place: int, value: Value) -> None:
            vectors.store(value, target, builder.add(start, k.type(place * count)))

        for output, (re, im) in enumerate(real_dft([partial(windowed, i) for i in range(rows)])):
            if im is None:
                write(COLUMNS if output else 0, re)
            else:
                write(output * WIDTH, re)
                write(output * WIDTH + COLUMNS, im)
        return context.get_dummy_value()

    signature = types.void(source, places, window, shift, grid, types.intp, *literals)
    return signature, emit


@intrinsic
def _real_row_pass(typing_context: Any, grid: Any, part: Any, lanes: Any) -> Any:
    """Write the powers of bins 0 to 12 of one of the real rows in slot 0 to its beginning."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    count = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        row = data_pointer(context, builder, grid, args[0])
        size = args[1].type
        first = builder.mul(args[1], size(COLUMNS * count))

        def at(place: int) -> ir.Value:
            return builder.add(first, size(place * count))

        inputs = [partial(vectors.load, row, at(n)) for n in range(COLUMNS)]
        for k, z in enumerate(real_dft(inputs)):
            vectors.store(power(z), row, at(k))
        return context.get_dummy_value()

    return types.void(grid, types.intp, lanes), emit


@intrinsic
def _fives_pass(typing_context: Any, grid: Any, slot: Any, first: Any, lanes: Any) -> Any:
    """Replace every fifth number of a slot, from the first on, by their DFT."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    count = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        numbers = data_pointer(context, builder, grid, args[0])
        size = args[1].type
        begin = builder.add(builder.mul(args[1], size(WIDTH)), args[2])
        begin = builder.mul(begin, size(count))
        places = [
            [builder.add(begin, size((5 * n + part) * count)) for part in (0, COLUMNS)]
            for n in range(5)
        ]
        z = [(vectors.load(numbers, re), vectors.load(numbers, im)) for re, im in places]
        for place, value in zip(places, five_point_dft(z), strict=True):
            for at, one in zip(place, value, strict=True):
                vectors.store(one, numbers, at)
        vectors.settle(numbers)
        return context.get_dummy_value()

    return types.void(grid, types.intp, types.intp, lanes), emit


@intrinsic
def _row_pass(typing_context: Any, grid: Any, slot: Any, lanes: Any) -> Any:
    """Replace a slot, after `_fives_pass` over all of it, by the powers of its bins."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    count = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        numbers = data_pointer(context, builder, grid, args[0])
        size = args[1].type
        begin = builder.mul(args[1], size(WIDTH * count))

        def at(place: int) -> ir.Value:
            return builder.add(begin, size(place * count))

        for output in range(5):
            places = range(5 * output, 5 * output + 5)
            z = [
                (vectors.load(numbers, at(n)), vectors.load(numbers, at(n + COLUMNS)))
                for n in places
            ]
            values = rotated_five_point_dft(z, output, COLUMNS)
            for n, value in zip(places, values, strict=True):
                vectors.store(power(value), numbers, at(n))
            vectors.settle(numbers)
        return context.get_dummy_value()

    return types.void(grid, types.intp, lanes), emit


@stage
def power_spectrum(
    source: Any,
    places: Any,
    window: Any,
    shift: Any,
    grid: Any,
    upcoming: tuple[int, int, int, int],
    n_fft: int,
    unshifted: int,
    lanes: int,
) -> None:
    """Leave the power spectra of `lanes` windowed real signals in the grid, at `bin_places`.

    Sample `input_order(n_fft)[n]` of the signals is `(source[places[n]:] - shift) * window[n]`, a
    vector.

    Args:
        source: Vectors of samples, flat float32; not the grid.
        places: Where each sample's vector begins, (n_fft,) int32.
        window: Factors, (n_fft,) float32; zero beyond the signals' end.
        shift: A vector.
        grid: Receives the spectra, flat float32, `grid_size(n_fft)` vectors.
        upcoming: Memory to prefetch meanwhile: address and number of cache lines of what is read
            next, then of what is written next.
        n_fft: FFT length, a literal.
        unshifted: 1 if the shift is zero and is not subtracted, else 0; a literal.
        lanes: Lanes of a vector, a literal.
    """
    for column in range(COLUMNS):
        prefetch_share(upcoming, column, COLUMNS)
        _column_pass(source, places, window, shift, grid, column, n_fft, unshifted, lanes)
    for part in range(2):
        _real_row_pass(grid, part, lanes)
    for slot in range(1, n_fft // WIDTH):
        for first in range(5):
            _fives_pass(grid, slot, first, lanes)
        _row_pass(grid, slot, lanes)
