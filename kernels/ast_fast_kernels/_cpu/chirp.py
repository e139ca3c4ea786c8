"""Power spectra of any even length: a convolution with a chirp, by FFTs of a length that splits.

A signal of n samples is transformed as n/2 complex numbers, even samples and odd ones. With
n·k = (n² + k² - (k - n)²) / 2, their DFT is a product with a chirp, a convolution with another, and
a product with the first again (Bluestein, 1970). The convolution is circular, over
`rows * columns` points, at least n - 1. It takes four passes over a grid with a plane of real and
one of imaginary parts:

1. a DFT of `rows` points down each column, of the windowed samples times the chirp;
2. along each row the rest of that FFT, the product with the other chirp's spectrum, and the
   beginning of the inverse FFT;
3. down each column the rest of it, and the last chirp; vector k then has bin k of the n/2;
4. bins k and n/2 - k of these give the powers of the same bins of the signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import intrinsic, stage
from ast_fast_kernels._cpu.dft import (
    Complex,
    combined,
    prime_dft,
    rotated,
    smallest_factor,
    turns_of,
    twisted_dft,
    twisted_operations,
)
from ast_fast_kernels._cpu.fft import Plan, constant_pair, power, row_twiddles, table_combine
from ast_fast_kernels._cpu.lanes import Lanes, Value
from ast_fast_kernels._cpu.simd import data_pointer

MOST_POINTS = 96
"""Longest transform as straight-line code."""

Float32Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Convolution:
    """The grid of a length's convolution, and where its tables lie in `chirps`."""

    n_fft: int
    plan: Plan

    @classmethod
    def of(cls, n_fft: int) -> Convolution:
        """Return the grid that takes fewest operations."""
        return cls(n_fft, _grid(n_fft - 1))

    @property
    def numbers(self) -> int:
        """Complex numbers that are transformed."""
        return self.n_fft // 2

    @property
    def points(self) -> int:
        return self.plan.rows * self.plan.columns

    @property
    def used_rows(self) -> int:
        """Rows that hold numbers before the convolution, and bins after it."""
        return -(-self.numbers // self.plan.columns)

    @property
    def tables(self) -> tuple[int, int, int, int]:
        """Where the tables after the chirp begin, in the order of `chirps`."""
        rows, columns = self.plan.rows, self.plan.columns
        forward = 2 * self.used_rows * columns
        spectrum = forward + 2 * rows * (columns - 1)
        inverse = spectrum + 2 * self.points
        return forward, spectrum, inverse, inverse + 2 * columns * (rows - 1)


@cache
def _grid(points: int) -> Plan:
    """Return a grid of at least so many points, both sides products of 2, 3, 5 and 7.

    It takes fewest operations, those of the straight-line code counted once more.
    """
    sides = [n for n in range(2, MOST_POINTS + 1) if not n % 2 and _largest_factor(n) <= 7]
    fitting = [
        (
            (columns + 1) * twisted_operations(rows) + (rows + 1) * twisted_operations(columns),
            rows,
            columns,
        )
        for rows in sides
        for columns in sides
        if rows * columns >= points
    ]
    _, rows, columns = min(fitting)
    return Plan(rows, columns)


def _largest_factor(n: int) -> int:
    p = smallest_factor(n)
    return p if p == n else _largest_factor(n // p)


def chirps(n_fft: int) -> Float32Array:
    """Return the tables of `chirp_spectrum`, flat, made in float64.

    They are the chirp, the forward rotations, the other chirp's spectrum, the inverse rotations,
    and those between even and odd samples.
    """
    grid = Convolution.of(n_fft)
    half = grid.numbers
    n = np.arange(half)
    chirp = np.exp(-1j * np.pi / half * (n * n % (2 * half)))
    given = np.zeros(grid.used_rows * grid.plan.columns, complex)
    given[:half] = chirp
    kernel = np.zeros(grid.points, complex)
    kernel[:half] = chirp.conj()
    kernel[grid.points - half + 1 :] = chirp[:0:-1].conj()
    # Row k has bins k, k + rows, …
    spectrum = (np.fft.fft(kernel) / grid.points).reshape(grid.plan.columns, grid.plan.rows).T
    turned = Plan(grid.plan.columns, grid.plan.rows)
    return np.concatenate(
        (
            _flat(given),
            row_twiddles(grid.plan, range(grid.plan.rows)),
            _flat(spectrum),
            row_twiddles(turned, range(turned.rows)),
            _flat(np.exp(-2j * np.pi / n_fft * np.arange(half // 2 + 1))),
        )
    )


def _flat(z: np.ndarray[Any, Any]) -> Float32Array:
    return np.stack((z.real, z.imag), axis=-1).astype(np.float32).reshape(-1)


def plain_combine(m: int, j: int, parts: Sequence[Any]) -> list[Any]:
    """Combine parts of a DFT, as `twisted_dft` asks; a part that is None is zero, as are all after.

    The inputs beyond a signal's end are None.
    """
    a, b = parts[:2]
    if b is None:
        return [a] * len(parts)
    turns = turns_of(len(parts), j, m)
    if len(parts) == 2 and 4 * j == m:
        return _sum_and_difference(a, (b[1], -b[0]))
    if j:
        return combined(parts, turns)
    return _sum_and_difference(a, b) if len(parts) == 2 else prime_dft(parts)


def _sum_and_difference(a: Any, b: Any) -> list[Any]:
    (a_re, a_im), (b_re, b_im) = a, b
    return [(a_re + b_re, a_im + b_im), (a_re - b_re, a_im - b_im)]


@intrinsic
def _first_pass(
    typing_context: Any,
    source: Any,
    places: Any,
    window: Any,
    shift: Any,
    grid: Any,
    table: Any,
    column: Any,
    n_fft: Any,
    lanes: Any,
) -> Any:
    """Window one column of the signals, times the chirp, and write its DFT to the grid's column."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, lanes)):
        return None
    count = lanes.literal_value
    convolution = Convolution.of(n_fft.literal_value)
    plan, numbers = convolution.plan, convolution.numbers

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        samples, offsets, factors, target, tables = (
            data_pointer(context, builder, signature.args[i], args[i]) for i in (0, 1, 2, 4, 5)
        )
        offset, k = Value(vectors, args[3]), args[6]

        def sample(n: ir.Value) -> Value:
            place = builder.sext(builder.load(builder.gep(offsets, [n])), n.type)
            return (vectors.load(samples, place) - offset) * vectors.load_splat(factors, n)

        def number(row: int) -> Complex[Any]:
            n = builder.add(k, k.type(row * plan.columns))
            turn = _load_pair(vectors, tables, builder.mul(n, k.type(2)))
            if (row + 1) * plan.columns > numbers:  # beyond the end the chirp is zero
                within = builder.icmp_signed("<", n, k.type(numbers))
                n = builder.select(within, n, k.type(numbers - 1))
            even = builder.mul(n, k.type(2))
            return rotated((sample(even), sample(builder.add(even, k.type(1)))), *turn)

        inputs = [
            partial(number, row) if row < convolution.used_rows else None
            for row in range(plan.rows)
        ]
        for row, z in enumerate(twisted_dft(inputs, plain_combine)):
            n = builder.add(k, k.type(row * plan.columns))
            _store(vectors, z, target, n, convolution.points)
        return context.get_dummy_value()

    size = types.intp
    return types.void(source, places, window, shift, grid, table, size, n_fft, lanes), emit


@intrinsic
def _row_pass(typing_context: Any, grid: Any, table: Any, row: Any, n_fft: Any, lanes: Any) -> Any:
    """Transform a row, multiply it by the chirp's spectrum, and begin to transform it back."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, lanes)):
        return None
    convolution = Convolution.of(n_fft.literal_value)
    columns, points = convolution.plan.columns, convolution.points
    count = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        rows = data_pointer(context, builder, grid, args[0])
        factors = data_pointer(context, builder, table, args[1])
        k = args[2]
        forward, spectrum, *_ = convolution.tables

        def affine(scale: int, offset: int) -> ir.Value:
            return builder.add(builder.mul(k, k.type(scale)), k.type(offset))

        def product(j: int, z: Complex[Value]) -> Complex[Any]:
            """Return bin j times the chirp's, its parts swapped: so back is like forth."""
            place = affine(2 * columns, spectrum + 2 * j)
            re, im = rotated(z, *_load_pair(vectors, factors, place))
            return im, re

        turned = table_combine(vectors, factors, affine(2 * (columns - 1), forward))
        z = [partial(_load, vectors, rows, affine(columns, j), points) for j in range(columns)]
        products = [product(j, one) for j, one in enumerate(twisted_dft(z, turned))]
        for j, one in enumerate(twisted_dft(products, plain_combine)):
            _store(vectors, one, rows, affine(columns, j), points)
        return context.get_dummy_value()

    return types.void(grid, table, types.intp, n_fft, lanes), emit


@intrinsic
def _last_pass(
    typing_context: Any, grid: Any, table: Any, column: Any, n_fft: Any, lanes: Any
) -> Any:
    """Transform a column back, and write its bins times the chirp."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, lanes)):
        return None
    convolution = Convolution.of(n_fft.literal_value)
    plan, points = convolution.plan, convolution.points
    count = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        rows = data_pointer(context, builder, grid, args[0])
        factors = data_pointer(context, builder, table, args[1])
        k = args[2]
        start = builder.mul(k, k.type(2 * (plan.rows - 1)))
        start = builder.add(start, k.type(convolution.tables[2]))
        places = [builder.add(k, k.type(row * plan.columns)) for row in range(plan.rows)]
        z = [partial(_load, vectors, rows, place, points) for place in places]
        bins = twisted_dft(z, table_combine(vectors, factors, start))
        for place, (im, re) in zip(places[: convolution.used_rows], bins, strict=False):
            turn = _load_pair(vectors, factors, builder.mul(place, k.type(2)))
            _store(vectors, rotated((re, im), *turn), rows, place, points)
        return context.get_dummy_value()

    return types.void(grid, table, types.intp, n_fft, lanes), emit


@intrinsic
def _write_powers(
    typing_context: Any, grid: Any, table: Any, k: Any, n_fft: Any, lanes: Any
) -> Any:
    """Write the powers of bins k and n/2 - k from the same bins of even and odd samples."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, lanes)):
        return None
    convolution = Convolution.of(n_fft.literal_value)
    points, count = convolution.points, lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        bins = data_pointer(context, builder, grid, args[0])
        factors = data_pointer(context, builder, table, args[1])
        k = args[2]
        place = builder.add(builder.mul(k, k.type(2)), k.type(convolution.tables[3]))
        other = builder.sub(k.type(convolution.numbers), k)
        # Bin n/2 of the complex numbers is bin 0.
        mirrored = builder.select(builder.icmp_signed("==", k, k.type(0)), k, other)
        a, b = (_load(vectors, bins, n, points) for n in (k, mirrored))
        pair = untangled(a, b, _load_pair(vectors, factors, place))
        for n, one in zip((k, other), pair, strict=True):
            vectors.store(power(one), bins, builder.mul(n, k.type(count)))
        return context.get_dummy_value()

    return types.void(grid, table, types.intp, n_fft, lanes), emit


def untangled(a: Complex[Any], b: Complex[Any], turn: tuple[Any, Any]) -> list[Complex[Any]]:
    """Return bin k of real samples, and the conjugate of bin n/2 - k.

    Args:
        a: Bin k of the even samples plus i times the odd ones.
        b: Bin n/2 - k of them.
        turn: Cosine and sine of exp(-2πi · k / n).
    """
    re: Any
    im: Any
    (a_re, a_im), (b_re, b_im) = a, b
    even = (0.5 * (a_re + b_re), 0.5 * (a_im - b_im))  # type: ignore[operator]
    re, im = rotated((0.5 * (a_im + b_im), 0.5 * (b_re - a_re)), *turn)  # type: ignore[operator]
    return [(even[0] + re, even[1] + im), (even[0] - re, even[1] - im)]


def _load_pair(vectors: Lanes, table: ir.Value, place: ir.Value) -> tuple[Value, Value]:
    """Load a cosine and a sine into every lane."""
    following = vectors.builder.add(place, place.type(1))
    return vectors.load_splat(table, place), vectors.load_splat(table, following)


def _load(vectors: Lanes, grid: ir.Value, n: ir.Value, points: int) -> Complex[Value]:
    """Load vector n of both planes."""
    re, im = _both(vectors, n, points)
    return vectors.load(grid, re), vectors.load(grid, im)


def _store(vectors: Lanes, z: Complex[Value], grid: ir.Value, n: ir.Value, points: int) -> None:
    """Store vector n of both planes."""
    for part, place in zip(z, _both(vectors, n, points), strict=True):
        vectors.store(part, grid, place)  # type: ignore[arg-type]


def _both(vectors: Lanes, n: ir.Value, points: int) -> tuple[ir.Value, ir.Value]:
    re = vectors.builder.mul(n, n.type(vectors.count))
    return re, vectors.builder.add(re, n.type(points * vectors.count))


@stage
def chirp_spectrum(
    source: Any,
    places: Any,
    window: Any,
    shift: Any,
    grid: Any,
    table: Any,
    n_fft: int,
    lanes: int,
) -> None:
    """Leave the power spectra of `lanes` windowed real signals in the grid, in order.

    Arguments are those of `fft.power_spectrum`; but the grid has two planes, and `table` is
    `chirps(n_fft)`.
    """
    rows, columns = _grid_of(n_fft)
    for column in range(columns):
        _first_pass(source, places, window, shift, grid, table, column, n_fft, lanes)
    for row in range(rows):
        _row_pass(grid, table, row, n_fft, lanes)
    for column in range(columns):
        _last_pass(grid, table, column, n_fft, lanes)
    for k in range(n_fft // 4 + 1):
        _write_powers(grid, table, k, n_fft, lanes)


@intrinsic
def _grid_of(typing_context: Any, n_fft: Any) -> Any:
    """Return the rows and columns of a length's convolution."""
    if not isinstance(n_fft, types.IntegerLiteral):
        return None
    return constant_pair(n_fft, Convolution.of(n_fft.literal_value).plan)
