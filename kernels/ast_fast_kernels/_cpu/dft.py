"""Discrete Fourier transforms of a few points, as straight-line code; knows no vectors of its own.

They are plain Python over anything with `+ - *`: floats in the tests, vectors under construction
in the intrinsics. A length is split by its smallest prime factor (decimation in time), so that odd
factors come last, where most need no rotation. Factors of two cost six fused multiply-adds each, by
taking the cosine out of the rotation (Linzer and Feig, 1993); an odd prime is summed directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from ast_fast_kernels._cpu.lanes import Value

T = TypeVar("T", Value, float)
Complex = tuple[T, T | None]
"""Real and imaginary part; an imaginary part of None is zero."""


def smallest_factor(n: int) -> int:
    """Return the smallest prime factor of n; 1 for 1."""
    return next((p for p in range(2, math.isqrt(n) + 1) if n % p == 0), n)


def sizes(n: int) -> list[int]:
    """Return the lengths of the transforms that one of n points is put together from, rising."""
    return [*sizes(n // smallest_factor(n)), n] if n > 1 else []


def rotation(numerator: int, denominator: int) -> tuple[float, float]:
    """Return (cosine, sine over cosine) of exp(-2πi · numerator / denominator)."""
    angle = -2.0 * math.pi * numerator / denominator
    return math.cos(angle), math.tan(angle)


def root(numerator: int, denominator: int) -> tuple[float, float]:
    """Return (cosine, sine) of exp(-2πi · numerator / denominator)."""
    angle = -2.0 * math.pi * (numerator % denominator) / denominator
    return math.cos(angle), math.sin(angle)


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
    return [
        (multiply_add(cosine, u, a_re), multiply_add(cosine, v, a_im)),
        (multiply_add(-cosine, u, a_re), multiply_add(-cosine, v, a_im)),
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
    return multiply_add(-tangent, b_im, b_re), multiply_add(tangent, b_re, b_im)


def rotated(z: Complex[Any], cosine: Any, sine: Any) -> Complex[Any]:
    """Return z · (cosine + i·sine)."""
    re: Any
    im: Any
    re, im = z
    return multiply_add(-sine, im, cosine * re), multiply_add(sine, re, cosine * im)


def conjugate(z: Complex[Any]) -> Complex[Any]:
    """Return the conjugate."""
    re, im = z
    return re, None if im is None else -im


def real_dft(x: Sequence[Any]) -> list[Complex[Any]]:
    """Return bins 0 to n/2 of n real numbers.

    Inputs may be functions: each is called where its value is first used, which keeps few alive.
    If n is a power of two, inputs of the second half may be None: they are zero and cost nothing.
    """
    n = len(x)
    p = smallest_factor(n)
    if n == p:
        return _real_prime_dft(x)
    if p == 2:
        return _paired(real_dft(x[0::2]), real_dft(x[1::2]), n)
    inner = [real_dft(x[r::p]) for r in range(p)]
    step = n // p
    bins: list[Any] = [None] * (n // 2 + 1)
    for k in range(step // 2 + 1):
        parts = [rotated(inner[r][k], *root(r * k, n)) if r * k else inner[r][k] for r in range(p)]
        for place, z in zip(range(k, n, step), prime_dft(parts), strict=False):
            # For real inputs, bin n - place is the conjugate.
            bins[min(place, n - place)] = z if place <= n // 2 else conjugate(z)
    return bins


def _real_prime_dft(x: Sequence[Any]) -> list[Complex[Any]]:
    """Return the bins of one real number, or of a prime number of them."""
    values = [_value(one) for one in x]
    if len(x) > 2:
        return prime_dft([(value, None) for value in values])
    if len(x) == 1 or values[1] is None:
        return [(values[0], None)] * len(x)
    return [(values[0] + values[1], None), (values[0] - values[1], None)]


def _paired(even: list[Complex[Any]], odd: list[Complex[Any]], n: int) -> list[Complex[Any]]:
    """Return bins 0 to n/2 from those of the even and of the odd inputs."""
    half = n // 2
    bins: list[Any] = [None] * (half + 1)
    bins[0] = (even[0][0] + odd[0][0], None)
    bins[half] = (even[0][0] - odd[0][0], None)
    for k in range(1, (half + 1) // 2):
        bins[k], bins[half - k] = mirrored_butterfly(even[k], odd[k], *rotation(k, n))
    if half % 2 == 0:
        bins[half // 2] = (even[half // 2][0], -odd[half // 2][0])
    return bins


def _value(one: Any) -> Any:
    return one() if callable(one) else one


def half_turned_dft(x: Sequence[Any]) -> list[Complex[Any]]:
    """Return sum over i of x[i] · exp(-2πi · i · (j + 1/2) / n) of n real numbers, for j < n/2.

    That of n - 1 - j is the conjugate; if n is odd, the one in the middle is real.
    """
    n = len(x)
    half = n // 2
    if n % 2:
        # Half a turn is (n + 1)/2 turns but for the sign of every other input.
        bins = real_dft([-one if i % 2 else one for i, one in enumerate(x)])
        return [conjugate(bins[half - j]) for j in range(half + 1)]
    even, odd = half_turned_dft(x[0::2]), half_turned_dft(x[1::2])
    turned: list[Any] = [None] * half
    for j in range(half // 2):
        turned[j], turned[half - 1 - j] = mirrored_butterfly(
            even[j], odd[j], *rotation(2 * j + 1, 2 * n)
        )
    if half % 2:
        turned[half // 2] = (even[half // 2][0], -odd[half // 2][0])
    return turned


def prime_dft(z: Sequence[Any]) -> list[Complex[Any]]:
    """Return the DFT of an odd prime number of values; of real ones, bins 0 to (p - 1)/2.

    Values may be None, which is zero, if all after them are too; the first two may not.
    """
    re_0, re_even, re_odd = _cosine_and_sine_sums([one and one[0] for one in z])
    if z[0][1] is None:
        return [(re_0, None), *((even, -odd) for even, odd in zip(re_even, re_odd, strict=True))]
    im_0, im_even, im_odd = _cosine_and_sine_sums([one and one[1] for one in z])
    parts = list(zip(re_even, re_odd, im_even, im_odd, strict=True))
    bins = [(a + d, c - b) for a, b, c, d in parts]
    mirrored = [(a - d, c + b) for a, b, c, d in parts]
    return [(re_0, im_0), *bins, *reversed(mirrored)]


def _cosine_and_sine_sums(x: Sequence[Any]) -> tuple[Any, list[Any], list[Any]]:
    """Return the sum, and the sums with cosines and with sines of bins 1 to (p - 1)/2."""
    p = len(x)
    half = p // 2
    pairs = [(x[r], x[p - r]) for r in range(1, half + 1) if x[r] is not None]
    sums = [a if b is None else a + b for a, b in pairs]
    differences = [a if b is None else a - b for a, b in pairs]
    total = x[0]
    for one in sums:
        total = total + one
    even, odd = [], []
    for k in range(1, half + 1):
        cosines, sines = x[0], None
        for r, (a, d) in enumerate(zip(sums, differences, strict=True), start=1):
            turn = r * k % p
            if turn > half:  # so that a sine is only ever one of (p - 1)/2 constants
                turn, d = p - turn, -d
            angle = math.tau * turn / p
            cosines = multiply_add(a, math.cos(angle), cosines)
            sine = math.sin(angle)
            sines = d * sine if sines is None else multiply_add(d, sine, sines)
        even.append(cosines)
        odd.append(sines)
    return total, even, odd


Combine = Callable[[int, int, list[Complex[Any]]], list[Complex[Any]]]


def twisted_dft(z: Sequence[Any], combine: Combine) -> list[Complex[Any]]:
    """Return sum over n of z[n] · v^n for the roots v that `combine`'s rotations stand for.

    Inputs may be functions, as in `real_dft`. `combine(m, j, parts)` makes outputs j, j + m/p, … of
    a transform of m points from output j of each of the p transforms of every p-th input; with the
    rotations of row k it gives bins k + rows * j of the whole FFT.
    """
    m = len(z)
    if m == 1:
        return [_value(z[0])]
    p = smallest_factor(m)
    inner = [twisted_dft(z[r::p], combine) for r in range(p)]
    groups = [combine(m, j, [part[j] for part in inner]) for j in range(m // p)]
    return [group[t] for t in range(p) for group in groups]


def combined(parts: Sequence[Complex[Any]], turns: Sequence[tuple[Any, Any]]) -> list[Complex[Any]]:
    """Return the DFT of a prime number of values after all but the first are rotated.

    Of two values the rotation is (cosine, tangent), of more (cosine, sine), and values may be None
    as in `prime_dft`.
    """
    if len(parts) == 2:
        return butterfly(parts[0], parts[1], *turns[0])
    turned = [part and rotated(part, *turn) for part, turn in zip(parts[1:], turns, strict=True)]
    return prime_dft([parts[0], *turned])


def turns_of(p: int, numerator: int, denominator: int) -> list[tuple[float, float]]:
    """Return the rotations of `combined` for p values, by multiples of numerator/denominator."""
    if p == 2:
        return [rotation(numerator, denominator)]
    return [root(r * numerator, denominator) for r in range(1, p)]


@cache
def real_operations(n: int) -> int:
    """Return the vector operations of `real_dft`, to a few."""
    p = smallest_factor(n)
    half = p // 2
    if n == p:
        return n if n <= 2 else 2 * half * half + 3 * half
    if p == 2:
        return 2 * real_operations(n // 2) + 6 * ((n // 2 - 1) // 2) + 2
    return p * real_operations(n // p) + n // p * _prime_operations(p) // 2


@cache
def twisted_operations(m: int) -> int:
    """Return the vector operations of `twisted_dft`, to a few."""
    if m == 1:
        return 0
    p = smallest_factor(m)
    return p * twisted_operations(m // p) + m // p * _prime_operations(p)


def _prime_operations(p: int) -> int:
    half = p // 2
    return 6 if p == 2 else 4 * half * half + 18 * half
