"""Power spectra of any even length: a convolution with a chirp, by FFTs of a length that splits.

With n·k = (n² + k² - (k - n)²) / 2, a DFT is a product with a chirp, a convolution with another,
and a product that leaves powers as they are (Bluestein, 1970). The convolution is circular, over
`rows * columns` points: at least a signal and its half. It takes three passes over a grid with a
plane of real and one of imaginary parts, whose vector n belongs to sample n:

1. a DFT of `rows` points down each column, of the windowed samples times the chirp;
2. along each row the rest of that FFT, the product with the other chirp's spectrum, and the
   beginning of the inverse FFT;
3. down each column the rest of it. Vector n then has the power of bin n.
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
        return cls(n_fft, _grid(n_fft + n_fft // 2))

    @property
    def points(self) -> int:
        return self.plan.rows * self.plan.columns

    @property
    def used_rows(self) -> int:
        """Rows that hold samples."""
        return -(-self.n_fft // self.plan.columns)

    @property
    def bins_rows(self) -> int:
        """Rows that hold bins at the end."""
        return (self.n_fft // 2) // self.plan.columns + 1

    @property
    def tables(self) -> tuple[int, int, int]:
        """Where the forward rotations, the chirp's spectrum, and the inverse rotations begin."""
        rows, columns = self.plan.rows, self.plan.columns
        forward = 2 * self.used_rows * columns
        spectrum = forward + 2 * rows * (columns - 1)
        return forward, spectrum, spectrum + 2 * self.points


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
    """Return the tables of `chirp_spectrum`, flat: all are made in float64."""
    grid = Convolution.of(n_fft)
    n = np.arange(n_fft)
    chirp = np.exp(-1j * np.pi / n_fft * (n * n % (2 * n_fft)))
    given = np.zeros(grid.used_rows * grid.plan.columns, complex)
    given[:n_fft] = chirp
    kernel = np.zeros(grid.points, complex)
    kernel[: n_fft // 2 + 1] = chirp[: n_fft // 2 + 1].conj()
    kernel[grid.points - n_fft + 1 :] = chirp[:0:-1].conj()
    # Row k has bins k, k + rows, …
    spectrum = (np.fft.fft(kernel) / grid.points).reshape(grid.plan.columns, grid.plan.rows).T
    turned = Plan(grid.plan.columns, grid.plan.rows)
    return np.concatenate(
        (
            _flat(given),
            row_twiddles(grid.plan, range(grid.plan.rows)),
            _flat(spectrum),
            row_twiddles(turned, range(turned.rows)),
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
    length, count = n_fft.literal_value, lanes.literal_value
    convolution = Convolution.of(length)
    plan = convolution.plan

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        samples, offsets, factors, target, tables = (
            data_pointer(context, builder, signature.args[i], args[i]) for i in (0, 1, 2, 4, 5)
        )
        offset, k = Value(vectors, args[3]), args[6]

        def sample(row: int) -> Complex[Value]:
            n = builder.add(k, k.type(row * plan.columns))
            twice = builder.mul(n, k.type(2))
            if (row + 1) * plan.columns > length:  # beyond the end the chirp is zero
                within = builder.icmp_signed("<", n, k.type(length))
                n = builder.select(within, n, k.type(length - 1))
            place = builder.sext(builder.load(builder.gep(offsets, [n])), n.type)
            x = (vectors.load(samples, place) - offset) * vectors.load_splat(factors, n)
            cosine = vectors.load_splat(tables, twice)
            return x * cosine, x * vectors.load_splat(tables, builder.add(twice, k.type(1)))

        inputs = [
            partial(sample, row) if row < convolution.used_rows else None
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
        forward, spectrum, _ = convolution.tables

        def affine(scale: int, offset: int) -> ir.Value:
            return builder.add(builder.mul(k, k.type(scale)), k.type(offset))

        def product(j: int, z: Complex[Value]) -> Complex[Any]:
            """Return bin j times the chirp's, its parts swapped: so back is like forth."""
            re, im = rotated(
                z,
                vectors.load_splat(factors, affine(2 * columns, spectrum + 2 * j)),
                vectors.load_splat(factors, affine(2 * columns, spectrum + 2 * j + 1)),
            )
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
    """Transform a column back and write the powers of its bins."""
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
        for place, one in zip(places[: convolution.bins_rows], bins, strict=False):
            vectors.store(power(one), rows, builder.mul(place, k.type(count)))
        return context.get_dummy_value()

    return types.void(grid, table, types.intp, n_fft, lanes), emit


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


@intrinsic
def _grid_of(typing_context: Any, n_fft: Any) -> Any:
    """Return the rows and columns of a length's convolution."""
    if not isinstance(n_fft, types.IntegerLiteral):
        return None
    return constant_pair(n_fft, Convolution.of(n_fft.literal_value).plan)
