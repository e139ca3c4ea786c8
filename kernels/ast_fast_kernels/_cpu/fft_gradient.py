"""Spectra of real signals, and the way back from a gradient of their bins; one signal a lane.

The FFT has fft.py's two passes over a grid of `rows * columns` vectors, but it works in place and
keeps the bins: row k holds the real parts of bins k + rows * j at column j, and row `rows - k`
their imaginary parts. Bins above the middle are conjugates of those below. The way back runs the
transposes of both passes, which transpose.py makes, in place too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import intrinsic, stage
from ast_fast_kernels._cpu.dft import multiply_add, real_dft, rotated
from ast_fast_kernels._cpu.lanes import Lanes, Value
from ast_fast_kernels._cpu.simd import data_pointer
from ast_fast_kernels._cpu.transpose import gradients


def packed_dft(x: Sequence[Any]) -> list[Any]:
    """Return the DFT of n real numbers as n: the real part of bin k at k, the imaginary at n - k.

    Inputs may be functions or None, as in `real_dft`.
    """
    n = len(x)
    packed: list[Any] = [None] * n
    for k, (re, im) in enumerate(real_dft(x)):
        packed[k] = re
        if im is not None:
            packed[n - k] = im
    return packed


def packed_middle_dft(x: Sequence[Any]) -> list[Any]:
    """Return the DFT of n real numbers at k + 1/2: real part at k, imaginary at n - 1 - k."""
    n = len(x)
    turns = [-math.pi * i / n for i in range(n)]
    bins = complex_dft(
        [x[0], *(one * math.cos(turn) for one, turn in zip(x[1:], turns[1:], strict=True))],
        [one * math.sin(turn) for one, turn in zip(x, turns, strict=True)],
    )
    return bins[0 : n + n % 2 : 2] + bins[1 : n - n % 2 : 2][::-1]


def complex_dft(re: Sequence[Any], im: Sequence[Any]) -> list[Any]:
    """Return the DFT of n complex numbers as 2n: the real and the imaginary part of each bin."""
    n = len(re)
    bins: list[Any] = [None] * 2 * n
    for j, ((a_re, a_im), (b_re, b_im)) in enumerate(zip(real_dft(re), real_dft(im), strict=True)):
        if a_im is None or b_im is None:
            bins[2 * j : 2 * j + 2] = a_re, b_re
        else:
            bins[2 * j : 2 * j + 2] = a_re - b_im, a_im + b_re
            bins[2 * (n - j) : 2 * (n - j) + 2] = a_re + b_im, b_re - a_im
    return bins


def rotations(rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Return cosine and sine of the turns between the passes, flat (rows, columns, 2).

    Only those of rows 1 to rows/2 - 1, whose inputs are complex.
    """
    turns = np.outer(np.arange(1, (rows + 1) // 2), np.arange(columns)) / (rows * columns)
    both = np.cos(math.tau * turns), -np.sin(math.tau * turns)
    return np.stack(both, axis=-1).astype(np.float32).reshape(-1)


class _Pass:
    """One pass under construction, over one column or row of the grid."""

    def __init__(
        self, vectors: Lanes, pointers: Sequence[ir.Value], index: ir.Value, sizes: Sequence[int]
    ) -> None:
        self.vectors = vectors
        self.grid, self.bins, self.table = pointers
        self.index = index
        self.rows, self.columns, self.used_rows = sizes

    def down_column(self) -> None:
        """Transform a column of samples."""
        used = range(self.used_rows)
        inputs = [partial(self._in_column, row) if row in used else None for row in self._all_rows]
        self._write_column(packed_dft(inputs))

    def up_column(self) -> None:
        """Leave the gradient of a column of samples."""
        needed = [row < self.used_rows for row in self._all_rows]
        self._write_column(gradients(packed_dft, needed, self._in_column))

    def along_real_rows(self) -> None:
        """Transform rows 0 and rows/2, whose inputs are real; write the powers of their bins."""
        for row, transform, mirror in self._real_rows:
            numbers = transform([self._in_row(row, column) for column in self._all_columns])
            self._write_row(row, numbers)
            for j in range(mirror // 2 + 1):
                power = numbers[j] * numbers[j]
                if j < mirror - j < self.columns:
                    power = multiply_add(numbers[mirror - j], numbers[mirror - j], power)
                self.vectors.store(power, self.bins, self._number(row + self.rows * j))

    def back_along_real_rows(self) -> None:
        """Leave the gradient of their inputs, from the bins and their slopes."""
        for row, transform, mirror in self._real_rows:

            def of_number(place: int, row: int = row, mirror: int = mirror) -> Value:
                bin_number = row + self.rows * min(place, mirror - place)
                slope = self.vectors.load(self.bins, self._number(bin_number))
                return self._in_row(row, place) * slope

            needed = [True] * self.columns
            self._write_row(row, gradients(transform, needed, of_number))

    def along_row(self) -> None:
        """Transform a row of complex numbers; write the powers of its bins."""
        inputs = [self._complex(column) for column in self._all_columns]
        turned = [
            z if column == 0 else rotated(z, *self._turn(column)) for column, z in enumerate(inputs)
        ]
        bins = complex_dft([re for re, _ in turned], [im for _, im in turned])
        for j in self._all_columns:
            re, im = bins[2 * j : 2 * j + 2]
            self._write_complex(j, re, im)
            self.vectors.store(multiply_add(re, re, im * im), self.bins, self._bin(j))

    def back_along_row(self) -> None:
        """Leave the gradient of its inputs, from the bins and their slopes."""
        columns = self.columns

        def transform(numbers: list[Any]) -> list[Any]:
            return complex_dft(numbers[:columns], numbers[columns:])

        def of_number(place: int) -> Value:
            j, part = divmod(place, 2)
            return self._complex(j)[part] * self.vectors.load(self.bins, self._bin(j))

        parts = gradients(transform, [True] * 2 * columns, of_number)
        for column, z in enumerate(zip(parts[:columns], parts[columns:], strict=True)):
            if column > 0:
                cosine, sine = self._turn(column)
                z = rotated(z, cosine, -sine)
            self._write_complex(column, *z)

    @property
    def _all_rows(self) -> range:
        return range(self.rows)

    @property
    def _all_columns(self) -> range:
        return range(self.columns)

    @property
    def _real_rows(self) -> list[tuple[int, Callable[[list[Any]], list[Any]], int]]:
        """The rows with real inputs; their transforms; the sum of the places of a bin's parts."""
        middle = (self.rows // 2, packed_middle_dft, self.columns - 1)
        return [(0, packed_dft, self.columns), *([middle] if self.rows % 2 == 0 else [])]

    def _in_column(self, row: int) -> Value:
        return self.vectors.load(self.grid, self._affine(1, row * self.columns))

    def _write_column(self, numbers: Sequence[Value | None]) -> None:
        for row, number in enumerate(numbers):
            if number is not None:
                self.vectors.store(number, self.grid, self._affine(1, row * self.columns))

    def _in_row(self, row: int, column: int) -> Value:
        return self.vectors.load(self.grid, self._number(row * self.columns + column))

    def _write_row(self, row: int, numbers: Sequence[Value]) -> None:
        for column, number in enumerate(numbers):
            self.vectors.store(number, self.grid, self._number(row * self.columns + column))

    def _complex(self, column: int) -> tuple[Value, Value]:
        re, im = self._parts(column)
        return self.vectors.load(self.grid, re), self.vectors.load(self.grid, im)

    def _write_complex(self, column: int, re: Value, im: Value) -> None:
        for number, place in zip((re, im), self._parts(column), strict=True):
            self.vectors.store(number, self.grid, place)

    def _parts(self, column: int) -> tuple[ir.Value, ir.Value]:
        """Return where a complex number's parts are."""
        mirrored = self.rows * self.columns + column
        return self._affine(self.columns, column), self._affine(-self.columns, mirrored)

    def _turn(self, column: int) -> tuple[Value, Value]:
        """Return the cosine and sine between the passes."""
        b = self.vectors.builder
        first = b.mul(self.index, self._integer(2 * self.columns))
        cosine = b.add(first, self._integer(2 * (column - self.columns)))
        sine = b.add(cosine, self._integer(1))
        return self.vectors.load_splat(self.table, cosine), self.vectors.load_splat(
            self.table, sine
        )

    def _bin(self, j: int) -> ir.Value:
        """Return where the row's bin j, or what it is the conjugate of, has its vector."""
        if 2 * j < self.columns:
            return self._affine(1, self.rows * j)
        return self._affine(-1, self.rows * (self.columns - j))

    def _affine(self, scale: int, offset: int) -> ir.Value:
        """Return where vector number `scale * index + offset` begins."""
        b = self.vectors.builder
        number = b.add(b.mul(self.index, self._integer(scale)), self._integer(offset))
        return b.mul(number, self._integer(self.vectors.count))

    def _number(self, number: int) -> ir.Constant:
        """Return where a vector begins."""
        return self._integer(number * self.vectors.count)

    def _integer(self, value: int) -> ir.Constant:
        return self.index.type(value)


def _intrinsic(emit_pass: Callable[[_Pass], None]) -> Any:
    """Return an intrinsic that runs a pass."""

    def body(
        typing_context: Any,
        grid: Any,
        bins: Any,
        table: Any,
        index: Any,
        rows: Any,
        columns: Any,
        used_rows: Any,
        lanes: Any,
    ) -> Any:
        literals = (rows, columns, used_rows, lanes)
        if not all(isinstance(size, types.IntegerLiteral) for size in literals):
            return None
        *sizes, count = (size.literal_value for size in literals)

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            arrays = zip((grid, bins, table), args, strict=False)
            pointers = [data_pointer(context, builder, kind, array) for kind, array in arrays]
            emit_pass(_Pass(Lanes(builder, count), pointers, args[3], sizes))
            return context.get_dummy_value()

        return types.void(grid, bins, table, types.intp, *literals), emit

    body.__doc__ = emit_pass.__doc__
    return intrinsic(body)


_down_column = _intrinsic(_Pass.down_column)
_up_column = _intrinsic(_Pass.up_column)
_along_real_rows = _intrinsic(_Pass.along_real_rows)
_back_along_real_rows = _intrinsic(_Pass.back_along_real_rows)
_along_row = _intrinsic(_Pass.along_row)
_back_along_row = _intrinsic(_Pass.back_along_row)


@stage
def transform(
    grid: Any, powers: Any, table: Any, rows: int, columns: int, used_rows: int, lanes: int
) -> None:
    """Replace `lanes` real signals in the grid by their bins, and write the bins' powers.

    Args:
        grid: Samples, flat float32 (n, lanes) with n = rows * columns; zero beyond the signals'
            end. Rows from `used_rows` on are not read.
        powers: Receives the powers, flat (n // 2 + 1, lanes).
        table: `rotations(rows, columns)`.
        rows: As `Plan.of(n)` has them; like all that follow, a literal.
        columns: Likewise.
        used_rows: How many of them the signals reach.
        lanes: Lanes of a vector.
    """
    for column in range(columns):
        _down_column(grid, powers, table, column, rows, columns, used_rows, lanes)
    _along_real_rows(grid, powers, table, 0, rows, columns, used_rows, lanes)
    for row in range(1, (rows + 1) // 2):
        _along_row(grid, powers, table, row, rows, columns, used_rows, lanes)


@stage
def transform_back(
    grid: Any, slopes: Any, table: Any, rows: int, columns: int, used_rows: int, lanes: int
) -> None:
    """Replace what `transform` left in the grid by the samples' gradient.

    That of a bin, by its real and imaginary part, is the bin times its slope. Arguments as in
    `transform`, with the slopes, flat (n // 2 + 1, lanes), in place of the powers.
    """
    _back_along_real_rows(grid, slopes, table, 0, rows, columns, used_rows, lanes)
    for row in range(1, (rows + 1) // 2):
        _back_along_row(grid, slopes, table, row, rows, columns, used_rows, lanes)
    for column in range(columns):
        _up_column(grid, slopes, table, column, rows, columns, used_rows, lanes)
