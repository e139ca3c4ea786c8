"""The filterbank's compiled code: what a thread does with the blocks of frames that it takes.

A block of `lanes` frames goes through scratch memory that stays in the nearest caches. Its samples
are pre-emphasised and transposed, so that one vector holds the same sample of every frame. They
are windowed into the FFT's grid, transformed (fft.py) and summed by mel filter; the sums are
logged, transposed back and stored. Meanwhile the next block's samples, and the cache lines of its
features, are prefetched. Blocks run from a clip's end to its beginning: then the hops that a block
shares with the next one are already transposed at the beginning of the tile, and only move to its
end. Every lane does the same arithmetic on its own frame alone, so a frame's result depends neither
on the batch, nor on the threads, nor on its place in a block.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ast_fast_kernels._cpu.compile import stage
from ast_fast_kernels._cpu.lanes import ALIGNMENT
from ast_fast_kernels._cpu.simd import (
    INTEGER_BYTES,
    broadcast,
    doubles_of,
    equal_or,
    floats_at,
    gather_as,
    indices_at,
    integers_at,
    integers_of,
    load,
    load_int16,
    log,
    maximum,
    move_fours,
    multiply_add,
    product_of,
    scaled_log_coefficients,
    scaled_log_of_normal,
    select_less,
    shorts_at,
    splat,
    store,
    sum_lanes,
    transpose_tile,
    turn_as,
    turn_differences_as,
)
from ast_fast_kernels._cpu.spectrum import power_spectrum, take_magnitudes, used_inputs
from ast_fast_kernels._cpu.team import HEADER, NEXT_ITEM, NEXT_WORKER, compile_worker, take
from ast_fast_kernels.fbank.numba_dither import (
    ZEROS,
    dither_frames,
    dither_frames_by,
    dither_samples,
    mirrored,
)

Pointer = Any
"""Address of a flat array's first element, in compiled code."""

SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)

FAINT, RAISE = np.float32(2.0**-64), np.float32(2.0**90)
LOUD, LOWER = np.float32(2.0**120), np.float32(2.0**-80)
"""A frame whose powers sum to less than FAINT is transformed again, times RAISE, to get its
magnitudes: powers far below its largest would lose bits. From LOUD on, they could overflow."""

INT16_UNIT = 2.0**-31
"""What stands for 1 in samples read from int16: they are taken times 2^16, which needs fewest
instructions, and the window makes up for that. Powers of two change no bit of the result."""

LOW_HALF = 0xFFFFFFFF

FILTERS_AT_ONCE = 4
"""Filters summed side by side, over as many bins as the widest of them has."""


class Batch(NamedTuple):
    """Where the waveforms and features lie: addresses and sizes as integers, strides in samples."""

    samples: int
    clip_stride: int
    sample_stride: int
    is_int16: int
    num_samples: int
    num_frames: int
    samples_of: int  # address of each clip's number of valid samples; 0 if all are
    frames_of: int  # address of each clip's number of valid frames
    out: int
    keys: int  # address of each clip's noise key, `KEY_FIELDS` integers
    noise: int  # address of the noise itself, float32 (num_frames, window_size); 0 if from the keys
    drawn: int  # how many words the noise is made of; 0 if it is there
    done: int  # address of each clip's number of finished blocks, if its range is limited
    extremes: int  # address of each block's largest and least value, float32, in the same case


class Plan(NamedTuple):
    """A config's choices, lengths in samples, and the addresses of its tables: integers first."""

    window: int  # float32 (n_fft,), zero beyond the window; of int16, times `INT16_UNIT`
    fft_places: int  # int32 (n_fft,), where the tile holds each sample of a frame
    ones: int  # float32 (n_fft,), the window of samples that are windowed already
    in_order: int  # int32 (n_fft,), where those are; this and the above as `input_order` has them
    places: int  # int32 (n_fft,), `fft_places` from the first sample to the last
    powers: int  # int32 (n_fft // 2 + 1,), where the grid holds the power of each bin
    factors: int  # float32, the FFT's twiddles
    widths: int  # int32, bins of each `FILTERS_AT_ONCE` filters
    bins: int  # int32, where the grid holds the powers of those bins: bin by bin, filter by filter
    weights: int  # float32, of those bins
    window_size: int
    num_mel_bins: int
    hop: int
    tile_width: int  # hops that a block touches
    tile_stride: int  # floats from one row of the tile to the next
    span: int  # samples that a block reads when it transposes all its hops
    first_sample: int  # of the first frame
    padding: int
    remove_dc: int
    emphasise_waveform: int
    use_power: int
    use_log: int
    floor_zeros_only: int
    dither_waveform: int
    dither: float  # in the scale of samples as they are read
    preemphasis: float
    log_floor: float
    log_offset: float
    log_factor: float
    log_shift: float
    silence: float
    top_range: float  # how far below a clip's largest energy another may be


class Scratch(NamedTuple):
    """Addresses of one thread's float32 buffers."""

    samples: int  # those of one block of frames, after the sample before them
    tile: int  # (hop + 2, tile stride): hops side by side, first samples, zeros
    sums: int  # (3, tile stride + lanes): each hop's sum around its first sample, that of its part
    # in a window's end, and its first sample
    grid: int  # (grid vectors of the FFT, lanes)
    frames: int  # (n_fft, lanes), with noise or to be transformed again; nothing if neither
    energies: int  # (mel bins in whole groups, lanes), before they are transposed
    normals: int  # noise made of words, (lanes, window size) and three blocks; nothing if none is


NUM_FLOATS = 8
"""Number of a plan's last fields, which are not integers."""
NUM_INTEGERS = len(Plan._fields) - NUM_FLOATS
NUM_BUFFERS, BATCH_FIELDS = len(Scratch._fields), len(Batch._fields)

COUNT, CHUNK, TOTAL, PLAN, SCRATCH, BATCH = range(HEADER, HEADER + 6)
"""What a task holds: the number of chunks, of blocks in a chunk, and of blocks in all; the address
of the plan, and that of the threads' scratch addresses; and the batch."""


@cache
def compiled_worker(
    n_fft: int,
    used_rows: int,
    lanes: int,
    halves: int,
    dithered: int,
    ranged: int,
    plain: int,
    digest: str,
) -> Any:
    """Return the compiled worker for an FFT length, its rows in use, and a vector width.

    `halves` is 1 to transform half of the bins after the other, in a grid half as large, else 0.
    Noise is added only if `dithered` is 1, and a clip's range limited only if `ranged` is: without
    them there is less to compile. `plain` is 1 if frames are neither centred nor pre-emphasised,
    which then costs nothing, else 0. The digest of the sources it is emitted from is part of
    Numba's cache key through the closure.
    """
    inputs = used_inputs(n_fft, used_rows)

    def kernel(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        chunk = take(address, NEXT_ITEM)
        if chunk >= task[COUNT]:
            return
        plan_at, floats_from = task[PLAN], task[PLAN] + NUM_INTEGERS * INTEGER_BYTES
        plan = Plan(*(integers_of(plan_at, NUM_INTEGERS) + doubles_of(floats_from, NUM_FLOATS)))
        batch = Batch(*integers_of(address + BATCH * INTEGER_BYTES, BATCH_FIELDS))
        buffers_at = task[SCRATCH] + take(address, NEXT_WORKER) * NUM_BUFFERS * INTEGER_BYTES
        scratch = Scratch(*integers_of(buffers_at, NUM_BUFFERS))
        tile, sums = floats_at(scratch.tile), floats_at(scratch.sums)
        grid, energies = floats_at(scratch.grid), floats_at(scratch.energies)
        window, places = floats_at(plan.window), indices_at(plan.places)
        ones, in_order = floats_at(plan.ones), indices_at(plan.in_order)
        fft_places = indices_at(plan.fft_places)
        frames_apart, powers = floats_at(scratch.frames), indices_at(plan.powers)
        zero, one = splat(np.float32(0.0), lanes), splat(np.float32(1.0), lanes)
        factors = floats_at(plan.factors)
        out = floats_at(batch.out)
        hop, num_mel_bins, num_frames = plan.hop, plan.num_mel_bins, batch.num_frames
        item = 2 if batch.is_int16 else 4
        blocks = (num_frames + lanes - 1) // lanes
        shared = plan.tile_width - lanes  # hops that a block has in common with the next
        first_block, block = _range_of(address, chunk)
        later = -1  # first frame of the block done before this one
        while True:
            if block == first_block:
                chunk = take(address, NEXT_ITEM)
                if chunk >= task[COUNT]:
                    return
                first_block, block = _range_of(address, chunk)
                later = -1
            block -= 1
            clip = block // blocks
            nominal = (block - clip * blocks) * lanes
            count, frames = batch.num_samples, num_frames
            if batch.samples_of != 0:
                count = integers_at(batch.samples_of)[clip]
                frames = integers_at(batch.frames_of)[clip]
            beyond = max(nominal, frames)
            for place in range(
                (clip * num_frames + beyond) * num_mel_bins,
                (clip * num_frames + min(nominal + lanes, num_frames)) * num_mel_bins,
            ):
                out[place] = np.float32(plan.silence)
            if nominal >= frames:
                later = -1
                if ranged:
                    _note_extremes(batch, plan, block, energies, 0, lanes, lanes)
                    _finish(batch, plan, clip, blocks, lanes)
                continue
            # The last block of a clip begins early, so that it is full like the others.
            frame = max(min(nominal, frames - lanes), 0)
            carried = later == frame + lanes
            later = frame if frame > 0 else -1
            first = frame * hop + plan.first_sample
            origin = clip * batch.clip_stride
            source, start = floats_at(batch.samples), origin + first
            row = (clip * num_frames + frame) * num_mel_bins
            valid = min(frames - frame, lanes)
            reads = lanes * hop if carried else plan.span
            over_waveform = dithered and plan.dither_waveform
            is_copied = over_waveform or not _is_in_place(batch, plan, first, reads, count)
            if is_copied:
                # What no frame reads keeps its old value: it ends in lanes that are not used.
                needed = min((valid - 1) * hop + plan.window_size, reads)
                source, start = floats_at(scratch.samples), 1
                _copy_samples(batch, plan, origin, first, needed, count, source, lanes)
                if over_waveform:
                    dither_samples(
                        batch.keys, clip, plan, first, needed, count, source, energies, lanes
                    )
            at, from_int16 = batch.samples, batch.is_int16
            if is_copied:
                at, from_int16 = scratch.samples, 0
            moved = shared if carried else 0
            if plain:
                _transpose(at, from_int16, start, moved, plan, tile, lanes)
                shift = zero
            else:
                if not carried:
                    _turn_shared(at, from_int16, start, plan, tile, sums, lanes)
                _turn(at, from_int16, start, 0, moved, plan, tile, sums, lanes)
                shift = _dc_shift(plan, sums, lanes)
            # The block that comes next lies just before this one, in the waveform and in `out`.
            upcoming = (
                batch.samples + (origin + first - lanes * hop) * item,
                lanes * hop * item // ALIGNMENT,
                batch.out + (row - lanes * num_mel_bins) * 4,
                lanes * num_mel_bins * 4 // ALIGNMENT,
            )
            read, read_places, read_window, factor, is_last = tile, fft_places, window, one, False
            offset = shift
            over_frames = dithered and not plan.dither_waveform
            if over_frames:
                read, read_places = frames_apart, in_order
                offset = shift + _dither(
                    batch, clip, frame, plan, scratch, tile, places, frames_apart, inputs, lanes
                )
            while True:
                power_spectrum(
                    read, read_places, read_window, offset, grid, factors, upcoming, n_fft,
                    used_rows, halves, plain, lanes,
                )  # fmt: skip
                if plan.use_power:
                    break
                total = take_magnitudes(grid, powers, factor, n_fft, lanes)
                if is_last or _all_within(total, lanes):
                    break
                loudest = _loudest(read, read_places, read_window, offset, n_fft, lanes)
                raised = select_less(zero, loudest, splat(RAISE, lanes), one)
                lowered = select_less(total, splat(LOUD, lanes), one, splat(LOWER, lanes))
                scale = select_less(total, splat(FAINT, lanes), raised, lowered)
                if sum_lanes(scale) == lanes and not over_frames:
                    break  # silence
                _write_scaled(
                    read, read_places, read_window, offset, scale, frames_apart, in_order, n_fft,
                    lanes,
                )  # fmt: skip
                read, read_places, read_window, offset = frames_apart, in_order, ones, zero
                factor, is_last = one / scale, True
            _sum_filters(plan, grid, energies, lanes)
            if plan.use_log:
                _take_logs(plan, energies, lanes)
            _write_features(plan, energies, valid, out, row, lanes)
            if ranged:
                silent = min(nominal + lanes, num_frames) - beyond
                _note_extremes(batch, plan, block, energies, valid, silent, lanes)
                _finish(batch, plan, clip, blocks, lanes)

    return compile_worker(kernel)


@stage
def _range_of(address: int, chunk: int) -> tuple[int, int]:
    """Return a chunk's first block, and the one after its last."""
    task = integers_at(address)
    first = chunk * task[CHUNK]
    return first, min(first + task[CHUNK], task[TOTAL])


@stage
def _is_in_place(batch: Batch, plan: Plan, first: int, reads: int, count: int) -> bool:
    """Say whether a block's samples, and the one before, can be read from the waveform itself."""
    return (
        first >= 1
        and first + reads <= count
        and batch.sample_stride == 1
        and not plan.emphasise_waveform
    )


@stage
def _copy_samples(
    batch: Batch,
    plan: Plan,
    origin: int,
    first: int,
    needed: int,
    count: int,
    target: Pointer,
    lanes: int,
) -> None:
    """Write the sample before `first`, and `needed` samples from it, to target[0:] as floats.

    Beyond the ends, `padding` gives their values. Pre-emphasis over the waveform is done here.
    """
    begin, end = min(max(first - 1, 0), count), max(min(first + needed, count), 0)
    offset = 1 - first  # from the waveform's index to the target's
    factor = np.float32(-plan.preemphasis) if plan.emphasise_waveform else np.float32(0.0)
    place = begin
    if batch.sample_stride == 1:
        if plan.emphasise_waveform:
            if begin == 0 and end > 0:
                target[offset] = _sample(batch, origin, 0, np.float32(0.0))
                place = 1
            factors = splat(factor, lanes)
            while place + lanes <= end:
                here = _samples(batch, origin + place, lanes)
                before = _samples(batch, origin + place - 1, lanes)
                store(target, place + offset, multiply_add(factors, before, here))
                place += lanes
        else:
            while place + lanes <= end:
                store(target, place + offset, _samples(batch, origin + place, lanes))
                place += lanes
    for index in range(place, end):
        target[index + offset] = _sample(batch, origin, index, factor)
    for index in range(first - 1, min(first + needed, begin)):
        target[index + offset] = _padded(batch, plan, origin, index, count, factor)
    for index in range(max(end, first - 1), first + needed):
        target[index + offset] = _padded(batch, plan, origin, index, count, factor)


@stage
def _samples(batch: Batch, place: int, lanes: int) -> Any:
    """Return a vector of consecutive samples."""
    if batch.is_int16:
        return load_int16(shorts_at(batch.samples), place, lanes)
    return load(floats_at(batch.samples), place, lanes)


@stage
def _sample(batch: Batch, origin: int, index: int, factor: np.float32) -> Any:
    """Return a sample, plus `factor` times the one before."""
    here = _raw_sample(batch, origin, index)
    if factor == np.float32(0.0) or index == 0:
        return here
    return multiply_add(factor, _raw_sample(batch, origin, index - 1), here)


@stage
def _raw_sample(batch: Batch, origin: int, index: int) -> Any:
    place = origin + index * batch.sample_stride
    if batch.is_int16:
        return np.float32(shorts_at(batch.samples)[place]) * np.float32(2.0**16)
    return floats_at(batch.samples)[place]


@stage
def _padded(
    batch: Batch, plan: Plan, origin: int, index: int, count: int, factor: np.float32
) -> Any:
    """Return a sample beyond an end: mirrored as often as needed, or zero."""
    if plan.padding == ZEROS or count == 0:
        return np.float32(0.0)
    return _sample(batch, origin, mirrored(index, count, plan), factor)


@stage
def _turn_shared(
    source: int, is_int16: int, first: int, plan: Plan, tile: Pointer, sums: Pointer, lanes: int
) -> None:
    """Transpose the hops after a block's own `lanes`.

    Squares are written from right to left: a later one overwrites what spilled into the next row.
    """
    column = (plan.tile_width - 1) // lanes * lanes
    while column > 0:
        _turn(source, is_int16, first + column * plan.hop, column, 0, plan, tile, sums, lanes)
        column -= lanes


@stage
def _carry_row(values: Pointer, row: int, shared: int, lanes: int) -> None:
    """Move the first `shared` values of a row by `lanes`, four at a time, the last ones first."""
    column = (shared - 1) // 4 * 4
    while column >= 0:
        store(values, row + lanes + column, load(values, row + column, 4))
        column -= 4


@stage
def _turn(
    source: int,
    is_int16: int,
    first: int,
    column: int,
    carried: int,
    plan: Plan,
    tile: Pointer,
    sums: Pointer,
    lanes: int,
) -> None:
    """Write sample j of hop h, pre-emphasised, to tile[j, column + h], for `lanes` hops; sum them.

    So sample n of frame f is at [n % hop, f + n // hop]. A frame's first sample is its own
    predecessor: these are in row `hop`, complete once the first square has been transposed. Sums
    are of differences from the hop's first sample; those of a square are exact for equal samples,
    because the number of lanes is a power of two.
    """
    hop, stride = plan.hop, plan.tile_stride
    coefficient = np.float32(0.0) if plan.emphasise_waveform else np.float32(plan.preemphasis)
    factor = splat(coefficient, lanes)
    rest = plan.window_size % hop
    previous = gather_as(source, is_int16, first - 1, hop, lanes)
    own = gather_as(source, is_int16, first, hop, lanes)
    of_square = own * splat(np.float32(lanes), lanes)
    minus = splat(-coefficient, lanes)
    total = splat(np.float32(0.0), lanes)
    part = total
    j = 0
    while j + lanes <= hop:
        if j <= rest < j + lanes:
            part = total
            for i in range(j, rest):
                part = part + (gather_as(source, is_int16, first + i, hop, lanes) - own)
        if 0 < carried <= 4:
            move_fours(tile, j * stride, stride, lanes, lanes)
        else:
            for i in range(j, j + lanes):
                _carry_row(tile, i * stride, carried, lanes)
        previous, more = turn_differences_as(
            source, is_int16, first + j, hop, tile, j * stride + column, stride, factor, previous
        )
        total = total + (more - of_square)
        j += lanes
    while j < hop:
        if j == rest:
            part = total
        sample = gather_as(source, is_int16, first + j, hop, lanes)
        _carry_row(tile, j * stride, carried, lanes)
        store(tile, j * stride + column, multiply_add(minus, previous, sample))
        total = total + (sample - own)
        previous = sample
        j += 1
    if plan.window_size < hop:
        total = part  # the window is shorter than a hop
    for kind in range(3):
        _carry_row(sums, kind * (stride + lanes), carried, lanes)
    store(sums, column, total)
    store(sums, stride + lanes + column, part)
    store(sums, 2 * (stride + lanes) + column, own)
    store(tile, hop * stride, multiply_add(minus, own, own))


@stage
def _transpose(
    source: int, is_int16: int, first: int, carried: int, plan: Plan, tile: Pointer, lanes: int
) -> None:
    """Write samples to the tile as `_turn_shared` and `_turn` do, without pre-emphasis or sums."""
    hop, stride = plan.hop, plan.tile_stride
    column = 0 if carried > 0 else (plan.tile_width - 1) // lanes * lanes
    while column >= 0:
        start = first + column * hop
        j = 0
        while j + lanes <= hop:
            if 0 < carried <= 4:
                move_fours(tile, j * stride, stride, lanes, lanes)
            else:
                for i in range(j, j + lanes):
                    _carry_row(tile, i * stride, carried, lanes)
            turn_as(source, is_int16, start + j, hop, tile, j * stride + column, stride, lanes)
            j += lanes
        while j < hop:
            _carry_row(tile, j * stride, carried, lanes)
            store(tile, j * stride + column, gather_as(source, is_int16, start + j, hop, lanes))
            j += 1
        column -= lanes


@stage
def _dc_shift(plan: Plan, sums: Pointer, lanes: int) -> Any:
    """Return what removing the mean subtracts from each frame's pre-emphasised samples.

    With pre-emphasis c inside frames, that is the mean of the samples less c times the mean, by the
    arithmetic of `_turn`: so a frame of equal samples becomes zeros.
    """
    if not plan.remove_dc:
        return splat(np.float32(0.0), lanes)
    hop, size, row = plan.hop, plan.window_size, plan.tile_stride + lanes
    first = load(sums, 2 * row, lanes)
    total = splat(np.float32(0.0), lanes)
    for h in range(size // hop):
        offset = load(sums, 2 * row + h, lanes) - first
        total = total + multiply_add(splat(np.float32(hop), lanes), offset, load(sums, h, lanes))
    h, rest = size // hop, size % hop
    if rest:
        offset = load(sums, 2 * row + h, lanes) - first
        part = load(sums, row + h, lanes)
        total = total + multiply_add(splat(np.float32(rest), lanes), offset, part)
    mean = multiply_add(total, splat(np.float32(1.0 / size), lanes), first)
    coefficient = 0.0 if plan.emphasise_waveform else plan.preemphasis
    return multiply_add(splat(np.float32(-coefficient), lanes), mean, mean)


@stage
def _dither(
    batch: Batch,
    clip: int,
    frame: int,
    plan: Plan,
    scratch: Scratch,
    tile: Pointer,
    places: Pointer,
    grid: Pointer,
    inputs: int,
    lanes: int,
) -> Any:
    """Write a block's frames with noise to the grid; return what removing its mean subtracts."""
    if batch.noise != 0:
        return dither_frames_by(
            batch.noise,
            batch.drawn,
            scratch.normals,
            frame,
            plan,
            tile,
            places,
            grid,
            inputs,
            lanes,
        )
    return dither_frames(batch.keys, clip, frame, plan, tile, places, grid, inputs, lanes)


@stage
def _all_within(total: Any, lanes: int) -> bool:
    """Say whether the sums of powers of all frames are from FAINT to LOUD."""
    zero, one = splat(np.float32(0.0), lanes), splat(np.float32(1.0), lanes)
    below = select_less(total, splat(LOUD, lanes), one, zero)
    within = select_less(total, splat(FAINT, lanes), zero, below)
    return bool(sum_lanes(within) == lanes)


@stage
def _loudest(
    tile: Pointer, places: Pointer, window: Pointer, shift: Any, n_fft: int, lanes: int
) -> Any:
    """Return each frame's largest windowed sample, without its sign."""
    zero = splat(np.float32(0.0), lanes)
    loudest = zero
    for n in range(n_fft):
        x = (load(tile, places[n], lanes) - shift) * broadcast(window, n, lanes)
        loudest = maximum(loudest, maximum(x, zero - x))
    return loudest


@stage
def _write_scaled(
    tile: Pointer,
    places: Pointer,
    window: Pointer,
    shift: Any,
    scale: Any,
    frames: Pointer,
    in_order: Pointer,
    n_fft: int,
    lanes: int,
) -> None:
    """Write each frame's windowed samples times its scale, in order."""
    for n in range(n_fft):
        x = (load(tile, places[n], lanes) - shift) * broadcast(window, n, lanes)
        store(frames, in_order[n], x * scale)


@stage
def _sum_filters(plan: Plan, powers: Pointer, energies: Pointer, lanes: int) -> None:
    """Write the energies of all filters, one vector each."""
    weights, widths = floats_at(plan.weights), indices_at(plan.widths)
    pairs = integers_at(plan.bins)  # two of them a load, which is what this loop waits for
    weight = 0
    for m in range(0, plan.num_mel_bins, FILTERS_AT_ONCE):
        a = b = c = d = splat(np.float32(0.0), lanes)
        for _ in range(widths[m // FILTERS_AT_ONCE]):
            first, second = pairs[weight // 2], pairs[weight // 2 + 1]
            low = load(powers, first & LOW_HALF, lanes)
            a = a + broadcast(weights, weight, lanes) * low
            b = b + broadcast(weights, weight + 1, lanes) * load(powers, first >> 32, lanes)
            low = load(powers, second & LOW_HALF, lanes)
            c = c + broadcast(weights, weight + 2, lanes) * low
            d = d + broadcast(weights, weight + 3, lanes) * load(powers, second >> 32, lanes)
            weight += FILTERS_AT_ONCE
        place = m * lanes
        store(energies, place, a)
        store(energies, place + lanes, b)
        store(energies, place + 2 * lanes, c)
        store(energies, place + 3 * lanes, d)


@stage
def _take_logs(plan: Plan, energies: Pointer, lanes: int) -> None:
    """Replace the energies of all filters by their logarithms, times a factor, plus a shift.

    Two at a time, as one wide vector: so constants are loaded once for both.
    """
    wide = product_of(lanes, 2)
    floor = splat(np.float32(plan.log_floor), wide)
    factor = splat(np.float32(plan.log_factor), wide)
    shift = splat(np.float32(plan.log_shift), wide)
    end = plan.num_mel_bins * lanes
    if plan.log_offset != 0.0:
        offset = splat(np.float32(plan.log_offset), wide)
        for place in range(0, end, wide):
            store(energies, place, load(energies, place, wide) + offset)
    if plan.log_floor >= SMALLEST_NORMAL and not plan.floor_zeros_only:
        coefficients = scaled_log_coefficients(factor)
        for place in range(0, end, wide):
            energy = maximum(load(energies, place, wide), floor)
            store(energies, place, scaled_log_of_normal(energy, coefficients, shift))
        return
    for place in range(0, end, wide):
        energy = load(energies, place, wide)
        if plan.floor_zeros_only:
            energy = equal_or(energy, splat(np.float32(0.0), wide), floor)
        else:
            energy = maximum(energy, floor)
        store(energies, place, log(energy))
    if plan.log_factor != 1.0 or plan.log_shift != 0.0:
        for place in range(0, end, wide):
            store(energies, place, multiply_add(load(energies, place, wide), factor, shift))


@stage
def _write_features(
    plan: Plan, energies: Pointer, valid: int, out: Pointer, row: int, lanes: int
) -> None:
    """Write what each of the `valid` first lanes holds to its own row of features."""
    num_mel_bins = plan.num_mel_bins
    for m in range(0, num_mel_bins, lanes):
        width = min(lanes, num_mel_bins - m)
        if width == lanes and valid == lanes:
            transpose_tile(energies, m * lanes, out, row + m, num_mel_bins, lanes)
        else:
            for lane in range(valid):
                for i in range(width):
                    place = row + lane * num_mel_bins + m + i
                    out[place] = energies[(m + i) * lanes + lane]


@stage
def _note_extremes(
    batch: Batch, plan: Plan, block: int, energies: Pointer, valid: int, silent: int, lanes: int
) -> None:
    """Take down a block's largest and least value; NaN is the largest.

    Of its `valid` first lanes, and of silence if it has `silent` frames beyond the clip's end.
    """
    largest, least, total = np.float32(-np.inf), np.float32(np.inf), np.float32(0.0)
    most, fewest, sums = splat(largest, lanes), splat(least, lanes), splat(total, lanes)
    end = plan.num_mel_bins * lanes
    if valid == lanes:
        for place in range(0, end, lanes):
            values = load(energies, place, lanes)
            most, fewest = maximum(most, values), select_less(values, fewest, values, fewest)
            sums = sums + values
        total = sum_lanes(sums)
    else:
        for place in range(end):
            if place % lanes < valid:
                value = energies[place]
                largest, least, total = max(largest, value), min(least, value), total + value
    not_a_number = False
    if np.isnan(total):  # of a NaN, or of infinities
        for place in range(end):
            if place % lanes < valid and np.isnan(energies[place]):
                not_a_number = True
    if valid == lanes:
        store(energies, 0, most)  # their memory is free
        store(energies, lanes, fewest)
        for lane in range(lanes):
            largest, least = max(largest, energies[lane]), min(least, energies[lanes + lane])
    if not_a_number:
        largest = np.float32(np.nan)
    if silent > 0:
        silence = np.float32(plan.silence)
        largest, least = max(largest, silence), min(least, silence)
    extremes = floats_at(batch.extremes)
    extremes[2 * block], extremes[2 * block + 1] = largest, least


@stage
def _finish(batch: Batch, plan: Plan, clip: int, blocks: int, lanes: int) -> None:
    """Count a finished block; after a clip's last one, raise what is below its range.

    Whichever thread finishes that block does it. Blocks that have nothing below are not touched.
    """
    if take(batch.done, clip) != blocks - 1:
        return
    out, extremes = floats_at(batch.out), floats_at(batch.extremes)
    largest = np.float32(-np.inf)
    for block in range(clip * blocks, (clip + 1) * blocks):
        value = extremes[2 * block]
        if value > largest or np.isnan(value):  # NaN stays
            largest = value
    floor = np.float32(largest - np.float32(plan.top_range))
    for block in range(blocks):
        if extremes[2 * (clip * blocks + block) + 1] >= floor:
            continue
        frame = clip * batch.num_frames + block * lanes
        frames = min(lanes, batch.num_frames - block * lanes)
        place, end = frame * plan.num_mel_bins, (frame + frames) * plan.num_mel_bins
        while place + lanes <= end:
            store(out, place, maximum(splat(floor, lanes), load(out, place, lanes)))
            place += lanes
        while place < end:
            # Not less, or NaN: then all of the clip is.
            out[place] = out[place] if floor < out[place] else floor
            place += 1
