"""FFTs in the registers of a GPU's threads: tuples of tensors, one for each point.

A point of a transform is a tensor of rows. Each thread holds its own rows' values, so butterflies
between points move no data, and their factors are constants in the code. Only `exchange` goes
through shared memory. Knows no mel.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

LONGEST = 32
"""Points of the longest transform that a thread holds."""

COSINES: tl.constexpr = tl.constexpr(
    tuple(math.cos(2 * math.pi * k / LONGEST) for k in range(LONGEST))
)
SINES: tl.constexpr = tl.constexpr(
    tuple(math.sin(2 * math.pi * k / LONGEST) for k in range(LONGEST))
)


@triton.jit
def turned(re, im, EIGHTHS: tl.constexpr):
    """Return a value times exp(-2 pi i EIGHTHS / 32)."""
    if EIGHTHS == 0:
        return re, im
    if EIGHTHS == 8:
        return im, -re
    cosine: tl.constexpr = COSINES[EIGHTHS]
    sine: tl.constexpr = SINES[EIGHTHS]
    return re * cosine + im * sine, im * cosine - re * sine


@triton.jit
def complex_fft(re, im):
    """Return the transform of a tuple of points, 2 to 32 of them, in natural order."""
    points: tl.constexpr = len(re)
    for done in tl.static_range(5):
        if points >> done > 1:
            re, im = _butterflies(re, im, points >> done)
    return _reordered(re), _reordered(im)


@triton.jit
def _butterflies(re, im, SIZE: tl.constexpr):
    """Split every run of SIZE points: sums to its first half, rotated differences to its second."""
    points: tl.constexpr = len(re)
    half: tl.constexpr = SIZE // 2
    new_re, new_im = (), ()
    for first in tl.static_range(0, points, SIZE):
        for j in tl.static_range(half):
            new_re = new_re + (re[first + j] + re[first + j + half],)
            new_im = new_im + (im[first + j] + im[first + j + half],)
        for j in tl.static_range(half):
            difference_re = re[first + j] - re[first + j + half]
            difference_im = im[first + j] - im[first + j + half]
            turned_re, turned_im = turned(difference_re, difference_im, j * 32 // SIZE)
            new_re = new_re + (turned_re,)
            new_im = new_im + (turned_im,)
    return new_re, new_im


@triton.jit
def _reordered(values):
    """Return a tuple with each place's bits in reverse."""
    result = ()
    for k in tl.static_range(len(values)):
        result = result + (_at_reversed(values, k),)
    return result


@triton.jit
def _at_reversed(values, PLACE: tl.constexpr):
    high: tl.constexpr = PLACE % 2 * 16 + PLACE // 2 % 2 * 8 + PLACE // 4 % 2 * 4
    of_five_bits: tl.constexpr = high + PLACE // 8 % 2 * 2 + PLACE // 16
    return values[of_five_bits // (32 // len(values))]


@triton.jit
def real_fft(values):
    """Return twice the transform of 32 real points, from frequency 0 to 16, as 17 complex ones.

    Even and odd points are the real and imaginary part of one complex transform of 16.
    """
    even, odd = (), ()
    for i in tl.static_range(16):
        even = even + (values[2 * i],)
        odd = odd + (values[2 * i + 1],)
    re, im = complex_fft(even, odd)
    result_re = (2.0 * (re[0] + im[0]),)
    result_im = (tl.zeros_like(re[0]),)
    for k in tl.static_range(1, 16):
        even_re, even_im = re[k] + re[16 - k], im[k] - im[16 - k]
        odd_re, odd_im = turned(im[k] + im[16 - k], re[16 - k] - re[k], k)
        result_re = result_re + (even_re + odd_re,)
        result_im = result_im + (even_im + odd_im,)
    return result_re + (2.0 * (re[0] - im[0]),), result_im + (tl.zeros_like(re[0]),)


@triton.jit
def stack(values):
    """Return 16 tensors of rows as one, (rows, 16), in each thread's own registers."""
    for done in tl.static_range(4):
        joined = ()
        for i in tl.static_range(8 >> done):
            joined = joined + (tl.join(values[i], values[i + (8 >> done)]),)
        values = joined
    return tl.reshape(values[0], (values[0].shape[0], 16))


@triton.jit
def unstack(values):
    """Return the columns of (rows, 16) as 16 tensors of rows."""
    parts = (tl.reshape(values, (values.shape[0], 2, 2, 2, 2)),)
    for done in tl.static_range(4):
        halves = ()
        for i in tl.static_range(1 << done):
            halves = halves + tl.split(parts[i])
        parts = halves
    return _reordered(parts)


@triton.jit
def exchange(values, GROUPS: tl.constexpr):
    """Swap rows and columns in every group of 16 rows of (GROUPS * 16, 16)."""
    swapped = tl.permute(tl.reshape(values, (GROUPS, 16, 16)), (0, 2, 1))
    return tl.reshape(swapped, (GROUPS * 16, 16))
