"""torch.randn's float32 on a CPU: the same draws from the same generator, in vectors.

torch draws one word of its Mersenne Twister after the other, makes 24 bits of each a number below
1, and sixteen of those eight Box-Muller pairs. Here the words are made as one line in memory, word
i + 624 from words i, i + 1 and i + 397, so that vectors of them need no end of a state; then they
become normals in place. A normal differs from torch's by rounding: torch's angle is rounded before
its sine is taken, which makes up to 2.4e-7 times the radius.

Source: torch 2.13, ATen/native/cpu/DistributionTemplates.h and ATen/core/MT19937RNGEngine.h.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from torch import Tensor

from ast_fast_kernels._cpu.compile import callback, intrinsic, source_digest, stage
from ast_fast_kernels._cpu.lanes import Lanes, Value
from ast_fast_kernels._cpu.simd import (
    VectorType,
    floats_at,
    indices_at,
    integers_at,
    load,
    log_of_normal,
    splat,
    sqrt,
    store,
)
from ast_fast_kernels._cpu.threads import compile_lock
from ast_fast_kernels._cpu.words import Words, words_function

LEAST = 16
"""Numbers from which on torch draws in this way."""

STATE, MIDDLE = 624, 397
"""Words of the generator's state, and the distance of the words that make the next."""
BLOCK, HALF = 16, 8

STATE_BYTES, LEFT_AT, NEXT_AT, WORDS_AT = 5056, 8, 16, 24
"""Where `torch.get_rng_state` holds how many words of the state are left, plus one (int32), the
next one's index, and the words (64 bits each)."""

KEPT = 2**22
"""Most numbers whose memory a thread keeps: that of clips of 100 s."""


def draw(count: int, room: int = 0) -> Tensor:
    """Return what torch.randn(count) would, from torch's generator, which goes on as after it.

    Args:
        count: Numbers to draw.
        room: Numbers, at least, that may be read from the result's beginning on: those from
            `count` on mean nothing.
    Returns:
        Float32, shape (count,); a later call of the same thread overwrites it.
    """
    if count < LEAST or not _is_known():
        normals = _empty(max(count, room))[:count]
        return torch.randn(count, dtype=torch.float32, device="cpu", out=normals)
    while True:
        before = torch.get_rng_state()
        after = before.clone()
        line = _memory(_line(count) + max(room - count, 0))
        first = _fill(after, line, count)
        # Another thread may have drawn meanwhile; its numbers are its own.
        if torch.equal(torch.get_rng_state(), before):
            torch.set_rng_state(after)
            return line[first : first + count]


class _OfThread(threading.local):
    memory: Tensor | None = None


_of_thread = _OfThread()


def _memory(size: int) -> Tensor:
    """Return memory of a size, kept for the thread's next call."""
    kept = _of_thread.memory
    if kept is not None and kept.numel() >= size:
        return kept
    memory = _empty(size)
    _of_thread.memory = memory if size <= KEPT else None
    return memory


def _empty(size: int) -> Tensor:
    """Return uninitialised float32 on the CPU, whatever torch's defaults are."""
    return torch.empty(size, dtype=torch.float32, device="cpu")


def _line(count: int) -> int:
    """Return the words of memory that `count` normals need: whole states, and vectors beyond."""
    return (2 + (count + BLOCK) // STATE) * STATE + STATE + BLOCK


def _fill(state: Tensor, line: Tensor, count: int) -> int:
    """Draw into a line of memory by a state, which goes on; return where the normals begin."""
    left = int(state[LEFT_AT : LEFT_AT + 4].view(torch.int32))
    drawn = count if count % BLOCK == 0 else count + BLOCK
    fresh = drawn - (left - 1)
    states = max(-(-fresh // STATE), 0)
    address = state.data_ptr()
    _compiled(source_digest()).ctypes(address + WORDS_AT, line.data_ptr(), left - 1, states, count)
    used = fresh - STATE * (states - 1)  # of the last state
    state[LEFT_AT : LEFT_AT + 4].view(torch.int32).fill_(STATE - used + 1)
    state[NEXT_AT : NEXT_AT + 8].view(torch.int64).fill_(used)
    return STATE - (left - 1)


@cache
def _is_known() -> bool:
    """Say whether torch's generator and its normals are those that this file knows.

    Two draws from a generator of its own are compared, the second from the middle of a state.
    """
    generator = torch.Generator().manual_seed(2**63 + 12345)
    state = generator.get_state()
    if state.numel() != STATE_BYTES:
        return False
    for count in (2003, 1024):
        line = _empty(_line(count))
        first = _fill(state, line, count)
        expected = torch.randn(count, generator=generator, dtype=torch.float32, device="cpu")
        close = torch.allclose(line[first : first + count], expected, rtol=1e-5, atol=1e-5)
        if not (close and torch.equal(state, generator.get_state())):
            return False
    return True


@cache
def _compiled(digest: str) -> Any:
    def randn(words: int, line_at: int, left: int, states: int, count: int) -> None:
        digest  # noqa: B018 - part of the key that the code is cached by
        state, bits, line = integers_at(words), indices_at(line_at), floats_at(line_at)
        for i in range(STATE):
            bits[i] = np.int32(state[i])
        for i in range(0, STATE * states, HALF):
            here, after = load(line, i, HALF), load(line, i + 1, HALF)
            store(line, i + STATE, _twisted(here, after, load(line, i + MIDDLE, HALF)))
        for i in range(STATE):
            state[i] = np.int64(np.uint32(bits[STATE * states + i]))
        first = STATE - left
        for i in range(first, first + count - BLOCK + 1, BLOCK):
            _write_normals(line, i, i)
        if count % BLOCK:
            _write_normals(line, first + count, first + count - BLOCK)

    with compile_lock:
        return callback(types.void(*[types.intp] * 5), randn)


@stage
def _write_normals(line: Any, source: int, target: int) -> None:
    """Write a block of normals from a block of words."""
    radius = splat(np.float32(1.0), HALF) - _uniform(load(line, source, HALF))
    radius = sqrt(splat(np.float32(-2.0), HALF) * log_of_normal(radius))
    cosine, sine = _turn(_uniform(load(line, source + HALF, HALF)))
    store(line, target, radius * cosine)
    store(line, target + HALF, radius * sine)


def _emit_twisted(words: Words, here: ir.Value, after: ir.Value, middle: ir.Value) -> ir.Value:
    b = words.builder
    joined = b.or_(words.masked(here, 0x80000000), words.masked(after, 0x7FFFFFFF))
    odd = b.sub(words.constant(0), words.masked(after, 1))
    half = b.lshr(joined, words.constant(1))
    return b.xor(b.xor(middle, half), words.masked(odd, 0x9908B0DF))


def _emit_uniform(words: Words, word: ir.Value) -> ir.Value:
    b = words.builder
    y = words.folded(word, 11)
    for shift, mask in ((7, 0x9D2C5680), (15, 0xEFC60000)):
        y = b.xor(y, words.masked(b.shl(y, words.constant(shift)), mask))
    y = words.masked(words.folded(y, 18), 0x00FFFFFF)
    return words.of((words.floats(y) * 2.0**-24).value)


_twisted = words_function(3, _emit_twisted, "Return words of the state after the three given.")
_uniform = words_function(1, _emit_uniform, "Return words, tempered, as numbers from 0 below 1.")


@intrinsic
def _turn(typing_context: Any, turns: Any) -> Any:
    """Return cosine and sine of an angle in whole turns, from 0 below 1."""
    if not isinstance(turns, VectorType):
        return None
    result = types.UniTuple(turns, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        b, lanes = builder, Lanes(builder, turns.lanes)
        words = Words(lanes)
        quarters = Value(lanes, args[0]) * 4.0
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
