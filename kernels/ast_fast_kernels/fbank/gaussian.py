"""The definition of dither's noise: numbers that every backend uses unchanged.

Noise is a function of a clip's key (64 bits), a stream's number and a place in that stream; nothing
is kept from one place to the next. A frame is a stream of its own, by its number in the clip; noise
over the waveform is stream 0, by sample. All arithmetic on integers is modulo 2^32, `>>` moves in
zeros, and `mix(x)` is

    x ^= x >> 16; x *= MIX[0]; x ^= x >> 13; x *= MIX[1]; x ^= x >> 16

From a key's lower and upper half and a stream s come the stream's two words:

    first = mix(mix(s * STEP + lower) ^ upper);  second = mix(mix(s * STEP + upper) + lower)

Places 2p and 2p + 1 of a stream are the two normals of one Box-Muller transform, from one word:

    x = first + p * STEP;  x ^= x >> 16;  x *= PAIR[0];  x ^= x >> 15
    a = (x ^ second) * PAIR[1];  b = a with its four bytes in reverse order

`second` enters between two multiplications: so two streams whose `first` are a few steps apart do
not run through the same noise. Read as signed numbers and rounded to float32, a | 1 gives the
radius by its upper bytes, and b half the angle by the lower ones:

    radius² = -2 ln|(a | 1) / 2^31|;  half = b / 2^31 * π/2;  s, c = √2 sin(half), √2 cos(half)
    noise[2p] = radius * (1 - s²);  noise[2p + 1] = radius * s * c

The polynomials below stand for logarithm, sine and cosine. They change the variance by less than
1e-5, and the largest noise is 6.6 standard deviations.
"""

from __future__ import annotations

import math

STEP = 0x9E3779B9
"""The golden ratio's fraction, odd."""
MIX = PAIR = (0x85EBCA6B, 0xC2B2AE35)
"""Factors of MurmurHash3's finaliser (Austin Appleby, public domain)."""

EXPONENT, MANTISSA = 0x7F800000, 0x007FFFFF
"""The parts of a float32's magnitude as an integer."""
MANTISSA_BITS = 23
TOP = 31 + 127
"""Exponent of 2^31 in a float32's bits."""

RADIUS_FACTOR = math.sqrt(2.0 * math.log(2.0))
"""The radius is the root of minus twice a natural logarithm, computed from one to base 2."""

# log2(1 + f) on 0 to 1, exact at 0, less 1e-6 at 1: so that no rounding makes a radius the root of
# a number below 0. The others are of half an angle, in quarter turns, on -1 to 1. Least largest
# error (relative, for the sine), found by linear programming (scipy.optimize.linprog on 2,001
# Chebyshev points): 1.1e-4, of which 5e-7 on average, 1.3e-6 and 9.5e-6.
LOG2 = (-0.08213071525096893, 0.3211889863014221, -0.6777840256690979, 1.4387247562408447)
"""Coefficients of f^4 to f; the constant is 0."""
SINE = (-0.0061695026233792305, 0.11241290718317032, -0.9134705662727356, 2.2214393615722656)
"""Coefficients of x^7, x^5, x^3 and x, times √2."""
COSINE = (-0.027006372809410095, 0.35720381140708923, -1.7444109916687012, 1.4142041206359863)
"""Coefficients of x^6, x^4, x^2 and 1, times √2."""
