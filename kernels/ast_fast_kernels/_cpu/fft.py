"""Power spectra of real signals, one signal per vector lane; built on simd.py, knows no mel.

An FFT of n points is done in two passes over a grid of `rows * columns` vectors:

1. a real DFT of `rows` points down each column (inputs n2, n2 + columns, …), windowed as they are
   read, leaving the real part of output k in row k and its imaginary part in row `rows - k`;
2. a complex DFT of `columns` points along each row, whose butterflies already hold the twiddles
   between the passes: six fused multiply-adds each, by factoring the cosine out of the rotation
   (Linzer and Feig, 1993). Row k gives bins k + rows * j, and by symmetry n minus those.

No pass untangles a packed spectrum, and lanes never mix. The butterflies below are plain Python
over anything with `+ - *`: floats in the tests, vectors under construction in the intrinsics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import intrinsic, stage
from ast_fast_kernels._cpu.lanes import ALIGNMENT, Lanes, Value
from ast_fast_kernels._cpu.simd import (
    data_pointer,
    load,
    prefetch_read,
    prefetch_write,
    splat,
    sqrt,
    store,
)

MIN_SIZE, MAX_SIZE = 32, 4096
"""The two passes serve powers of two from MIN_SIZE to MAX_SIZE, and SIZES_OF_25."""

SIZES_OF_25 = (200, 400, 800, 1600)
"""25 times a power of two: 25 ms at 8, 16, 32 and 64 kHz, unpadded."""

T = TypeVar("T", Value, float)
Complex = tuple[T, T | None]
"""Real and imaginary part; an imaginary part of None is zero."""


@dataclass(frozen=True)
class Plan:
    """How an FFT length is split."""

    rows: int
    columns: int

    @classmethod
    def of(cls, n_fft: int) -> Plan:
        """Return the split: 25 rows where 25 divides, else two nearly equal powers of two."""
        if n_fft % 25 == 0:
            return cls(rows=25, columns=n_fft // 25)
        power = n_fft.bit_length() - 1
        return cls(rows=1 << (power + 1) // 2, columns=1 << power // 2)


def is_supported(n_fft: int) -> bool:
    """Whether `n_fft` is a length that the two passes serve."""
    return n_fft in SIZES_OF_25 or (MIN_SIZE <= n_fft <= MAX_SIZE and n_fft & (n_fft - 1) == 0)


def rotation(numerator: int, denominator: int) -> tuple[float, float]:
    """Return (cosine, sine over cosine) of exp(-2πi · numerator / denominator)."""
    angle = -2.0 * math.pi * numerator / denominator
    return math.cos(angle), math.tan(angle)


def multiply_add(a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c; for vectors in one instruction.

    Written as operators, a product with two uses would be multiplied once and added twice: three
    instructions instead of two.
    """
    for operand in (a, b, c):
        if isinstance(operand, Value):
            return operand.lanes.fma(a, b, c)
    return a * b + c


def butterfly(a: Complex[T], b: Complex[T], cosine: Any, tangent: Any) -> list[Complex[T]]:
    """Return a + w·b and a - w·b for the rotation w = cosine · (1 + i·tangent)."""
    (a_re, a_im), (u, v) = a, _turned(b, tangent)
    real = (multiply_add(cosine, u, a_re), multiply_add(-cosine, u, a_re))
    if a_im is None:
        return [(real[0], cosine * v), (real[1], -cosine * v)]
    return [
        (real[0], multiply_add(cosine, v, a_im)),
        (real[1], multiply_add(-cosine, v, a_im)),
    ]


def mirrored_butterfly(a: Complex[T], b: Complex[T], cosine: Any, tangent: Any) -> list[Complex[T]]:
    """Return a + w·b and the conjugate of a - w·b, as real inputs need it."""
    (a_re, a_im), (u, v) = a, _turned(b, tangent)
    return [
        (multiply_add(cosine, u, a_re), multiply_add(cosine, v, a_im)),
        (multiply_add(-cosine, u, a_re), multiply_add(cosine, v, -a_im)),  # type: ignore[operator]
    ]


def _turned(b: Complex[T], tangent: Any) -> tuple[Any, Any]:
    """Return b · (1 + i·tangent)."""
    b_re, b_im = b
    if b_im is None:
        return b_re, tangent * b_re
    return multiply_add(-tangent, b_im, b_re), multiply_add(tangent, b_re, b_im)


def quarter_butterfly(a: Complex[T], b: Complex[T]) -> list[Complex[T]]:
    """Return a - i·b and a + i·b, where the cosine is zero."""
    (a_re, a_im), (b_re, b_im) = a, b
    if a_im is None or b_im is None:  # both: the first butterflies of a real row
        return [(a_re, -b_re), (a_re, b_re)]
    return [(a_re + b_im, a_im - b_re), (a_re - b_im, a_im + b_re)]


def real_dft(x: Sequence[Any]) -> list[Complex[T]]:
    """Return bins 0 to n/2 of a real sequence, by decimation in time; n is a power of two, 5 or 25.

    Inputs may be functions: each is called where its value is first used, which keeps few alive.
    If n is a power of two, inputs of the second half may be None: they are zero and cost nothing.
    """
    n = len(x)
    if n == 5:
        return five_dft([(_value(one), None) for one in x])
    if n == 25:
        return _twenty_five_dft(x)
    if n <= 2:
        first, second = _value(x[0]), _value(x[1]) if n == 2 else None
        return [(first, None)] * n if second is None else [
            (first + second, None), (first - second, None)
        ]  # fmt: skip
    even, odd = real_dft(x[0::2]), real_dft(x[1::2])
    bins: list[Any] = [None] * (n // 2 + 1)
    bins[0] = (even[0][0] + odd[0][0], None)
    bins[n // 2] = (even[0][0] - odd[0][0], None)
    bins[n // 4] = (even[n // 4][0], -odd[n // 4][0])
    for k in range(1, n // 4):
        bins[k], bins[n // 2 - k] = mirrored_butterfly(even[k], odd[k], *rotation(k, n))
    return bins


def _value(one: Any) -> Any:
    return one() if callable(one) else one


def five_dft(z: Sequence[Complex[Any]]) -> list[Complex[Any]]:
    """Return the DFT of five numbers; of real ones, bins 0 to 2."""
    re_0, re_even, re_odd = _fifths([re for re, _ in z])
    if z[0][1] is None:
        return [(re_0, None), (re_even[0], -re_odd[0]), (re_even[1], -re_odd[1])]
    im_0, im_even, im_odd = _fifths([im for _, im in z])
    parts = list(zip(re_even, re_odd, im_even, im_odd, strict=True))
    bins = [(a + d, c - b) for a, b, c, d in parts]
    mirrored = [(a - d, c + b) for a, b, c, d in parts]
    return [(re_0, im_0), *bins, *reversed(mirrored)]


def _fifths(x: Sequence[Any]) -> tuple[Any, list[Any], list[Any]]:
    """Return five numbers' sum, and their sums with cosines and with sines of bins 1 and 2."""
    (c1, s1), (c2, s2) = ((math.cos(t), math.sin(t)) for t in (math.tau / 5, 2 * math.tau / 5))
    a, b = x[1] + x[4], x[2] + x[3]
    d, e = x[1] - x[4], x[2] - x[3]
    even = [multiply_add(a, p, multiply_add(b, q, x[0])) for p, q in ((c1, c2), (c2, c1))]
    odd = [multiply_add(d, s1, e * s2), multiply_add(d, s2, e * -s1)]
    return x[0] + a + b, even, odd


def _twenty_five_dft(x: Sequence[Any]) -> list[Complex[Any]]:
    """Return bins 0 to 12 of 25 real numbers: five DFTs of five, rotated, and five again."""
    inner: list[list[Any]] = [real_dft(x[r::5]) for r in range(5)]
    bins: list[Any] = [None] * 13
    for k in range(3):
        turned = [_rotated(inner[r][k], r * k) if r * k else inner[r][k] for r in range(5)]
        for place, z in zip(range(k, 25, 5), five_dft(turned), strict=False):
            # For real inputs, bin 25 - place is the conjugate.
            bins[min(place, 25 - place)] = z if place <= 12 else _conjugate(z)
    return bins


def _conjugate(z: Complex[Any]) -> Complex[Any]:
    re, im = z
    return re, -im  # type: ignore[operator]


def _rotated(z: Complex[Any], numerator: int) -> Complex[Any]:
    """Return z · exp(-2πi · numerator / 25)."""
    angle = -2.0 * math.pi * numerator / 25
    cosine, sine = math.cos(angle), math.sin(angle)
    re: Any
    im: Any
    re, im = z
    return multiply_add(-sine, im, cosine * re), multiply_add(sine, re, cosine * im)


def twisted_dft(
    z: Sequence[Complex[T] | Callable[[], Complex[T]]],
    combine: Callable[[int, int, Complex[T], Complex[T]], list[Complex[T]]],
) -> list[Complex[T]]:
    """Return sum over n of z[n] · v^n for the roots v that `combine`'s rotations stand for.

    Inputs may be functions, as in `real_dft`. `combine(m, j, a, b)` is the butterfly of output j in
    a transform of m points; with the rotations of row k it gives bins k + rows * j of the whole
    FFT.
    """
    m = len(z)
    if m == 1:
        return [_value(z[0])]
    even, odd = twisted_dft(z[0::2], combine), twisted_dft(z[1::2], combine)
    pairs = [combine(m, j, even[j], odd[j]) for j in range(m // 2)]
    return [plus for plus, _ in pairs] + [minus for _, minus in pairs]


def twiddles(n_fft: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return (cosine, tangent) of every butterfly of rows 1 to rows/2 - 1, flat and in order."""
    plan = Plan.of(n_fft)
    table = [
        rotation(row + plan.rows * j, plan.rows * m)
        for row in range(1, (plan.rows + 1) // 2)
        for m in _sizes(plan.columns)
        for j in range(m // 2)
    ]
    return np.array(table, dtype=np.float64).astype(np.float32).reshape(-1)


def _sizes(columns: int) -> list[int]:
    return [1 << level for level in range(1, columns.bit_length())]


def _power(z: Complex[Value]) -> Value:
    re, im = z
    power: Value = re * re if im is None else multiply_add(re, re, im * im)
    return power


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
    used_rows: Any,
    lanes: Any,
) -> Any:
    """Window one column of the signals and write its real DFT to the same column of the grid."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, used_rows, lanes)):
        return None
    plan = Plan.of(n_fft.literal_value)
    used, count = used_rows.literal_value, lanes.literal_value

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
        inputs = [partial(sample, row) if row < used else None for row in range(plan.rows)]
        for row, (re, im) in enumerate(real_dft(inputs)):
            for part, at in ((re, row), (im, plan.rows - row)):
                if part is not None:
                    place = builder.add(start, k.type(at * plan.columns * count))
                    vectors.store(part, target, place)
        return context.get_dummy_value()

    signature = types.void(source, places, window, shift, grid, types.intp, n_fft, used_rows, lanes)
    return signature, emit


@intrinsic
def _real_rows_pass(typing_context: Any, grid: Any, n_fft: Any, lanes: Any) -> Any:
    """Write the powers of the bins of rows 0 and rows/2, whose inputs are real, to these rows."""
    if not all(isinstance(size, types.IntegerLiteral) for size in (n_fft, lanes)):
        return None
    plan = Plan.of(n_fft.literal_value)
    count = lanes.literal_value
    half = plan.rows // 2

    def combine(m: int, j: int, a: Complex[Value], b: Complex[Value]) -> list[Complex[Value]]:
        turn, whole = half + plan.rows * j, plan.rows * m
        if 4 * turn == whole:
            return quarter_butterfly(a, b)
        return butterfly(a, b, *rotation(turn, whole))

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
                vectors.store(_power(z), rows, size((k * plan.columns + j) * count))

        write_powers(0, real_dft(row(0)))
        if plan.rows % 2 == 0:
            middle = twisted_dft([(re, None) for re in row(half)], combine)
            write_powers(half, middle[: plan.columns // 2])
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
        size = k.type

        def affine(scale: int, offset: int) -> ir.Value:
            return builder.add(builder.mul(k, size(scale)), size(offset))

        def combine(m: int, j: int, a: Complex[Value], b: Complex[Value]) -> list[Complex[Value]]:
            butterflies = plan.columns - 1
            index = affine(2 * butterflies, 2 * (m // 2 - 1 + j - butterflies))
            cosine = vectors.load_splat(factors, index)
            tangent = vectors.load_splat(factors, builder.add(index, size(1)))
            return butterfly(a, b, cosine, tangent)

        width = plan.columns * count

        def read(column: int) -> Complex[Value]:
            return (
                vectors.load(rows, affine(width, column * count)),
                vectors.load(rows, affine(-width, plan.rows * width + column * count)),
            )

        z = [partial(read, column) for column in range(plan.columns)]
        for j, value in enumerate(twisted_dft(z, combine)):
            if j < plan.columns // 2:
                place = affine(width, j * count)
            else:  # the conjugate of bin (rows - k) + rows * (columns - 1 - j)
                mirrored = plan.rows * width + (plan.columns - 1 - j) * count
                place = affine(-width, mirrored)
            vectors.store(_power(value), rows, place)
        return context.get_dummy_value()

    return types.void(grid, table, types.intp, n_fft, lanes), emit


def bin_places(n_fft: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the vector of the grid that holds the power of each bin, (n_fft // 2 + 1,)."""
    plan = Plan.of(n_fft)
    bins = np.arange(n_fft // 2 + 1)
    return (bins % plan.rows * plan.columns + bins // plan.rows).astype(np.intp)


def used_rows(n_fft: int, window_size: int) -> int:
    """Return how many rows of the grid to transform for a window: one of two compiled numbers.

    A window of 25 ms fills 25/32 of the next power of two at 8, 16 or 32 kHz; the rows beyond it
    are zeros, which need no transform.
    """
    rows = Plan.of(n_fft).rows
    if rows % 2:
        return rows
    shorter = -(-rows * 25 // 32)
    return shorter if window_size <= shorter * (n_fft // rows) else rows


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
    lanes: int,
) -> None:
    """Leave the power spectra of `lanes` windowed real signals in the grid, at `bin_places`.

    They overwrite what they are computed from, so that the first-level cache has to hold one buffer
    and not two. Sample n of the signals is `(source[places[n]:] - shift) * window[n]`, a vector.

    Args:
        source: Vectors of samples, flat float32.
        places: Where each sample's vector begins, (n_fft,) int32; those of rows from `used_rows`
            on are not read.
        window: Factors, (n_fft,) float32; zero beyond the signals' end.
        shift: A vector.
        grid: Receives the spectra, flat (n_fft, lanes) float32.
        table: `twiddles(n_fft)`.
        upcoming: Memory to prefetch meanwhile: address and number of cache lines of what is read
            next, then of what is written next.
        n_fft: FFT length, a literal.
        used_rows: `used_rows(n_fft, window_size)`, a literal.
        lanes: Lanes of a vector, a literal.
    """
    rows, columns = _split(n_fft)
    read, lines_read, written, lines_written = upcoming
    # Some with each column: many at once would wait for one another.
    read_share = (lines_read + columns - 1) // columns
    write_share = (lines_written + columns - 1) // columns
    for column in range(columns):
        for line in range(column * read_share, (column + 1) * read_share):
            prefetch_read(read + line * ALIGNMENT)
        for line in range(column * write_share, (column + 1) * write_share):
            prefetch_write(written + line * ALIGNMENT)
        _column_pass(source, places, window, shift, grid, column, n_fft, used_rows, lanes)
    _real_rows_pass(grid, n_fft, lanes)
    for row in range(1, (rows + 1) // 2):
        _row_pass(grid, table, row, n_fft, lanes)


@stage
def take_magnitudes(grid: Any, factor: Any, n_fft: int, lanes: int) -> Any:
    """Replace the powers that `power_spectrum` left by their square roots times a vector.

    Returns each lane's sum of powers: NaN where one is, infinite where one has overflowed.
    """
    rows, columns = _split(n_fft)
    total = splat(np.float32(0.0), lanes)
    for row in range(rows):
        for column in range((n_fft // 2 - row) // rows + 1):
            place = (row * columns + column) * lanes
            power = load(grid, place, lanes)
            total = total + power
            store(grid, place, sqrt(power) * factor)
    return total


@stage
def _split(n_fft: int) -> tuple[int, int]:
    if n_fft % 25 == 0:
        return 25, n_fft // 25
    rows = columns = 1
    while rows * columns < n_fft:
        if rows == columns:
            rows *= 2
        else:
            columns *= 2
    return rows, columns
