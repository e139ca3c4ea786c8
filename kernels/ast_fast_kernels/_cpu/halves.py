"""Power spectra of real signals whose FFT length is a power of two; see fft.py.

Here too a real DFT goes down each of `columns` columns, and a complex DFT along each of its
outputs, the rows. Two things are different:

- A row's inputs are rotated first, by factors from a table; then every row goes through the same
  DFT by fours, whose rotations are constants. Half of the operations are plain sums: a processor
  with adders beside its multipliers does both at once, and fewer registers are copied.
- If the first cache is small, columns are transformed twice: for the odd outputs, whose rows are
  transformed before the even outputs take their place. The grid is then half as large, for some
  650 operations more at 512 points. Either way each lane goes through the same operations, so the
  bits are the same.

A row lies in one slot of the grid: real parts, then imaginary parts, then one vector so that no
stride is a power of two, whose places would share a few lines of the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import intrinsic, stage
from ast_fast_kernels._cpu.dft import multiply_add, rotated
from ast_fast_kernels._cpu.fft import Plan, constant_pair, prefetch_share
from ast_fast_kernels._cpu.lanes import Lanes, Value
from ast_fast_kernels._cpu.simd import data_pointer

Complex = tuple[Any, Any]
"""Real and imaginary part; an imaginary part of None is zero."""


@dataclass(frozen=True)
class Grid:
    """Where the rows and powers of an FFT lie; places are counted in vectors."""

    rows: int
    columns: int
    halves: bool

    @classmethod
    def of(cls, n_fft: int, halves: int) -> Grid:
        """Return the layout for a length."""
        split = Plan.of(n_fft)
        return cls(split.rows, split.columns, bool(halves))

    @property
    def width(self) -> int:
        """Vectors of a slot."""
        return 2 * self.columns + 1

    @property
    def even(self) -> tuple[int, ...]:
        """The output of the columns that each slot holds, of even outputs if these are apart.

        Slot 0 has the real output 0, and in place of an imaginary part output rows / 2.
        """
        return (0, *(k for k in sorted_outputs(self.rows) if k % 2 == 0))

    @property
    def odd(self) -> tuple[int, ...]:
        """The output of each slot of odd outputs."""
        return tuple(range(1, self.rows, 4))

    @property
    def odd_slot(self) -> int:
        """The first slot of odd outputs."""
        return 0 if self.halves else len(self.even)

    @property
    def slots(self) -> int:
        """Vectors of all slots. The powers of odd bins follow, in order, if these are apart."""
        return (len(self.even) + (0 if self.halves else len(self.odd))) * self.width

    @property
    def size(self) -> int:
        """Vectors of the grid."""
        return self.slots + (self.rows * self.columns // 4 if self.halves else 0)


def sorted_outputs(rows: int) -> list[int]:
    """Return the outputs of `real_bins` that are complex: odd ones, twice odd ones, and so on.

    Of each output and the one that mirrors it, that which is 1 more than a multiple of 4 times its
    power of two.
    """
    outputs, step = [], 1
    while rows > 2 * step:
        outputs += [k * step for k in range(1, rows // step, 4)]
        step *= 2
    return outputs


def is_supported(n_fft: int) -> bool:
    """Whether `n_fft` is a length for these passes: a power of two from 32 to 4096."""
    return 32 <= n_fft <= 4096 and n_fft & (n_fft - 1) == 0


@cache
def grid_size(n_fft: int, halves: int) -> int:
    """Return the vectors that the grid needs."""
    return Grid.of(n_fft, halves).size


def bin_places(n_fft: int, halves: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the vector of the grid that holds the power of each bin, (n_fft // 2 + 1,)."""
    grid = Grid.of(n_fft, halves)
    rows, columns, half = grid.rows, grid.columns, grid.columns // 2
    places = np.full(n_fft // 2 + 1, -1, np.intp)
    places[::rows] = np.arange(half + 1)
    places[rows // 2 :: rows] = columns + np.arange(half)
    slots = list(enumerate(grid.even))[1:]
    slots += [(grid.odd_slot + slot, k) for slot, k in enumerate(grid.odd)]
    for slot, k in slots:
        first = slot * grid.width
        for j in range(columns):
            place = k + rows * j
            places[min(place, n_fft - place)] = first + j
    if grid.halves:
        places[1::2] = grid.slots + np.arange(n_fft // 4)
    return places


def used_rows(n_fft: int, window_size: int) -> int:
    """Return how many inputs of a column to transform for a window: one of two compiled numbers.

    A window of 25 ms fills 25/32 of the next power of two at 8, 16 or 32 kHz; the inputs beyond it
    are zeros, which need no transform.
    """
    rows = Grid.of(n_fft, 0).rows
    shorter = -(-rows * 25 // 32)
    return shorter if window_size <= shorter * (n_fft // rows) else rows


def used_inputs(n_fft: int, used_rows: int) -> int:
    """Return how many samples that many inputs of each column are."""
    return used_rows * Grid.of(n_fft, 0).columns


def twiddles(n_fft: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return (cosine, sine) by which inputs 1, 2, … of each row are rotated, even slots first."""
    grid = Grid.of(n_fft, 0)
    outputs = np.array((*grid.even[1:], *grid.odd))
    angles = -2 * np.pi / n_fft * outputs[:, None] * np.arange(1, grid.columns)
    table = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    return table.astype(np.float32).reshape(-1)


def real_bins(x: Sequence[Any]) -> Iterator[tuple[int, Complex]]:
    """Yield the DFT of a real sequence of a power of two: bins, one of each two that mirror.

    Each is yielded as soon as it is known: stored at once, it leaves its registers.
    """
    if len(x) == 1:
        yield 0, (x[0], None)
        return
    half = len(x) // 2
    sums = [x[n] + x[n + half] for n in range(half)]
    yield from odd_bins([x[n] - x[n + half] for n in range(half)])
    yield from ((2 * k, z) for k, z in real_bins(sums))


def odd_bins(differences: Sequence[Any]) -> Iterator[tuple[int, Complex]]:
    """Yield bins 1, 5, 9, … of a real sequence, from x[n] - x[n + half]; they mirror 3, 7, ….

    With half as many points, and two of them as one complex number each.
    """
    half = len(differences)
    if half == 1:
        yield 1, (differences[0], None)
        return
    quarter = half // 2
    z = [turned((differences[n], -differences[n + quarter]), n, 2 * half) for n in range(quarter)]
    yield from ((4 * m + 1, value) for m, value in complex_dft(z))


def complex_dft(
    z: Sequence[Complex | Callable[[], Complex]],
    put_by: Callable[[list[Any]], list[Any]] = list,
) -> Iterator[tuple[int, Complex]]:
    """Yield the bins of a complex sequence of a power of two, by fours.

    Inputs may be functions: each is called where its value is first used, which keeps few alive.
    `put_by` may replace the results of each of the four parts by such functions.
    """
    n = len(z)
    if n == 1:
        yield 0, _value(z[0])
        return
    if n == 2:
        a, b = map(_value, z)
        yield 0, _sum(a, b)
        yield 1, _difference(a, b)
        return
    quarter = n // 4
    parts = []
    for r in range(4):
        part = dict(complex_dft(z[r::4]))
        parts.append(put_by([part[j] for j in range(quarter)]))
    for j in range(quarter):
        a, b, c, d = (turned(_value(parts[r][j]), r * j, n) for r in range(4))
        even, other_even = _sum(a, c), _difference(a, c)
        odd, other_odd = _sum(b, d), turned(_difference(b, d), 1, 4)
        yield j, _sum(even, odd)
        yield j + 2 * quarter, _difference(even, odd)
        yield j + quarter, _sum(other_even, other_odd)
        yield j + 3 * quarter, _difference(other_even, other_odd)


def _value(one: Any) -> Any:
    return one() if callable(one) else one


def turned(z: Complex, numerator: int, denominator: int) -> Complex:
    """Return z · exp(-2πi · numerator / denominator)."""
    re, im = z
    eighths, rest = divmod(8 * numerator, denominator)
    if rest == 0:
        for _ in range(eighths % 8 // 2):
            re, im = im, -re
        if eighths % 2:
            re, im = (re + im) * math.sqrt(0.5), (im - re) * math.sqrt(0.5)
        return re, im
    angle = -2.0 * math.pi * numerator / denominator
    return rotated((re, im), math.cos(angle), math.sin(angle))


def _sum(a: Complex, b: Complex) -> Complex:
    return a[0] + b[0], a[1] + b[1]


def _difference(a: Complex, b: Complex) -> Complex:
    return a[0] - b[0], a[1] - b[1]


def _power(z: Complex) -> Any:
    re, im = z
    return re * re if im is None else multiply_add(re, re, im * im)


class _Shelf:
    """Memory for intermediate vectors, where the machine has few registers; else it keeps them.

    LLVM begins everything at once, and then spills twice as many as have to wait.
    """

    def __init__(self, vectors: Lanes, size: int) -> None:
        self.vectors = vectors
        self.memory = vectors.memory(size) if vectors.are_few else None
        self.used = 0

    def put(self, values: list[tuple[Any, ...]]) -> list[Any]:
        """Put tuples of vectors by; return what `_value` takes them back with."""
        if self.memory is None:
            return values
        kept = []
        for value in values:
            places = [ir.IntType(64)((self.used + part) * self.vectors.count) for part in (0, 1)]
            self.used += len(value)
            for vector, place in zip(value, places, strict=True):
                self.vectors.store(vector, self.memory, place)
            kept.append(partial(self._take, places))
        self.settle()
        return kept

    def _take(self, places: list[ir.Value]) -> tuple[Any, ...]:
        return tuple(self.vectors.load(self.memory, place) for place in places)

    def settle(self) -> None:
        """Let what comes later wait for what came before."""
        if self.memory is not None:
            self.vectors.settle(self.memory)


@intrinsic
def _column_pass(
    typing_context: Any,
    source: Any,
    places: Any,
    window: Any,
    shift: Any,
    grid: Any,
    column: Any,
    is_odd: Any,
    n_fft: Any,
    used_rows: Any,
    halves: Any,
    lanes: Any,
) -> Any:
    """Window one column of the signals and write its real DFT to the same column of the slots.

    In halves, its odd outputs or its even ones; else all of them at once, with the odd ones.
    """
    literals = (is_odd, n_fft, used_rows, halves, lanes)
    if not all(isinstance(size, types.IntegerLiteral) for size in literals):
        return None
    plan = Grid.of(n_fft.literal_value, halves.literal_value)
    used, count = used_rows.literal_value, lanes.literal_value
    odd = bool(is_odd.literal_value)
    with_odd, with_even = odd, odd != plan.halves

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        samples, offsets, factors, target = (
            data_pointer(context, builder, array_type, array)
            for array_type, array in zip(
                (source, places, window, grid), (args[0], args[1], args[2], args[4]), strict=True
            )
        )
        offset, k = Value(vectors, args[3]), args[5]
        first = builder.mul(k, k.type(count))

        def sample(row: int) -> tuple[Value, Value]:
            n = builder.add(k, k.type(row * plan.columns))
            place = builder.sext(builder.load(builder.gep(offsets, [n])), n.type)
            return vectors.load(samples, place) - offset, vectors.load_splat(factors, n)

        def write(slot: int, z: Complex) -> None:
            for part, value in enumerate(z):
                if value is not None:
                    at = (slot * plan.width + part * plan.columns) * count
                    vectors.store(value, target, builder.add(first, k.type(at)))

        def windowed(row: int) -> Value:
            return vectors.product(*sample(row))

        half = plan.rows // 2
        sums, differences = [], []
        for row in range(half) if with_odd or with_even else ():
            one = other = windowed(row)
            if row + half < used:
                # Not fused: samples that were windowed and scaled beforehand give the same bits.
                there = windowed(row + half)
                one, other = one + there, other - there
            sums.append(one)
            differences.append(other)
        if with_odd:
            for output, z in odd_bins(differences):
                write(plan.odd_slot + output // 4, z)
        if with_even:
            for output, (re, im) in real_bins(sums):
                if 2 * output == half:
                    write(0, (None, re))
                else:
                    write(plan.even.index(2 * output), (re, im))
        return context.get_dummy_value()

    signature = types.void(source, places, window, shift, grid, types.intp, *literals)
    return signature, emit


@intrinsic
def _real_rows_pass(typing_context: Any, grid: Any, n_fft: Any, halves: Any, lanes: Any) -> Any:
    """Write the powers of the bins of outputs 0 and rows / 2, which are real, in their place."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, halves, lanes)):
        return None
    plan = Grid.of(n_fft.literal_value, halves.literal_value)
    count, columns = lanes.literal_value, plan.columns

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        rows = data_pointer(context, builder, grid, args[0])
        size = context.get_value_type(types.intp)

        def row(first: int) -> list[Value]:
            return [vectors.load(rows, size((first + n) * count)) for n in range(columns)]

        for k, z in real_bins(row(0)):
            vectors.store(_power(z), rows, size(min(k, columns - k) * count))
        for k, z in odd_bins(row(columns)):
            place = columns + min(k, 2 * columns - k) // 2
            vectors.store(_power(z), rows, size(place * count))
        return context.get_dummy_value()

    return types.void(grid, n_fft, halves, lanes), emit


@intrinsic
def _row_pass(
    typing_context: Any,
    grid: Any,
    table: Any,
    slot: Any,
    is_odd: Any,
    n_fft: Any,
    halves: Any,
    lanes: Any,
) -> Any:
    """Write the powers of a slot's bins: in place, or to those of odd bins, in order.

    If not in halves, all slots are alike, and nothing is done for odd outputs alone.
    """
    literals = (is_odd, n_fft, halves, lanes)
    if not all(isinstance(size, types.IntegerLiteral) for size in literals):
        return None
    plan = Grid.of(n_fft.literal_value, halves.literal_value)
    count, columns = lanes.literal_value, plan.columns
    odd = bool(is_odd.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        if odd and not plan.halves:
            return context.get_dummy_value()
        vectors = Lanes(builder, count)
        rows = data_pointer(context, builder, grid, args[0])
        factors = data_pointer(context, builder, table, args[1])
        size = args[2].type

        def affine(scale: int, offset: int) -> ir.Value:
            return builder.add(builder.mul(args[2], size(scale)), size(offset))

        first_slot, first_row = (plan.odd_slot, len(plan.even) - 1) if odd else (0, -1)

        def read(n: int) -> Complex:
            place = (first_slot * plan.width + n) * count
            re, im = (
                vectors.load(rows, affine(plan.width * count, place + part * columns * count))
                for part in (0, 1)
            )
            if n == 0:
                return re, im
            index = affine(2 * (columns - 1), 2 * (first_row * (columns - 1) + n - 1))
            cosine = vectors.load_splat(factors, index)
            return rotated(
                (re, im), cosine, vectors.load_splat(factors, builder.add(index, size(1)))
            )

        def place(j: int) -> ir.Value:
            if not odd:
                return affine(plan.width * count, (first_slot * plan.width + j) * count)
            # Of bin 4 * slot + 1 + rows * j, or of the one that mirrors it.
            if j < columns // 2:
                return affine(2 * count, (plan.slots + plan.rows // 2 * j) * count)
            mirror = plan.slots + plan.rows // 2 * (columns - j) - 1
            return affine(-2 * count, mirror * count)

        shelf = _Shelf(vectors, 2 * columns)
        inputs = [partial(read, n) for n in range(columns)]
        for j, z in complex_dft(inputs, shelf.put):
            vectors.store(_power(z), rows, place(j))
            if j >= columns * 3 // 4:
                shelf.settle()
        return context.get_dummy_value()

    return types.void(grid, table, types.intp, *literals), emit


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
    used_rows: int,
    halves: int,
    lanes: int,
) -> None:
    """Leave the power spectra of `lanes` windowed real signals in the grid, at `bin_places`.

    Sample n of the signals is `(source[places[n]:] - shift) * window[n]`, a vector.

    Args:
        source: Vectors of samples, flat float32; not the grid.
        places: Where each sample's vector begins, (n_fft,) int32; those of rows from `used_rows`
            on are not read.
        window: Factors, (n_fft,) float32; zero beyond the signals' end.
        shift: A vector.
        grid: Receives the spectra, flat float32, `grid_size(n_fft, halves)` vectors.
        table: `twiddles(n_fft)`.
        upcoming: Memory to prefetch meanwhile: address and number of cache lines of what is read
            next, then of what is written next.
        n_fft: FFT length, a literal.
        used_rows: `used_rows(n_fft, window_size)`, a literal.
        halves: 1 to transform odd outputs before even ones, else 0; a literal.
        lanes: Lanes of a vector, a literal.
    """
    rows, columns = _split(n_fft)
    for column in range(columns):
        prefetch_share(upcoming, column, columns)
        _column_pass(
            source, places, window, shift, grid, column, 1, n_fft, used_rows, halves, lanes
        )
    for slot in range(rows // 4):
        _row_pass(grid, table, slot, 1, n_fft, halves, lanes)
    for column in range(columns):
        _column_pass(
            source, places, window, shift, grid, column, 0, n_fft, used_rows, halves, lanes
        )
    _real_rows_pass(grid, n_fft, halves, lanes)
    for slot in range(1, rows // 4 if halves else rows // 2):
        _row_pass(grid, table, slot, 0, n_fft, halves, lanes)


@intrinsic
def _split(typing_context: Any, n_fft: Any) -> Any:
    """Return the rows and columns of a length, a literal."""
    if not isinstance(n_fft, types.IntegerLiteral):
        return None
    return constant_pair(n_fft, Grid.of(n_fft.literal_value, 0))
