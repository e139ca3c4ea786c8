"""Dither in the filterbank's compiled code: noise as gaussian.py defines it, or as it is given.

Noise per frame cannot lie in the tile of hops that frames share. As every step before the spectrum
is linear, what the noise adds to a frame's samples, after pre-emphasis, is added as they are copied
from the tile to the FFT's grid, which is transformed in place; the noise's own mean goes into the
shift that removes the frame's. Noise over the waveform is added to copied samples, before the tile.

Cannot avoid, for 5 s at 16 kHz: 199,200 normals, at 16 vector operations for each vector of them,
and three to add them. Measured on an AMD EPYC (family 23) without AVX-512: 220 µs for a clip of
360, 40 of them to read the samples and to write them with the noise. Each operation takes half of
its units there for a cycle, products of words four cycles, and they hardly overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from ast_fast_kernels._cpu.compile import intrinsic, stage
from ast_fast_kernels._cpu.lanes import Lanes, Operand, Value
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
)
from ast_fast_kernels._cpu.words import Words, words_function
from ast_fast_kernels.fbank import gaussian
from ast_fast_kernels.fbank.numba_mersenne import BLOCK, write_normals

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
        steps = self.times(numbers, gaussian.STEPS[0])
        first = b.xor(self.mixed(b.add(steps, lower)), upper)
        second = b.add(self.mixed(b.add(steps, upper)), lower)
        return [self.mixed(first), self.mixed(second)]

    def word(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """Return a pair's word from a stream's two, with the steps to its place."""
        b = self.builder
        x = b.xor(first, b.lshr(second, self.constant(gaussian.SHIFTS[0])))
        return self.folded(self.times(x, gaussian.FACTOR), gaussian.SHIFTS[1])

    def square(self, word: ir.Value) -> Value:
        """Return a pair's radius squared, over RADIUS_FACTOR squared."""
        lanes, b = self.lanes, self.builder
        bits = self.of(self.floats(b.or_(word, self.constant(1))).value)
        size = self.masked(bits, gaussian.SIZE)
        straight = self.floats(b.sub(self.constant(gaussian.WHOLE), size))
        mantissa = self.floats(self.masked(bits, gaussian.MANTISSA))
        powers = range(len(gaussian.BEND) - 1, -1, -1)
        unit = 2.0**-gaussian.MANTISSA_BITS
        slope = [-c * unit**power for c, power in zip(gaussian.BEND, powers, strict=True)]
        return lanes.fma(mantissa, _polynomial(lanes, mantissa, slope), straight)

    def normals(self, square: Value, word: ir.Value, scale: Value) -> list[Value]:
        """Return a pair's normals times `scale`, over RADIUS_FACTOR."""
        lanes = self.lanes
        sign = self.masked(word, gaussian.SIGN)
        size = self.of(lanes.sqrt(square).value)
        radius = Value(lanes, self.bits(self.builder.or_(size, sign)))
        quarters = self.floats(self.reversed(word)) * 2.0**-31
        turned = quarters * quarters
        cosine = _polynomial(lanes, turned, [scale * c for c in gaussian.COSINE])
        sine = _polynomial(lanes, turned, [scale * c for c in gaussian.SINE])
        return [radius * cosine, radius * (quarters * sine)]


def _polynomial(lanes: Lanes, x: Value, coefficients: Sequence[Operand]) -> Value:
    result = lanes.lift(coefficients[0])
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


def _stepping(step: int) -> Any:
    return words_function(
        1,
        lambda words, word: words.builder.add(word, words.constant(step)),
        "Return one of a stream's words with one step more.",
    )


step_first, step_second = map(_stepping, gaussian.STEPS)
pair_word = words_function(
    2,
    lambda words, first, second: _Noise(words.lanes).word(first, second),
    "Return a pair's word from its stream's two, with the pair's steps.",
)
pair_square = words_function(
    1,
    lambda words, word: words.of(_Noise(words.lanes).square(word).value),
    "Return a pair's radius squared, over RADIUS_FACTOR squared, from its word.",
)


@intrinsic
def consecutive(typing_context: Any, words_of: Any, pair: Any) -> Any:
    """Return a stream's two words with the steps to a pair's number, and on from lane to lane."""
    if not isinstance(words_of, types.UniTuple):
        return None
    vector = words_of.dtype

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        words = _Noise(Lanes(builder, vector.lanes))
        pairs = builder.add(words.splat(args[1]), words.constant(*range(vector.lanes)))
        walked = [
            words.bits(builder.add(words.of(word), words.times(pairs, step)))
            for word, step in zip(
                cgutils.unpack_tuple(builder, args[0]), gaussian.STEPS, strict=True
            )
        ]
        return context.make_tuple(builder, words_of, walked)

    return words_of(words_of, types.intp), emit


@intrinsic
def pair_normals(typing_context: Any, square: Any, word: Any, scale: Any) -> Any:
    """Return a pair's two normals times `scale`, over RADIUS_FACTOR.

    They are made of `pair_square`'s result and the pair's word.
    """
    if not (isinstance(square, VectorType) and square == word == scale):
        return None
    result = types.UniTuple(square, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, square.lanes)
        words = _Noise(lanes)
        normals = words.normals(Value(lanes, args[0]), words.of(args[1]), Value(lanes, args[2]))
        return context.make_tuple(builder, result, [normal.value for normal in normals])

    return result(square, word, scale), emit


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
    inputs: int,
    lanes: int,
) -> Any:
    """Write a block's pre-emphasised frames with noise to the grid, sample after sample.

    Zeros follow, up to `inputs` samples. Returns what removing the mean subtracts for the noise: a
    vector.
    """
    key = integers_at(keys + clip * KEY_FIELDS * INTEGER_BYTES)
    first, second = stream_words(key[0], key[1] + frame, 1, lanes)
    scale = splat(np.float32(plan.dither * gaussian.RADIUS_FACTOR), lanes)
    minus = splat(-_coefficient(plan), lanes)
    size = plan.window_size
    zero = splat(np.float32(0.0), lanes)
    # Three pairs are in work at a time: one after the other, each step would wait for its own
    # pair's last, and the next pair is too far away for the processor to begin it meanwhile.
    word = pair_word(first, second)
    square = pair_square(word)
    # A frame's first sample is its own predecessor.
    previous, later = pair_normals(square, word, scale)
    first, second = step_first(first), step_second(second)
    following = pair_word(first, second)
    total = zero
    for n in range(0, size - 1, 2):
        noise, later = pair_normals(square, word, scale)
        word = following
        square = pair_square(word)
        first, second = step_first(first), step_second(second)
        following = pair_word(first, second)
        here = noise + load(tile, places[n], lanes)
        store(grid, n * lanes, multiply_add(minus, previous, here))
        here = later + load(tile, places[n + 1], lanes)
        store(grid, (n + 1) * lanes, multiply_add(minus, noise, here))
        total = total + (noise + later)
        previous = later
    if size % 2:
        noise, later = pair_normals(square, word, scale)
        here = noise + load(tile, places[size - 1], lanes)
        store(grid, (size - 1) * lanes, multiply_add(minus, previous, here))
        total = total + noise
    for n in range(size, inputs):
        store(grid, n * lanes, zero)
    return _noise_shift(plan, total, lanes)


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
    drawn: int,
    buffer_at: int,
    row: int,
    plan: Any,
    tile: Any,
    places: Any,
    grid: Any,
    inputs: int,
    lanes: int,
) -> Any:
    """Do what `dither_frames` does with given noise, float32 (frames, window_size), from a row on.

    Rows are read for every lane, those after a clip's last frame too. If `drawn` is not 0, the
    noise is that many words of torch's generator, which become normals in the buffer.
    """
    noise = floats_at(noise_at)
    size = plan.window_size
    start = row * size
    if drawn != 0:
        buffer, wanted = floats_at(buffer_at), lanes * size
        begin, end = start // BLOCK * BLOCK, min(start + wanted, drawn)
        write_normals(noise_at, begin, end, drawn, buffer, BLOCK, wanted)
        noise = buffer
        start += BLOCK - begin
    factor = np.float32(plan.dither)
    scale, minus = splat(factor, lanes), splat(-_coefficient(plan) * factor, lanes)
    previous = gather(noise, start, size, lanes)
    total = splat(np.float32(0.0), lanes)
    n = 0
    while n + lanes <= size:
        previous, more = add_turned(
            noise, start + n, size, tile, places, grid, n, scale, minus, previous
        )
        total = total + more
        n += lanes
    while n < size:
        sample = gather(noise, start + n, size, lanes)
        here = multiply_add(scale, sample, load(tile, places[n], lanes))
        store(grid, n * lanes, multiply_add(minus, previous, here))
        total = total + sample
        previous = sample
        n += 1
    for n in range(size, inputs):
        store(grid, n * lanes, splat(np.float32(0.0), lanes))
    return _noise_shift(plan, total * scale, lanes)


@intrinsic
def add_turned(
    typing_context: Any,
    noise: Any,
    start: Any,
    stride: Any,
    tile: Any,
    places: Any,
    grid: Any,
    first: Any,
    scale: Any,
    minus: Any,
    previous: Any,
) -> Any:
    """Transpose a square of noise, and write samples from `first` on with it to the grid.

    A sample of the tile is added `scale` times its own noise and `minus` times that before. Returns
    the last vector of noise, and the sum of all.
    """
    if not (isinstance(previous, VectorType) and scale == minus == previous):
        return None
    size, result = types.intp, types.UniTuple(previous, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, previous.lanes)
        turned = lanes.load_turned(args[0], args[1], args[2])
        factor, less, before = (Value(lanes, arg) for arg in args[7:])
        total = turned[0]
        for j, sample in enumerate(turned):
            n = builder.add(args[6], args[6].type(j))
            place = builder.sext(builder.load(builder.gep(args[4], [n])), n.type)
            here = lanes.fma(factor, sample, lanes.load(args[3], place))
            here = lanes.fma(less, before, here)
            lanes.store(here, args[5], builder.mul(n, n.type(lanes.count)))
            before, total = sample, total + sample if j else sample
        return context.make_tuple(builder, result, [before.value, total.value])

    signature = result(noise, size, size, tile, places, grid, size, scale, minus, previous)
    return signature, emit


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
    scale = splat(np.float32(plan.dither * gaussian.RADIUS_FACTOR), lanes)
    minus = np.float32(-plan.preemphasis) if plan.emphasise_waveform else np.float32(0.0)
    factor = splat(minus, lanes)
    begin, end = min(max(first - 1, 0), count), max(min(first + needed, count), 0)
    offset = 1 - first
    place = max(begin + shift - 1, 0) // 2 * 2  # an even place of the stream, one sample before
    buffer[0] = np.float32(0.0)
    while place < end + shift:
        _write_noise(words, place, scale, buffer, lanes)
        low, high = max(begin, place - shift), min(end, place - shift + 2 * lanes)
        while low + lanes <= high:
            n = low + shift - place
            here = load(buffer, n + 1, lanes) + load(target, low + offset, lanes)
            store(target, low + offset, multiply_add(factor, load(buffer, n, lanes), here))
            low += lanes
        for index in range(low, high):
            n = index + shift - place
            here = buffer[n + 1] + target[index + offset]
            target[index + offset] = multiply_add(minus, buffer[n], here)
        buffer[0] = buffer[2 * lanes]
        place += 2 * lanes
    if plan.padding == ZEROS or count == 0:
        return
    for index in range(first - 1, min(first + needed, begin)):
        place = mirrored(index, count, plan) + shift
        target[index + offset] += _noise_at(words, place, scale, minus, buffer, lanes)
    for index in range(max(end, first - 1), first + needed):
        place = mirrored(index, count, plan) + shift
        target[index + offset] += _noise_at(words, place, scale, minus, buffer, lanes)


@stage
def _write_noise(words: Any, place: int, scale: Any, buffer: Any, lanes: int) -> None:
    """Write the noise of 2 * lanes places from an even one on, scaled, to buffer[1:]."""
    first, second = consecutive(words, place // 2)
    word = pair_word(first, second)
    even, odd = pair_normals(pair_square(word), word, scale)
    low, high = interleaved(even, odd)
    store(buffer, 1, low)
    store(buffer, 1 + lanes, high)


@stage
def _noise_at(
    words: Any, place: int, scale: Any, minus: np.float32, buffer: Any, lanes: int
) -> Any:
    """Return the noise at one place, scaled, plus `minus` times that of the place before."""
    before = max(place - 1, 0) // 2 * 2
    buffer[0] = np.float32(0.0)
    _write_noise(words, before, scale, buffer, lanes)
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
