"""The filterbank's compiled gradient: what a thread does with the pieces of clips that it takes.

A piece is a run of frames, and the samples that are its own. Its frames go through scratch memory
in blocks of `lanes`, one in each vector lane. They are cut, windowed and transformed once more, for
their bins and energies; then the energies' gradient is led back through the logarithm, the filters,
the FFT (fft_gradient.py) and the window, and summed at the samples. A piece also does the few
frames before its own that reach into its samples. So a sample's sum is over all its frames in
order, whoever makes it: results depend neither on the batch, nor on threads, nor on pieces.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ast_fast_kernels._cpu.compile import stage
from ast_fast_kernels._cpu.fft_gradient import transform, transform_back
from ast_fast_kernels._cpu.simd import (
    INTEGER_BYTES,
    broadcast,
    doubles_of,
    equal_or,
    floats_at,
    gather,
    indices_at,
    integers_at,
    integers_of,
    load,
    maximum,
    multiply_add,
    select_less,
    splat,
    sqrt,
    store,
    turn_differences,
    turn_scaled,
)
from ast_fast_kernels._cpu.team import HEADER, NEXT_ITEM, NEXT_WORKER, compile_worker, take
from ast_fast_kernels.fbank.numba_dither import ZEROS, mirrored

Pointer = Any
"""Address of a flat array's first element, in compiled code."""

FAINT, RAISE = np.float32(2.0**-32), np.float32(2.0**75)
LOUD, LOWER = np.float32(2.0**48), np.float32(2.0**-80)
"""Magnitudes are taken of frames times RAISE if their loudest sample is below FAINT, and times
LOWER from LOUD on: otherwise their squares could vanish, or overflow."""


class Batch(NamedTuple):
    """Where waveforms and gradients lie: addresses and sizes as integers, strides in samples."""

    samples: int
    clip_stride: int
    sample_stride: int
    num_samples: int
    num_frames: int
    samples_of: int  # address of each clip's number of valid samples; 0 if all are
    frames_of: int  # address of each clip's number of valid frames
    grad: int  # of the energies, (clips, num_frames, num_mel_bins)
    out: int  # of the samples, (clips, num_samples)
    pieces: int  # of each clip
    piece: int  # frames of one
    least: int  # frames of the shortest piece


class Plan(NamedTuple):
    """A config's choices, lengths in samples, and the addresses of its tables: integers first."""

    window: int  # float32 (window_size,)
    table: int  # float32, the FFT's turns
    starts: int  # int32 (num_mel_bins,), each filter's first bin
    widths: int  # int32 (num_mel_bins,), its number of bins
    weights: int  # float32, of those bins, filter by filter
    filters: int  # int32 (n_fft // 2 + 1,), the first of the filters that a bin belongs to
    shares: int  # float32 (n_fft // 2 + 1, most_filters), its weights in them; twice for powers
    most_filters: int  # of one bin
    window_size: int
    num_mel_bins: int
    hop: int
    overlap: int  # hops after its own that a frame reaches into
    sums_stride: int
    first_sample: int  # of the first frame
    padding: int
    remove_dc: int
    emphasise_waveform: int
    use_power: int
    use_log: int
    floor_zeros_only: int
    preemphasis: float
    log_floor: float
    log_offset: float
    log_factor: float


class Scratch(NamedTuple):
    """Addresses of one thread's float32 buffers."""

    samples: int  # those of one block of frames; later, the gradients of as many
    grid: int  # (n_fft + 1, lanes): frames, their bins, their gradient
    bins: int  # (n_fft // 2 + 1, lanes): powers, then slopes
    slopes: int  # (num_mel_bins, lanes), of the energies
    sums: int  # (hop, sums stride): gradients by place within a hop, and hop
    edge: int  # gradients of the padding before a clip
    used: int  # (lanes,), whether a lane holds a frame


NUM_FLOATS = 4
"""Number of a plan's last fields, which are not integers."""
NUM_INTEGERS = len(Plan._fields) - NUM_FLOATS
NUM_BUFFERS, BATCH_FIELDS = len(Scratch._fields), len(Batch._fields)

COUNT, PLAN, SCRATCH, BATCH = range(HEADER, HEADER + 4)
"""What a task holds: the number of pieces in all, the address of the plan, that of the threads'
scratch addresses, and the batch."""


@cache
def compiled_worker(rows: int, columns: int, used_rows: int, lanes: int, digest: str) -> Any:
    """Return the compiled worker for an FFT's split, its rows in use, and a vector width.

    The digest of the sources it is emitted from is part of Numba's cache key through the closure.
    """

    def backward(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        item = take(address, NEXT_ITEM)
        if item >= task[COUNT]:
            return
        plan_at, floats_from = task[PLAN], task[PLAN] + NUM_INTEGERS * INTEGER_BYTES
        plan = Plan(*(integers_of(plan_at, NUM_INTEGERS) + doubles_of(floats_from, NUM_FLOATS)))
        batch = Batch(*integers_of(address + BATCH * INTEGER_BYTES, BATCH_FIELDS))
        buffers_at = task[SCRATCH] + take(address, NEXT_WORKER) * NUM_BUFFERS * INTEGER_BYTES
        scratch = Scratch(*integers_of(buffers_at, NUM_BUFFERS))
        bins, slopes = floats_at(scratch.bins), floats_at(scratch.slopes)
        grid, table = floats_at(scratch.grid), floats_at(plan.table)
        num_samples = batch.num_samples
        while item < task[COUNT]:
            clip = item // batch.pieces
            count, frames = num_samples, batch.num_frames
            if batch.samples_of != 0:
                count = integers_at(batch.samples_of)[clip]
                frames = integers_at(batch.frames_of)[clip]
            first, last = _piece(batch, item - clip * batch.pieces, frames)
            begin, end = _own_samples(plan, first, last, frames)
            if first == 0:
                _write_zeros(batch, clip, 0, min(begin, num_samples))
            if last == frames:
                _write_zeros(batch, clip, min(max(end, 0), count), num_samples)
            _clear(plan, scratch, lanes)
            frame = max(first - plan.overlap, 0)
            while frame < last:
                valid = min(last - frame, lanes)
                origin = plan.first_sample + frame * plan.hop
                needed = (valid - 1) * plan.hop + plan.window_size
                _copy_samples(batch, plan, clip, origin, needed, count, scratch, lanes)
                shift = _cut_frames(plan, scratch, used_rows * columns, lanes)
                scale = _apply_window(plan, scratch, shift, lanes)
                transform(grid, bins, table, rows, columns, used_rows, lanes)
                _read_gradient(batch, plan, clip, frame, valid, slopes, lanes)
                if not plan.use_power:
                    _take_magnitudes(bins, rows * columns // 2 + 1, lanes)
                if plan.use_log:
                    _before_log(plan, bins, slopes, scale, lanes)
                _before_filters(plan, slopes, bins, rows * columns // 2 + 1, lanes)
                transform_back(grid, bins, table, rows, columns, used_rows, lanes)
                if valid < lanes:
                    _drop_unused(plan, scratch, valid, lanes)
                _add_frames(plan, scratch, lanes)
                frame += lanes
                hops = lanes if frame < last else valid + plan.overlap
                while hops > 0:
                    _turn_back(plan, scratch, lanes)
                    reach = min(origin + min(hops, lanes) * plan.hop, end)
                    _write(batch, plan, clip, origin, begin, reach, count, scratch, lanes)
                    _carry(plan, scratch, lanes)
                    origin += lanes * plan.hop
                    hops -= lanes
            if first == 0 and last > 0:
                _fold_edge(batch, plan, clip, count, scratch)
            if plan.emphasise_waveform:
                _before_waveform_emphasis(batch, plan, clip, count, lanes)
            item = take(address, NEXT_ITEM)

    return compile_worker(backward)


@stage
def _piece(batch: Batch, piece: int, frames: int) -> tuple[int, int]:
    """Return a piece's first frame, and the one after its last; equal if it has none.

    The piece before a shorter one than `least` takes that one's frames too.
    """
    first = piece * batch.piece
    last = first + batch.piece
    if piece > 0 and frames - first < batch.least:
        return -1, -1
    return first, frames if frames - last < batch.least else last


@stage
def _own_samples(plan: Plan, first: int, last: int, frames: int) -> tuple[int, int]:
    """Return the first sample whose gradient a piece makes, and the one after its last.

    Both may lie in the padding.
    """
    begin = plan.first_sample + first * plan.hop
    end = plan.first_sample + last * plan.hop
    if last == frames and frames > 0:
        end += plan.window_size - plan.hop
    return begin, end


@stage
def _write_zeros(batch: Batch, clip: int, begin: int, end: int) -> None:
    out = floats_at(batch.out)
    for place in range(clip * batch.num_samples + begin, clip * batch.num_samples + end):
        out[place] = np.float32(0.0)


@stage
def _clear(plan: Plan, scratch: Scratch, lanes: int) -> None:
    sums = floats_at(scratch.sums)
    for place in range(0, plan.hop * plan.sums_stride, lanes):
        store(sums, place, splat(np.float32(0.0), lanes))


@stage
def _copy_samples(
    batch: Batch,
    plan: Plan,
    clip: int,
    first: int,
    needed: int,
    count: int,
    scratch: Scratch,
    lanes: int,
) -> None:
    """Copy the samples that a block needs; pre-emphasis over the waveform is done here."""
    source, target = floats_at(batch.samples), floats_at(scratch.samples)
    origin = clip * batch.clip_stride
    factor = np.float32(-plan.preemphasis) if plan.emphasise_waveform else np.float32(0.0)
    begin = min(max(first, 1 if plan.emphasise_waveform else 0), first + needed)
    place, end = begin, min(first + needed, count)
    if batch.sample_stride == 1:
        while place + lanes <= end:
            here = load(source, origin + place, lanes)
            if plan.emphasise_waveform:
                before = load(source, origin + place - 1, lanes)
                here = multiply_add(splat(factor, lanes), before, here)
            store(target, place - first, here)
            place += lanes
    for index in range(first, begin):
        target[index - first] = _sample(batch, plan, origin, index, count, factor)
    for index in range(place, first + needed):
        target[index - first] = _sample(batch, plan, origin, index, count, factor)


@stage
def _sample(
    batch: Batch, plan: Plan, origin: int, index: int, count: int, factor: np.float32
) -> Any:
    """Return a sample or its padding, plus `factor` times the one before."""
    source = floats_at(batch.samples)
    if index < 0 or index >= count:
        if plan.padding == ZEROS:
            return np.float32(0.0)
        index = mirrored(index, count, plan)
    here = source[origin + index * batch.sample_stride]
    if factor == np.float32(0.0) or index == 0:
        return here
    return multiply_add(factor, source[origin + (index - 1) * batch.sample_stride], here)


@stage
def _cut_frames(plan: Plan, scratch: Scratch, num_rows: int, lanes: int) -> Any:
    """Write pre-emphasised frames to the grid, and return what removes their mean, as a vector.

    A mean is summed around the first sample: so a frame of equal samples becomes zeros.
    """
    samples, grid = floats_at(scratch.samples), floats_at(scratch.grid)
    size, hop = plan.window_size, plan.hop
    coefficient = np.float32(0.0) if plan.emphasise_waveform else np.float32(plan.preemphasis)
    factor, minus = splat(coefficient, lanes), splat(-coefficient, lanes)
    first = gather(samples, 0, hop, lanes)
    of_square = first * splat(np.float32(lanes), lanes)
    total = splat(np.float32(0.0), lanes)
    previous = first  # a frame's first sample is its own predecessor
    n = 0
    while n + lanes <= size:
        previous, more = turn_differences(samples, n, hop, grid, n * lanes, lanes, factor, previous)
        total = total + (more - of_square)
        n += lanes
    for rest in range(n, size):
        sample = gather(samples, rest, hop, lanes)
        store(grid, rest * lanes, multiply_add(minus, previous, sample))
        total = total + (sample - first)
        previous = sample
    for beyond in range(size, num_rows):
        store(grid, beyond * lanes, splat(np.float32(0.0), lanes))
    if not plan.remove_dc:
        return splat(np.float32(0.0), lanes)
    mean = multiply_add(total, splat(np.float32(1.0 / size), lanes), first)
    return multiply_add(minus, mean, mean)


@stage
def _apply_window(plan: Plan, scratch: Scratch, shift: Any, lanes: int) -> Any:
    """Subtract `shift` from the frames and window them; return what their bins are to be scaled by.

    That is one for powers. For magnitudes, frames are loud enough to be squared afterwards.
    """
    grid, window = floats_at(scratch.grid), floats_at(plan.window)
    zero, one = splat(np.float32(0.0), lanes), splat(np.float32(1.0), lanes)
    if plan.use_power:
        for n in range(plan.window_size):
            windowed = (load(grid, n * lanes, lanes) - shift) * broadcast(window, n, lanes)
            store(grid, n * lanes, windowed)
        return one
    loudest = zero
    for n in range(plan.window_size):
        windowed = (load(grid, n * lanes, lanes) - shift) * broadcast(window, n, lanes)
        store(grid, n * lanes, windowed)
        loudest = maximum(loudest, maximum(windowed, zero - windowed))
    raised = select_less(loudest, splat(FAINT, lanes), splat(RAISE, lanes), one)
    factor = select_less(loudest, splat(LOUD, lanes), raised, splat(LOWER, lanes))
    for n in range(plan.window_size):
        store(grid, n * lanes, load(grid, n * lanes, lanes) * factor)
    return one / factor


@stage
def _read_gradient(
    batch: Batch, plan: Plan, clip: int, frame: int, valid: int, slopes: Pointer, lanes: int
) -> None:
    """Transpose the gradient of a block's energies; what lanes without a frame get is not used."""
    grad, num_mel_bins = floats_at(batch.grad), plan.num_mel_bins
    row = (clip * batch.num_frames + frame) * num_mel_bins
    factor = np.float32(plan.log_factor) if plan.use_log else np.float32(1.0)
    m = 0
    if valid == lanes:
        while m + lanes <= num_mel_bins:
            turn_scaled(grad, row + m, num_mel_bins, slopes, m * lanes, lanes, splat(factor, lanes))
            m += lanes
    for rest in range(m, num_mel_bins):
        for lane in range(lanes):
            of_lane = min(lane, valid - 1)
            slopes[rest * lanes + lane] = grad[row + of_lane * num_mel_bins + rest] * factor


@stage
def _take_magnitudes(bins: Pointer, num_bins: int, lanes: int) -> None:
    """Replace the powers by their square roots."""
    for k in range(num_bins):
        store(bins, k * lanes, sqrt(load(bins, k * lanes, lanes)))


@stage
def _before_log(plan: Plan, bins: Pointer, slopes: Pointer, scale: Any, lanes: int) -> None:
    """Divide gradients by the energies that the logarithms were taken of."""
    starts, widths = indices_at(plan.starts), indices_at(plan.widths)
    weights = floats_at(plan.weights)
    offset = splat(np.float32(plan.log_offset), lanes)
    floor = splat(np.float32(plan.log_floor), lanes)
    zero, infinity = splat(np.float32(0.0), lanes), splat(np.float32(np.inf), lanes)
    weight = 0
    for m in range(plan.num_mel_bins):
        energy = zero
        for k in range(starts[m], starts[m] + widths[m]):
            energy = multiply_add(
                broadcast(weights, weight, lanes), load(bins, k * lanes, lanes), energy
            )
            weight += 1
        energy = multiply_add(energy, scale, offset)
        # What the logarithm's floor replaced has no slope.
        if plan.floor_zeros_only:
            energy = equal_or(energy, zero, infinity)
        else:
            energy = select_less(energy, floor, infinity, energy)
        store(slopes, m * lanes, load(slopes, m * lanes, lanes) / energy)


@stage
def _before_filters(plan: Plan, slopes: Pointer, bins: Pointer, num_bins: int, lanes: int) -> None:
    """Replace powers or magnitudes by what their bins are to be multiplied by."""
    filters, shares = indices_at(plan.filters), floats_at(plan.shares)
    zero, infinity = splat(np.float32(0.0), lanes), splat(np.float32(np.inf), lanes)
    share = 0
    for k in range(num_bins):
        slope = zero
        for m in range(filters[k], filters[k] + plan.most_filters):
            slope = multiply_add(
                broadcast(shares, share, lanes), load(slopes, m * lanes, lanes), slope
            )
            share += 1
        if not plan.use_power:  # of a magnitude of 0 the slope is 0
            slope = slope / equal_or(load(bins, k * lanes, lanes), zero, infinity)
        store(bins, k * lanes, slope)


@stage
def _drop_unused(plan: Plan, scratch: Scratch, valid: int, lanes: int) -> None:
    """Write zeros to the lanes that hold no frame."""
    grid, used = floats_at(scratch.grid), floats_at(scratch.used)
    for lane in range(lanes):
        used[lane] = np.float32(1.0 if lane < valid else 0.0)
    mask, zero = load(used, 0, lanes), splat(np.float32(0.0), lanes)
    for n in range(plan.window_size):
        store(grid, n * lanes, select_less(zero, mask, load(grid, n * lanes, lanes), zero))


@stage
def _add_frames(plan: Plan, scratch: Scratch, lanes: int) -> None:
    """Lead the gradient back to the frames' samples and add it to the sums.

    Sample n of frame f is at [n % hop, f + n // hop]. Of the frames that hold a sample, the
    earliest is added first: that is the one in which it comes last.
    """
    grid, window, sums = floats_at(scratch.grid), floats_at(plan.window), floats_at(scratch.sums)
    size, hop, stride = plan.window_size, plan.hop, plan.sums_stride
    zero = splat(np.float32(0.0), lanes)
    coefficient = np.float32(0.0) if plan.emphasise_waveform else np.float32(plan.preemphasis)
    minus = splat(-coefficient, lanes)
    total = zero
    for n in range(size):
        windowed = load(grid, n * lanes, lanes) * broadcast(window, n, lanes)
        store(grid, n * lanes, windowed)
        total = total + windowed
    store(grid, size * lanes, zero)  # no sample of the frame follows
    mean = zero
    if plan.remove_dc:  # of the samples that were pre-emphasised
        mean = multiply_add(minus, total, total) * splat(np.float32(1.0 / size), lanes)
    for h in range(plan.overlap, -1, -1):
        start = h * hop
        here = load(grid, start * lanes, lanes)
        for j in range(min(hop, size - start)):
            following = load(grid, (start + j + 1) * lanes, lanes)
            place = j * stride + h
            own = multiply_add(minus, following, here) - mean
            store(sums, place, load(sums, place, lanes) + own)
            here = following
    # A frame's first sample precedes itself too.
    store(sums, 0, multiply_add(minus, load(grid, 0, lanes), load(sums, 0, lanes)))


@stage
def _turn_back(plan: Plan, scratch: Scratch, lanes: int) -> None:
    """Write the sums of the first `lanes` hops in the samples' order."""
    sums, target = floats_at(scratch.sums), floats_at(scratch.samples)
    hop, stride = plan.hop, plan.sums_stride
    one = splat(np.float32(1.0), lanes)
    j = 0
    while j + lanes <= hop:
        turn_scaled(sums, j * stride, stride, target, j, hop, one)
        j += lanes
    for rest in range(j, hop):
        for h in range(lanes):
            target[h * hop + rest] = sums[rest * stride + h]


@stage
def _carry(plan: Plan, scratch: Scratch, lanes: int) -> None:
    """Move the sums of later hops to the front."""
    sums, stride = floats_at(scratch.sums), plan.sums_stride
    zero = splat(np.float32(0.0), lanes)
    for row in range(0, plan.hop * stride, stride):
        for column in range(lanes, stride, lanes):
            store(sums, row + column - lanes, load(sums, row + column, lanes))
        store(sums, row + stride - lanes, zero)


@stage
def _write(
    batch: Batch,
    plan: Plan,
    clip: int,
    origin: int,
    begin: int,
    end: int,
    count: int,
    scratch: Scratch,
    lanes: int,
) -> None:
    """Write the gradients from sample `origin` on, of samples from `begin` to `end`.

    Those of padding are added to the samples that it repeats; before a clip, they are kept until
    these have been written.
    """
    source, edge, out = floats_at(scratch.samples), floats_at(scratch.edge), floats_at(batch.out)
    row = clip * batch.num_samples
    first = max(origin, begin)
    place, inside = max(first, 0), min(end, count)
    while place + lanes <= inside:
        store(out, row + place, load(source, place - origin, lanes))
        place += lanes
    for index in range(place, inside):
        out[row + index] = source[index - origin]
    if plan.padding == ZEROS:
        return
    for index in range(first, min(end, 0)):
        edge[index - plan.first_sample] = source[index - origin]
    for index in range(max(first, count), end):
        out[row + mirrored(index, count, plan)] += source[index - origin]


@stage
def _fold_edge(batch: Batch, plan: Plan, clip: int, count: int, scratch: Scratch) -> None:
    """Add the gradients of padding before a clip to the samples that it repeats."""
    edge, out = floats_at(scratch.edge), floats_at(batch.out)
    if plan.padding != ZEROS:
        for index in range(plan.first_sample, 0):
            place = clip * batch.num_samples + mirrored(index, count, plan)
            out[place] += edge[index - plan.first_sample]


@stage
def _before_waveform_emphasis(batch: Batch, plan: Plan, clip: int, count: int, lanes: int) -> None:
    """Lead a clip's gradient back through pre-emphasis over the waveform, in place."""
    out, row = floats_at(batch.out), clip * batch.num_samples
    factor = np.float32(-plan.preemphasis)
    place = 0
    while place + lanes < count:
        here, following = load(out, row + place, lanes), load(out, row + place + 1, lanes)
        store(out, row + place, multiply_add(splat(factor, lanes), following, here))
        place += lanes
    for index in range(row + place, row + count - 1):
        out[index] = multiply_add(factor, out[index + 1], out[index])
