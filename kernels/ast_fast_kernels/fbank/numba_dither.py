"""Dither in the filterbank's compiled code: noise as gaussian.py defines it, or as it is given.

Noise per frame cannot lie in the tile of hops that frames share. As every step before the spectrum
is linear, what the noise adds to a frame's samples, after pre-emphasis, is added as they are copied
from the tile to the FFT's grid, which is transformed in place; the noise's own mean goes into the
shift that removes the frame's. Noise over the waveform is added to copied samples, before the tile.

Cannot avoid, for 5 s at 16 kHz: 199,200 normals, at 17 vector operations for each vector of them,
and three to add them. Measured on an AMD EPYC (family 23) without AVX-512: 187 of the 245 µs that
dither adds to a clip of 500.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import intrinsic, stage
from ast_fast_kernels._cpu.lanes import Lanes, Value
from ast_fast_kernels._cpu.simd import (
    INTEGER_BYTES,
    VectorType,
    floats_at,
    gather,
    integers_at,
    load,
    multiply_add,
    splat,
    store,
    turn_differences,
)
from ast_fast_kernels._cpu.words import Words, words_function
from ast_fast_kernels.fbank import gaussian

KEY_FIELDS = 2
"""Integers of a clip's key: the key, and the number of its first frame."""

ZEROS, SYMMETRIC, REFLECT = 0, 1, 2
"""What a plan's padding is."""


class _Noise(Words):
    """Emits the arithmetic of gaussian.py."""

    def mixed(self, words: ir.Value) -> ir.Value:
        """Return `mix` of gaussian.py."""
        first, second = gaussian.MIX
        words = self.times(self.folded(words, 16), first)
        return self.folded(self.times(self.folded(words, 13), second), 16)

    def stream(self, key: ir.Value, numbers: ir.Value) -> list[ir.Value]:
        """Return the two words of each lane's stream."""
        b = self.builder
        lower, upper = self.splat(key), self.splat(b.lshr(key, key.type(32)))
        steps = self.times(numbers, gaussian.STEP)
        first = b.xor(self.mixed(b.add(steps, lower)), upper)
        second = b.add(self.mixed(b.add(steps, upper)), lower)
        return [self.mixed(first), self.mixed(second)]

    def word(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """Return a pair's word; `first` already has the steps to its place."""
        x = self.folded(self.times(self.folded(first, 16), gaussian.PAIR[0]), 15)
        return self.times(self.builder.xor(x, second), gaussian.PAIR[1])

    def square(self, word: ir.Value) -> Value:
        """Return a pair's radius squared, over RADIUS_FACTOR squared."""
        lanes = self.lanes
        bits = self.of(self.floats(self.builder.or_(word, self.constant(1))).value)
        exponent = self.floats(self.masked(bits, gaussian.EXPONENT))
        mantissa = self.floats(self.masked(bits, gaussian.MANTISSA))
        unit = 2.0**-gaussian.MANTISSA_BITS
        powers = range(len(gaussian.LOG2), 0, -1)
        log2 = [c * unit**power for c, power in zip(gaussian.LOG2, powers, strict=True)]
        slope = _polynomial(lanes, mantissa, [-c for c in log2])
        whole = lanes.fma(exponent, -unit, float(gaussian.TOP))
        return lanes.fma(mantissa, slope, whole)

    def normals(self, square: Value, word: ir.Value) -> list[Value]:
        """Return a pair's normals over RADIUS_FACTOR, from its radius squared and its word."""
        lanes = self.lanes
        radius = lanes.sqrt(square)
        half = self.floats(self.reversed(word)) * 2.0**-31
        turned = half * half
        sine = half * _polynomial(lanes, turned, gaussian.SINE)
        cosine = _polynomial(lanes, turned, gaussian.COSINE)
        of_sine = radius * sine
        return [lanes.fma(-of_sine, sine, radius), of_sine * cosine]


def _polynomial(lanes: Lanes, x: Value, coefficients: Sequence[float]) -> Value:
    result = lanes.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        result = lanes.fma(result, x, coefficient)
    return result


@intrinsic
def stream_words(typing_context: Any, key: Any, first: Any, step: Any, lanes: Any) -> Any:
    """Return the two words of each lane's stream, as vectors: streams first, first + step, …."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    vector = VectorType(lanes.literal_value)
    result = types.UniTuple(vector, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        words = _Noise(Lanes(builder, vector.lanes))
        offsets = builder.mul(words.constant(*range(vector.lanes)), words.splat(args[2]))
        numbers = builder.add(words.splat(args[1]), offsets)
        streams = words.stream(args[0], numbers)
        return context.make_tuple(builder, result, [words.bits(one) for one in streams])

    return result(types.intp, types.intp, types.intp, lanes), emit


def _emit_consecutive(words: Words, first: ir.Value) -> ir.Value:
    steps = words.constant(*(lane * gaussian.STEP for lane in range(words.lanes.count)))
    return words.builder.add(first, steps)


next_pair = words_function(
    1,
    lambda words, first: words.builder.add(first, words.constant(gaussian.STEP)),
    "Return a stream's first word with one step more.",
)
consecutive = words_function(
    1,
    _emit_consecutive,
    "Return a stream's first word with the steps to consecutive pairs, one in each lane.",
)
pair_word = words_function(
    2,
    lambda words, first, second: _Noise(words.lanes).word(first, second),
    "Return a pair's word from its stream's two; the first has the pair's steps.",
)
pair_square = words_function(
    1,
    lambda words, word: words.of(_Noise(words.lanes).square(word).value),
    "Return a pair's radius squared, over RADIUS_FACTOR squared, from its word.",
)


@intrinsic
def steps_to(typing_context: Any, first: Any, pair: Any) -> Any:
    """Return a stream's first word with the steps to a pair's number."""
    if not isinstance(first, VectorType):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        words = _Noise(Lanes(builder, first.lanes))
        steps = words.splat(builder.mul(args[1], args[1].type(gaussian.STEP)))
        return words.bits(builder.add(words.of(args[0]), steps))

    return first(first, types.intp), emit


@intrinsic
def pair_normals(typing_context: Any, square: Any, word: Any) -> Any:
    """Return a pair's two normals, over RADIUS_FACTOR, from `pair_square`'s and its word."""
    if not (isinstance(square, VectorType) and square == word):
        return None
    result = types.UniTuple(square, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, square.lanes)
        words = _Noise(lanes)
        normals = words.normals(Value(lanes, args[0]), words.of(args[1]))
        return context.make_tuple(builder, result, [normal.value for normal in normals])

    return result(square, word), emit


@intrinsic
def interleaved(typing_context: Any, even: Any, odd: Any) -> Any:
    """Return the lanes of two vectors in turns, as two vectors."""
    if not (isinstance(even, VectorType) and even == odd):
        return None
    result = types.UniTuple(even, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, even.lanes)
        left, right = (Value(lanes, arg) for arg in args)
        order = [place for lane in range(lanes.count) for place in (lane, lane + lanes.count)]
        halves = (order[: lanes.count], order[lanes.count :])
        turned = [lanes.shuffle(left, right, half).value for half in halves]
        return context.make_tuple(builder, result, turned)

    return result(even, odd), emit


@stage
def dither_frames(
    keys: int,
    clip: int,
    frame: int,
    plan: Any,
    tile: Any,
    places: Any,
    grid: Any,
    n_fft: int,
    lanes: int,
) -> Any:
    """Write a block's pre-emphasised frames with noise to the grid, sample after sample.

    Returns what removing the mean subtracts for the noise: a vector.
    """
    key = integers_at(keys + clip * KEY_FIELDS * INTEGER_BYTES)
    place, second = stream_words(key[0], key[1] + frame, 1, lanes)
    factor = np.float32(plan.dither * gaussian.RADIUS_FACTOR)
    scale = splat(factor, lanes)
    minus = splat(-_coefficient(plan) * factor, lanes)
    size = plan.window_size
    zero = splat(np.float32(0.0), lanes)
    # Three pairs are in work at a time: one after the other, each step would wait for its own
    # pair's last, and the next pair is too far away for the processor to begin it meanwhile.
    word = pair_word(place, second)
    square = pair_square(word)
    previous, later = pair_normals(square, word)  # a frame's first sample is its own predecessor
    place = next_pair(place)
    following = pair_word(place, second)
    even, odd = zero, zero
    for n in range(0, size - 1, 2):
        noise, later = pair_normals(square, word)
        word = following
        square = pair_square(word)
        place = next_pair(place)
        following = pair_word(place, second)
        here = multiply_add(scale, noise, load(tile, places[n], lanes))
        store(grid, n * lanes, multiply_add(minus, previous, here))
        here = multiply_add(scale, later, load(tile, places[n + 1], lanes))
        store(grid, (n + 1) * lanes, multiply_add(minus, noise, here))
        even, odd = even + noise, odd + later
        previous = later
    if size % 2:
        noise, later = pair_normals(square, word)
        here = multiply_add(scale, noise, load(tile, places[size - 1], lanes))
        store(grid, (size - 1) * lanes, multiply_add(minus, previous, here))
        even = even + noise
    for n in range(size, n_fft):
        store(grid, n * lanes, zero)
    return _noise_shift(plan, (even + odd) * scale, lanes)


@stage
def _coefficient(plan: Any) -> np.float32:
    """Return the pre-emphasis inside frames."""
    return np.float32(0.0) if plan.emphasise_waveform else np.float32(plan.preemphasis)


@stage
def _noise_shift(plan: Any, total: Any, lanes: int) -> Any:
    """Return the mean of emphasised noise from the noise's sum, if means are removed."""
    if not plan.remove_dc:
        return splat(np.float32(0.0), lanes)
    rest = np.float32(1.0) - _coefficient(plan)
    return total * splat(rest / np.float32(plan.window_size), lanes)


@stage
def dither_frames_by(
    noise_at: int,
    row: int,
    plan: Any,
    tile: Any,
    places: Any,
    grid: Any,
    n_fft: int,
    lanes: int,
) -> Any:
    """Do what `dither_frames` does with given noise, float32 (frames, window_size), from a row on.

    Rows are read for every lane, those after a clip's last frame too.
    """
    noise = floats_at(noise_at)
    size = plan.window_size
    start = row * size
    coefficient = _coefficient(plan)
    factor, minus = splat(coefficient, lanes), splat(-coefficient, lanes)
    scale = splat(np.float32(plan.dither), lanes)
    previous = gather(noise, start, size, lanes)
    total = splat(np.float32(0.0), lanes)
    n = 0
    while n + lanes <= size:
        previous, more = turn_differences(
            noise, start + n, size, grid, n * lanes, lanes, factor, previous
        )
        total = total + more
        n += lanes
    while n < size:
        sample = gather(noise, start + n, size, lanes)
        store(grid, n * lanes, multiply_add(minus, previous, sample))
        total = total + sample
        previous = sample
        n += 1
    for n in range(size):
        here = load(tile, places[n], lanes)
        store(grid, n * lanes, multiply_add(scale, load(grid, n * lanes, lanes), here))
    for n in range(size, n_fft):
        store(grid, n * lanes, splat(np.float32(0.0), lanes))
    return _noise_shift(plan, total * scale, lanes)


@stage
def dither_samples(
    keys: int,
    clip: int,
    plan: Any,
    first: int,
    needed: int,
    count: int,
    target: Any,
    buffer: Any,
    lanes: int,
) -> None:
    """Add noise to a block's copied samples: target[1 + i] holds sample first + i of `count`.

    Samples of the padding are mirrored, and so is their noise. Where pre-emphasis has been over the
    waveform, the noise is emphasised as well. `buffer` has 2 * lanes + 1 floats to work in.
    """
    key = integers_at(keys + clip * KEY_FIELDS * INTEGER_BYTES)
    shift = key[1] * plan.hop  # of the clip's first sample in its stream
    words = stream_words(key[0], 0, 0, lanes)
    scale = np.float32(plan.dither * gaussian.RADIUS_FACTOR)
    minus = np.float32(-plan.preemphasis) if plan.emphasise_waveform else np.float32(0.0)
    factor = splat(minus, lanes)
    begin, end = min(max(first - 1, 0), count), max(min(first + needed, count), 0)
    offset = 1 - first
    place = max(begin + shift - 1, 0) // 2 * 2  # an even place of the stream, one sample before
    buffer[0] = np.float32(0.0)
    while place < end + shift:
        _write_noise(words, place, buffer, lanes)
        low, high = max(begin, place - shift), min(end, place - shift + 2 * lanes)
        while low + lanes <= high:
            n = low + shift - place
            more = multiply_add(factor, load(buffer, n, lanes), load(buffer, n + 1, lanes))
            more = multiply_add(splat(scale, lanes), more, load(target, low + offset, lanes))
            store(target, low + offset, more)
            low += lanes
        for index in range(low, high):
            n = index + shift - place
            more = multiply_add(minus, buffer[n], buffer[n + 1])
            target[index + offset] = multiply_add(scale, more, target[index + offset])
        buffer[0] = buffer[2 * lanes]
        place += 2 * lanes
    if plan.padding == ZEROS or count == 0:
        return
    for index in range(first - 1, min(first + needed, begin)):
        place = mirrored(index, count, plan) + shift
        target[index + offset] += scale * _noise_at(words, place, minus, buffer, lanes)
    for index in range(max(end, first - 1), first + needed):
        place = mirrored(index, count, plan) + shift
        target[index + offset] += scale * _noise_at(words, place, minus, buffer, lanes)


@stage
def _write_noise(words: Any, place: int, buffer: Any, lanes: int) -> None:
    """Write the noise of 2 * lanes places from an even one on to buffer[1:]."""
    first, second = words
    word = pair_word(steps_to(consecutive(first), place // 2), second)
    even, odd = pair_normals(pair_square(word), word)
    low, high = interleaved(even, odd)
    store(buffer, 1, low)
    store(buffer, 1 + lanes, high)


@stage
def _noise_at(words: Any, place: int, minus: np.float32, buffer: Any, lanes: int) -> Any:
    """Return the noise at one place, plus `minus` times that of the place before."""
    before = max(place - 1, 0) // 2 * 2
    buffer[0] = np.float32(0.0)
    _write_noise(words, before, buffer, lanes)
    n = place - before
    return multiply_add(minus, buffer[n], buffer[n + 1])


@stage
def mirrored(index: int, count: int, plan: Any) -> int:
    """Return which sample a place beyond a clip's ends holds: mirrored as often as needed."""
    repeat = 1 if plan.padding == SYMMETRIC else 0  # of the edge samples
    period = max(2 * (count - 1 + repeat), 1)
    if index < 0:
        index += period
    if not 0 <= index < period:  # far beyond an end; a division takes as long as the rest
        index = index % period
    return period - repeat - index if index >= count else index
