"""The definition of dither's noise: numbers that every backend uses unchanged.

Noise is a function of a clip's key (64 bits), a stream's number and a place in that stream; nothing
is kept from one place to the next. A frame is a stream of its own, by its number in the clip; noise
over the waveform is stream 0, by sample. All arithmetic on integers is modulo 2^32, `>>` moves in
zeros, and `mix(x)` is

    x ^= x >> 16; x *= MIX[0]; x ^= x >> 13; x *= MIX[1]; x ^= x >> 16

From a key's lower and upper half and a stream s come the stream's two words:

    first = mix(mix(s * STEPS[0] + lower) ^ upper);  second = mix(mix(s * STEPS[0] + upper) + lower)

Places 2p and 2p + 1 of a stream are the two normals of one Box-Muller transform, from one word:

    x = (first + p * STEPS[0]) ^ (second + p * STEPS[1]) >> SHIFTS[0]
    x *= FACTOR;  a = x ^ x >> SHIFTS[1];  b = a with its four bytes in reverse order

So a stream walks in two words at once, by steps that keep the points (p * STEPS / 2^32) of any row
of p evenly spread: two streams whose words begin close together still part. Read as signed numbers
and rounded to float32, a | 1 gives the radius by its upper bytes, and its sign; b gives the angle
by the lower bytes, in half a circle:

    radius² = -2 ln|(a | 1) / 2^31|;  angle = b / 2^31 * π/2
    noise[2p] = ±radius * cos(angle);  noise[2p + 1] = ±radius * sin(angle), both with a's sign

The polynomials below stand for logarithm, sine and cosine. They change the variance by less than
1e-5, and the largest noise is 6.6 standard deviations.
"""

from __future__ import annotations

import math

STEPS = (0x9E3779B9, 0xC13FA9A9)
"""Fractions of the golden ratio and of the plastic number's reciprocal, odd."""
SHIFTS = (13, 15)
MIX = (0x85EBCA6B, 0xC2B2AE35)
"""Factors of MurmurHash3's finaliser (Austin Appleby, public domain)."""
FACTOR = MIX[0]

SIGN, SIZE, MANTISSA = 0x80000000, 0x7FFFFFFF, 0x007FFFFF
"""The parts of a float32 as an integer."""
MANTISSA_BITS = 23
WHOLE = (31 + 127) << MANTISSA_BITS
"""Bits of 2^31 as a float32. The bits of a smaller number, subtracted from them, are 2^23 times
minus its binary logarithm over 2^31, drawn straight from each power of two to the next."""

RADIUS_FACTOR = math.sqrt(2.0 * math.log(2.0) / 2**MANTISSA_BITS)
"""The radius is the root of minus twice a natural logarithm, computed in units as above."""

# log2(1 + f) - f on 0 to 1, exact at 0, less 1e-6 at 1: so that no rounding makes a radius the root
# of a number below 0. The others are of a quarter turn, from -1 to 1. Least largest error, found by
# linear programming (scipy.optimize.linprog on 2,001 Chebyshev points): 1.1e-4, of which 5e-7 on
# average, 6.8e-5 and 6.7e-6.
BEND = (-0.08213071525096893, 0.3211889863014221, -0.6777840256690979, 0.4387247562408447)
"""Coefficients of f^4 to f; the constant is 0."""
SINE = (0.07186085730791092, -0.6421131491661072, 1.5703200101852417)
"""Coefficients of x^5, x^3 and x."""
COSINE = (-0.019095735624432564, 0.2525802254676819, -1.2334845066070557, 0.9999933242797852)
"""Coefficients of x^6, x^4, x^2 and 1."""
