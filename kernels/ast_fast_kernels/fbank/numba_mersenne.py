"""torch.randn's arithmetic in compiled code: words of its Mersenne Twister, and normals of them.

torch draws one word after the other, makes 24 bits of each a number below 1, and sixteen of those
eight Box-Muller pairs. Here the words are made as one line in memory, word i + 624 from words i,
i + 1 and i + 397, so that vectors of them need no end of a state. Words are drawn in order, by one
thread; any thread makes normals of any part of them. A normal differs from torch's by rounding:
torch's angle is rounded before its sine is taken, which makes up to 2.4e-7 times the radius.

Source: torch 2.13, ATen/native/cpu/DistributionTemplates.h and ATen/core/MT19937RNGEngine.h.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import callback, intrinsic, stage
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES, Lanes, Value
from ast_fast_kernels._cpu.simd import (
    VectorType,
    floats_at,
    indices_at,
    integers_at,
    load,
    log_of_normal,
    multiply_add,
    prefetch_read,
    splat,
    sqrt,
    store,
)
from ast_fast_kernels._cpu.threads import compile_lock
from ast_fast_kernels._cpu.words import Words, words_function

STATE, MIDDLE = 624, 397
"""Words of the generator's state, and the distance of the words that make the next."""
BLOCK, HALF = 16, 8

STATE_BYTES, LEFT, NEXT, FIRST = 5056, 2, 2, 3
"""What `torch.get_rng_state` returns: how many words of the state are left, plus one, is int32
number LEFT; the next one's index is int64 number NEXT; from FIRST on, each word has 64 bits."""


@cache
def compiled_words(digest: str) -> Any:
    """Return compiled code that draws the words of `count` normals into a line of memory.

    It takes the address of what `torch.get_rng_state` returns, which goes on, that of the line, and
    the count; and returns where in the line the words begin.
    """

    def words(state_at: int, line_at: int, count: int) -> int:
        digest  # noqa: B018 - part of the key that the code is cached by
        state, parts = integers_at(state_at), indices_at(state_at)
        bits, line = indices_at(line_at), floats_at(line_at)
        unused: int = parts[LEFT] - 1
        drawn = count if count % BLOCK == 0 else count + BLOCK
        fresh = drawn - unused
        states = max((fresh + STATE - 1) // STATE, 0)
        for i in range(STATE):
            bits[i] = np.int32(state[FIRST + i])
        for i in range(0, STATE * states, HALF):
            here, after = load(line, i, HALF), load(line, i + 1, HALF)
            store(line, i + STATE, _twisted(here, after, load(line, i + MIDDLE, HALF)))
        for i in range(STATE):
            state[FIRST + i] = np.int64(np.uint32(bits[STATE * states + i]))
        used = fresh - STATE * (states - 1)  # of the last state
        parts[LEFT] = np.int32(STATE - used + 1)
        state[NEXT] = used
        return STATE - unused

    with compile_lock:
        return callback(types.intp(*[types.intp] * 3), words)


@cache
def compiled_normals(digest: str) -> Any:
    """Return compiled code that makes `count` words, and those behind them, normals in place."""

    def normals(words_at: int, count: int) -> None:
        digest  # noqa: B018 - part of the key that the code is cached by
        write_normals(words_at, 0, count, count, floats_at(words_at), 0, 0)

    with compile_lock:
        return callback(types.void(*[types.intp] * 2), normals)


@stage
def write_normals(
    words_at: int, begin: int, end: int, count: int, target: Any, place: int, distance: int
) -> None:
    """Write normals `begin`, a multiple of BLOCK, to `end` of `count` to target[place:].

    Whole blocks are written, up to BLOCK - 1 numbers more; and where `count` is not a multiple of
    BLOCK, torch draws the last BLOCK anew, from words of their own behind the others: then as many
    are written before target[place], if the part is shorter. Words `distance` before those in use
    are prefetched.
    """
    words = floats_at(words_at)
    for i in range(begin, min(end, count - count % BLOCK), BLOCK):
        prefetch_read(words_at + (i - distance) * FLOAT_BYTES)
        _write_block(words, i, target, place + i - begin)
    if count % BLOCK and end > count - BLOCK:
        _write_block(words, count, target, place + count - BLOCK - begin)


@stage
def _write_block(words: Any, source: int, target: Any, place: int) -> None:
    """Write a block of normals from a block of words."""
    one, unit = splat(np.float32(1.0), HALF), splat(np.float32(-(2.0**-24)), HALF)
    logarithm = log_of_normal(multiply_add(unit, _tempered(load(words, source, HALF)), one))
    radius = sqrt(splat(np.float32(-2.0), HALF) * logarithm)
    cosine, sine = _turn(_tempered(load(words, source + HALF, HALF)))
    store(target, place, radius * cosine)
    store(target, place + HALF, radius * sine)


def _emit_twisted(words: Words, here: ir.Value, after: ir.Value, middle: ir.Value) -> ir.Value:
    b = words.builder
    joined = b.or_(words.masked(here, 0x80000000), words.masked(after, 0x7FFFFFFF))
    odd = b.sub(words.constant(0), words.masked(after, 1))
    half = b.lshr(joined, words.constant(1))
    return b.xor(b.xor(middle, half), words.masked(odd, 0x9908B0DF))


def _emit_tempered(words: Words, word: ir.Value) -> ir.Value:
    b = words.builder
    y = words.folded(word, 11)
    for shift, mask in ((7, 0x9D2C5680), (15, 0xEFC60000)):
        y = b.xor(y, words.masked(b.shl(y, words.constant(shift)), mask))
    return words.of(words.floats(words.masked(words.folded(y, 18), 0x00FFFFFF)).value)


_twisted = words_function(3, _emit_twisted, "Return words of the state after the three given.")
_tempered = words_function(
    1, _emit_tempered, "Return the lowest 24 bits of words, tempered, as floats: whole numbers."
)


@intrinsic
def _turn(typing_context: Any, turns: Any) -> Any:
    """Return cosine and sine of an angle from 0 to a whole turn, which is 2^24."""
    if not isinstance(turns, VectorType):
        return None
    result = types.UniTuple(turns, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        b, lanes = builder, Lanes(builder, turns.lanes)
        words = Words(lanes)
        quarters = Value(lanes, args[0]) * 2.0**-22
        magic = 1.5 * 2.0**23  # plus this, a number's whole part is in its lowest bits
        shifted = quarters + magic
        rest = quarters - (shifted - magic)
        square = rest * rest
        sine, cosine = lanes.constant(_SINE[0]), lanes.constant(_COSINE[0])
        for coefficient in _SINE[1:]:
            sine = lanes.fma(sine, square, coefficient)
        for coefficient in _COSINE[1:]:
            cosine = lanes.fma(cosine, square, coefficient)
        sine = sine * rest
        whole = words.of(shifted.value)
        odd = b.icmp_unsigned("!=", words.masked(whole, 1), words.constant(0))
        parts = []
        for even_one, odd_one, turned in (
            (cosine, sine, b.add(whole, words.constant(1))),
            (sine, cosine, whole),
        ):
            size = words.of(b.select(odd, odd_one.value, even_one.value))
            sign = b.shl(words.masked(turned, 2), words.constant(30))
            parts.append(words.bits(b.xor(size, sign)))
        return context.make_tuple(builder, result, parts)

    return result(turns), emit


# Of quarter turns from -1/2 to 1/2: coefficients of x^7 to x, and of x^8 to 1. Least largest
# error, found by linear programming (scipy.optimize.linprog on 2,001 Chebyshev points): relative
# 3e-9, and 4e-11.
_SINE = (-0.004601659253239632, 0.07968004047870636, -0.6459634900093079, 1.5707963705062866)
_COSINE = (
    0.0009036839473992586,
    -0.02086009457707405,
    0.25366920232772827,
    -1.2337005138397217,
    1.0,
)
