"""Power spectra of real signals, one signal per vector lane; built on simd.py, knows no mel.

An FFT of n points is done in two passes over a grid of `rows * columns` vectors, where n has two
such factors of at most about 64; chirp.py serves other lengths, spectrum.py chooses.

1. a real DFT of `rows` points down each column (inputs n2, n2 + columns, …), windowed as they are
   read, leaving the real part of output k in row k and its imaginary part in row `rows - k`;
2. a complex DFT of `columns` points along each row, whose butterflies already hold the twiddles
   between the passes. Row k gives bins k + rows * j, and by symmetry n minus those.

No pass untangles a packed spectrum, and lanes never mix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import intrinsic, stage
from ast_fast_kernels._cpu.dft import (
    Combine,
    Complex,
    combined,
    half_turned_dft,
    multiply_add,
    real_dft,
    real_operations,
    sizes,
    turns_of,
    twisted_dft,
    twisted_operations,
)
from ast_fast_kernels._cpu.lanes import ALIGNMENT, Lanes, Value
from ast_fast_kernels._cpu.simd import (
    data_pointer,
    prefetch_read,
    prefetch_write,
)

MAX_SIZE = 4096
"""Longest FFT of two passes."""

MOST_OPERATIONS = 5000
"""Most vector operations of a kernel's straight-line code, which has to be compiled."""


@dataclass(frozen=True)
class Plan:
    """How an FFT length is split."""

    rows: int
    columns: int

    @classmethod
    def of(cls, n_fft: int) -> Plan:
        """Return the split of an even length.

        Rows are a power of two from 16 to 64 where one leaves few columns: it was fastest of all
        splits of 400, 480, 800 and 1,536. Otherwise the split takes fewest operations.

        Raises:
            ValueError: The length has no split.
        """
        plan = _plan(n_fft)
        if plan is None:
            raise ValueError(f"n_fft must be a length that two passes serve, got {n_fft}")
        return plan

    @property
    def operations(self) -> int:
        """Vector operations of one FFT."""
        complex_rows = (self.rows - 1) // 2
        down = self.columns * real_operations(self.rows)
        return down + self._real_rows + complex_rows * twisted_operations(self.columns)

    @property
    def straight_operations(self) -> int:
        """Vector operations as straight-line code: one column, the real rows, and one other."""
        down, along = real_operations(self.rows), twisted_operations(self.columns)
        return down + self._real_rows + along

    @property
    def _real_rows(self) -> int:
        return (2 - self.rows % 2) * real_operations(self.columns)


@cache
def _plan(n_fft: int) -> Plan | None:
    if not 2 <= n_fft <= MAX_SIZE or n_fft % 2:
        return None
    power = n_fft.bit_length() - 1
    if n_fft == 1 << power:
        return Plan(rows=1 << (power + 1) // 2, columns=1 << power // 2)
    rows = math.gcd(n_fft, 64)
    if rows >= 16 and n_fft // rows <= 64:
        return Plan(rows, n_fft // rows)
    splits = (Plan(rows, n_fft // rows) for rows in range(2, n_fft + 1) if n_fft % rows == 0)
    short = [plan for plan in splits if plan.straight_operations <= MOST_OPERATIONS]
    # Splits differ little in operations; of like ones, short code is fetched and compiled faster.
    return min(short, key=lambda plan: plan.operations + plan.straight_operations, default=None)


def is_supported(n_fft: int) -> bool:
    """Whether `n_fft` is a length that the two passes serve."""
    return _plan(n_fft) is not None


def twiddles(n_fft: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the rotations of rows 1 to rows/2 - 1, flat and in order."""
    plan = Plan.of(n_fft)
    return row_twiddles(plan, range(1, (plan.rows + 1) // 2))


def row_twiddles(plan: Plan, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the rotations of some rows, flat: `columns - 1` pairs a row, as `turns_of` has them.

    Those of shorter transforms come first: of m points, in groups of p - 1, from `m / p - 1` on.
    """
    table = [
        turn
        for row in rows
        for m, shorter in zip(sizes(plan.columns), [1, *sizes(plan.columns)], strict=False)
        for j in range(shorter)
        for turn in turns_of(m // shorter, row + plan.rows * j, plan.rows * m)
    ]
    return np.array(table, dtype=np.float64).astype(np.float32).reshape(-1)


def power(z: Complex[Value]) -> Value:
    """Return re² + im²."""
    re, im = z
    squares: Value = re * re if im is None else multiply_add(re, re, im * im)
    return squares


def table_combine(vectors: Lanes, table: ir.Value, start: ir.Value) -> Combine:
    """Return `twisted_dft`'s butterflies for a row whose rotations begin at `table[start]`."""
    builder, size = vectors.builder, start.type

    def combine(m: int, j: int, parts: list[Complex[Value]]) -> list[Complex[Value]]:
        p = len(parts)
        first = m // p - 1 + j * (p - 1)
        turns = []
        for pair in range(first, first + p - 1):
            index = builder.add(start, size(2 * pair))
            cosine = vectors.load_splat(table, index)
            turns.append((cosine, vectors.load_splat(table, builder.add(index, size(1)))))
        return combined(parts, turns)

    return combine


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
    lanes: Any,
) -> Any:
    """Window one column of the signals and write its real DFT to the same column of the grid."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, lanes)):
        return None
    plan = Plan.of(n_fft.literal_value)
    count = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        samples, offsets, factors, target = (
            data_pointer(context, builder, array_type, array)
            for array_type, array in zip(
                (source, places, window, grid), (args[0], args[1], args[2], args[4]), strict=True
            )
        )
        offset, k = Value(vectors, args[3]), args[5]

        def sample(row: int) -> Value:
            n = builder.add(k, k.type(row * plan.columns))
            place = builder.sext(builder.load(builder.gep(offsets, [n])), n.type)
            return (vectors.load(samples, place) - offset) * vectors.load_splat(factors, n)

        start = builder.mul(k, k.type(count))
        inputs = [partial(sample, row) for row in range(plan.rows)]
        for row, (re, im) in enumerate(real_dft(inputs)):
            for part, at in ((re, row), (im, plan.rows - row)):
                if part is not None:
                    place = builder.add(start, k.type(at * plan.columns * count))
                    vectors.store(part, target, place)
        return context.get_dummy_value()

    signature = types.void(source, places, window, shift, grid, types.intp, n_fft, lanes)
    return signature, emit


@intrinsic
def _real_rows_pass(typing_context: Any, grid: Any, n_fft: Any, lanes: Any) -> Any:
    """Write the powers of the bins of rows 0 and rows/2, whose inputs are real, to these rows."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, lanes)):
        return None
    plan = Plan.of(n_fft.literal_value)
    count = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        rows = data_pointer(context, builder, grid, args[0])
        size = context.get_value_type(types.intp)

        def row(k: int) -> list[Value]:
            first = k * plan.columns
            return [
                vectors.load(rows, size((first + column) * count)) for column in range(plan.columns)
            ]

        def write_powers(k: int, bins: Sequence[Complex[Value]]) -> None:
            for j, z in enumerate(bins):
                vectors.store(power(z), rows, size((k * plan.columns + j) * count))

        write_powers(0, real_dft(row(0)))
        if plan.rows % 2 == 0:
            write_powers(plan.rows // 2, half_turned_dft(row(plan.rows // 2)))
        return context.get_dummy_value()

    return types.void(grid, n_fft, lanes), emit


@intrinsic
def _row_pass(typing_context: Any, grid: Any, table: Any, row: Any, n_fft: Any, lanes: Any) -> Any:
    """Write the powers of row k's bins, and of those mirrored in row `rows - k`, to both rows."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, lanes)):
        return None
    plan = Plan.of(n_fft.literal_value)
    count = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        rows = data_pointer(context, builder, grid, args[0])
        factors = data_pointer(context, builder, table, args[1])
        k = args[2]
        size, pairs = k.type, plan.columns - 1

        def affine(scale: int, offset: int) -> ir.Value:
            return builder.add(builder.mul(k, size(scale)), size(offset))

        width = plan.columns * count

        def read(column: int) -> Complex[Value]:
            return (
                vectors.load(rows, affine(width, column * count)),
                vectors.load(rows, affine(-width, plan.rows * width + column * count)),
            )

        z = [partial(read, column) for column in range(plan.columns)]
        turned = table_combine(vectors, factors, affine(2 * pairs, -2 * pairs))
        for j, value in enumerate(twisted_dft(z, turned)):
            if j < (plan.columns + 1) // 2:
                place = affine(width, j * count)
            else:  # the conjugate of bin (rows - k) + rows * (columns - 1 - j)
                mirrored = plan.rows * width + (plan.columns - 1 - j) * count
                place = affine(-width, mirrored)
            vectors.store(power(value), rows, place)
        return context.get_dummy_value()

    return types.void(grid, table, types.intp, n_fft, lanes), emit


def bin_places(n_fft: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the vector of the grid that holds the power of each bin, (n_fft // 2 + 1,)."""
    plan = Plan.of(n_fft)
    bins = np.arange(n_fft // 2 + 1)
    return (bins % plan.rows * plan.columns + bins // plan.rows).astype(np.intp)


@stage
def power_spectrum(
    source: Any,
    places: Any,
    window: Any,
    shift: Any,
    grid: Any,
    table: Any,
    upcoming: tuple[int, int, int, int],
    n_fft: int,
    lanes: int,
) -> None:
    """Leave the power spectra of `lanes` windowed real signals in the grid, at `bin_places`.

    They overwrite what they are computed from, so that the first-level cache has to hold one buffer
    and not two. Sample n of the signals is `(source[places[n]:] - shift) * window[n]`, a vector.

    Args:
        source: Vectors of samples, flat float32.
        places: Where each sample's vector begins, (n_fft,) int32.
        window: Factors, (n_fft,) float32; zero beyond the signals' end.
        shift: A vector.
        grid: Receives the spectra, flat (n_fft, lanes) float32.
        table: `twiddles(n_fft)`.
        upcoming: Memory to prefetch meanwhile: address and number of cache lines of what is read
            next, then of what is written next.
        n_fft: FFT length, a literal.
        lanes: Lanes of a vector, a literal.
    """
    rows, columns = _split(n_fft)
    for column in range(columns):
        prefetch_share(upcoming, column, columns)
        _column_pass(source, places, window, shift, grid, column, n_fft, lanes)
    _real_rows_pass(grid, n_fft, lanes)
    for row in range(1, (rows + 1) // 2):
        _row_pass(grid, table, row, n_fft, lanes)


@stage
def prefetch_share(upcoming: tuple[int, int, int, int], column: int, columns: int) -> None:
    """Prefetch some of what `power_spectrum` is told with each column.

    Many lines at once would wait for one another.
    """
    read, lines_read, written, lines_written = upcoming
    read_share = (lines_read + columns - 1) // columns
    write_share = (lines_written + columns - 1) // columns
    for line in range(column * read_share, (column + 1) * read_share):
        prefetch_read(read + line * ALIGNMENT)
    for line in range(column * write_share, (column + 1) * write_share):
        prefetch_write(written + line * ALIGNMENT)


@intrinsic
def _split(typing_context: Any, n_fft: Any) -> Any:
    """Return the rows and columns of a length, a literal."""
    if not isinstance(n_fft, types.IntegerLiteral):
        return None
    return constant_pair(n_fft, Plan.of(n_fft.literal_value))


def constant_pair(literal: Any, plan: Any) -> Any:
    """Return what an intrinsic of a literal returns to give a plan's or grid's rows and columns."""
    pair = types.UniTuple(types.intp, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        numbers = [context.get_constant(types.intp, one) for one in (plan.rows, plan.columns)]
        return context.make_tuple(builder, pair, numbers)

    return pair(literal), emit
