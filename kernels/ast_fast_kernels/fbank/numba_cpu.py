"""The filterbank on a CPU: fused over blocks of frames, one frame in each vector lane.

Cannot avoid, for 5 s at 16 kHz: 320 kB read and 255 kB written, and about 9,800 vector operations
for every 16 frames; at two a cycle that is 47 µs at 3.3 GHz, so arithmetic is the bound.

A block of `lanes` frames goes through scratch memory that stays in the nearest caches: its
samples, pre-emphasised, are turned so that one vector holds the same sample of every frame;
windowed into the FFT's grid; transformed (fft.py); summed by mel filter; logged, turned back and
stored. Meanwhile the next block's samples, and the lines its features go to, are asked for.
Blocks run from a clip's end to its beginning: then the hops that a block shares with the next one
stand turned at the beginning of the tile, and only move to its end.
Every lane does the same arithmetic on its own frame alone, so a frame's result depends neither on
the batch, nor on the threads, nor on its place in a block.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_fast_kernels import _team
from ast_fast_kernels._numba import source_digest, stage
from ast_fast_kernels._team import NEXT_ITEM, NEXT_WORKER, take
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fft import (
    MAX_SIZE,
    MIN_SIZE,
    SIZES_OF_25,
    bin_places,
    is_supported,
    power_spectrum,
    twiddles,
    used_rows,
)
from ast_fast_kernels.simd import (
    ALIGNMENT,
    INTEGER_BYTES,
    aligned,
    broadcast,
    doubles_of,
    equal_or,
    floats_at,
    gather,
    host_lanes,
    indices_at,
    integers_at,
    integers_of,
    load,
    load_int16,
    log,
    log_of_normal,
    maximum,
    multiply_add,
    shorts_at,
    splat,
    sqrt,
    store,
    transpose_tile,
    turn_differences,
)

Float32Array = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int32]
Pointer = Any
"""Address of a flat array's first element, in compiled code."""

SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)

BLOCKS_PER_THREAD = 64
"""Fewest blocks of frames worth another thread: two clips of 5 s, twice what a thread costs."""

BLOCKS_AT_ONCE = 16
"""Blocks that a thread takes at once where there are several: half a clip of 5 s. The first of them
shares no hops with one before."""

FRAMES_AT_ONCE = 256
"""Frames of a clip whose squares are held in float64: 256 KiB for 128 bins."""

FILTERS_AT_ONCE = 4
"""Filters summed side by side, over as many bins as the widest of them has."""


def fbank_numba(
    waveform: Tensor,
    config: FbankConfig,
    out: Tensor | None = None,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Return log-mel energies of a batch on the CPU.

    Args:
        waveform: Shape (batch, num_samples), float32 or int16 (taken as sample / 32768), of any
            strides; it is read where it lies.
        config: The conventions; `unsupported(config)` is None.
        out: Contiguous float32 that takes the result, shape (batch, num_frames, num_mel_bins).
        counts: Samples that count in each waveform; frames beyond them are `config.log_silence`.
    """
    batch, num_samples = waveform.shape
    if out is None:
        shape = (batch, config.num_frames(num_samples), config.num_mel_bins)
        out = torch.empty(shape, dtype=torch.float32, device="cpu")
    run_blocks(waveform, out, config, host_lanes(), counts)
    if config.needs_whole_clip:
        every = [out.shape[1]] * batch
        frames = every if counts is None else [config.num_frames(count) for count in counts]
        for clip, num_frames in zip(out.numpy(), frames, strict=True):
            _over_whole_clip(clip, config, num_frames)
    return out


def _over_whole_clip(log_mel: Float32Array, config: FbankConfig, num_frames: int) -> None:
    """Do what looks at a whole clip to one, (num_frames, num_mel_bins), in its own memory.

    numpy has no threads: a process forked after torch used its own would wait for them for ever.
    """
    if config.top_db > 0:
        np.maximum(log_mel, log_mel.max() - np.float32(config.top_range), out=log_mel)
    if config.norm_per_feature:
        firsts = range(0, num_frames, FRAMES_AT_ONCE)
        blocks = [log_mel[first : min(first + FRAMES_AT_ONCE, num_frames)] for first in firsts]
        total = np.zeros(log_mel.shape[1])
        for block in blocks:
            total += block.sum(axis=0, dtype=np.float64)
        mean = (total / max(num_frames, 1)).astype(np.float32)
        total = np.zeros(log_mel.shape[1])
        for block in blocks:
            block -= mean
            total += np.square(block, dtype=np.float64).sum(axis=0)
        deviation = np.sqrt(total / max(num_frames - 1, 1)) + tables.NORM_EPSILON
        for block in blocks:
            block /= deviation.astype(np.float32)
        log_mel[num_frames:] = 0.0


def unsupported(config: FbankConfig) -> str | None:
    """Say what of the conventions this backend does not do; None when it does them all."""
    if config.dither != 0.0:
        return f"numba adds no dither, got dither {config.dither:g}"
    if not is_supported(config.fft_size):
        sizes = (
            f"a power of two from {MIN_SIZE} to {MAX_SIZE} or {', '.join(map(str, SIZES_OF_25))}"
        )
        return f"numba needs an FFT of {sizes}, got {config.fft_size}"
    return None


def run_blocks(
    waveform: Tensor,
    out: Tensor,
    config: FbankConfig,
    lanes: int,
    counts: Sequence[int] | None = None,
) -> None:
    """Fill `out` (batch, num_frames, num_mel_bins) from `waveform` (batch, num_samples)."""
    clips, num_frames, _ = out.shape
    samples_of = frames_of = 0
    if counts is not None:
        valid = np.array(counts, np.intp)
        frames = config.num_frames(valid).astype(np.intp)
        samples_of, frames_of = valid.ctypes.data, frames.ctypes.data
    clip_stride, sample_stride = waveform.stride()
    total = clips * -(-num_frames // lanes)
    if total == 0:
        return
    team = torch.get_num_threads()
    threads = max(1, min(team, total // BLOCKS_PER_THREAD))
    # Where not all threads are wanted all may come, and find a chunk for each that is.
    chunk = BLOCKS_AT_ONCE if 1 < threads == team else -(-total // threads)
    batch = Batch(
        samples=waveform.data_ptr(),
        clip_stride=clip_stride,
        sample_stride=sample_stride,
        is_int16=waveform.dtype == torch.int16,
        num_samples=waveform.shape[1],
        num_frames=num_frames,
        samples_of=samples_of,
        frames_of=frames_of,
        out=out.data_ptr(),
    )
    ready = _take_ready(config, lanes, threads)
    prepared = ready.prepared
    chunks = -(-total // chunk)
    numbers = (chunks, chunk, total, prepared.plan_at, ready.scratch_at, *batch)
    _team.run_items(prepared.worker, numbers, threads, team, shared=True)
    _of_thread.ready = ready


class Batch(NamedTuple):
    """Where the waveforms lie and the features go, integers all: addresses; strides in samples."""

    samples: int
    clip_stride: int
    sample_stride: int
    is_int16: int
    num_samples: int
    num_frames: int
    samples_of: int  # address of each clip's count of samples; 0 where all count
    frames_of: int  # and of its frames
    out: int


class Plan(NamedTuple):
    """A config's choices, lengths in samples, and the addresses of its tables: integers first."""

    window: int  # float32 (n_fft,), zero beyond the window
    places: int  # int32 (n_fft,), where the tile holds each sample of a frame
    factors: int  # float32, the FFT's twiddles
    widths: int  # int32, bins of each `FILTERS_AT_ONCE` filters
    bins: int  # int32, where the grid holds the powers of those bins: bin by bin, filter by filter
    weights: int  # float32, of those bins
    window_size: int
    num_mel_bins: int
    hop: int
    tile_stride: int
    span: int  # of the samples that a block reads when it turns all its hops
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
    log_shift: float
    silence: float


class Scratch(NamedTuple):
    """Addresses of one thread's float32 buffers."""

    samples: int  # of one block of frames, after the one before it
    tile: int  # (hop + 2, tile stride): hops side by side, first samples, zeros
    sums: int  # (2, tile stride + lanes), of each hop's samples: all, and those that end a window
    grid: int  # (n_fft, lanes)
    square: int  # (lanes + FILTERS_AT_ONCE, lanes), of energies about to be turned


NUM_FLOATS = 6
"""Fields of a plan that are no integers, its last."""
NUM_INTEGERS = len(Plan._fields) - NUM_FLOATS
NUM_BUFFERS, BATCH_FIELDS = len(Scratch._fields), len(Batch._fields)

COUNT, CHUNK, TOTAL, PLAN, SCRATCH, BATCH = range(_team.HEADER, _team.HEADER + 6)
"""What a task holds: how many chunks there are, of how many blocks, out of how many; where the plan
and the addresses of each thread's scratch memory lie; and the batch."""


ZEROS, SYMMETRIC, REFLECT = 0, 1, 2
PADDINGS = {"constant": ZEROS, "symmetric": SYMMETRIC, "reflect": REFLECT}


class Prepared(NamedTuple):
    """A compiled worker, its plan's address, and the arrays of it and of what it points to."""

    worker: Any
    plan_at: int
    arrays: tuple[npt.NDArray[Any], ...]


@lru_cache(maxsize=32)
def _prepare(config: FbankConfig, lanes: int) -> Prepared:
    """Return the compiled kernel and its arguments for a config."""
    size, hop = config.window_size, config.window_shift
    window = np.zeros(config.fft_size, np.float32)
    window[:size] = tables.window(config) * config.waveform_scale
    stride = _tile_stride(size, hop, lanes)
    n = np.arange(config.fft_size)
    places = np.where(n < size, n % hop * stride + n // hop, (hop + 1) * stride).astype(np.int32)
    over_waveform = config.preemphasis_over == "waveform" and config.preemphasis_coefficient != 0
    if not over_waveform:
        places[0] = hop * stride  # a frame's first sample is its own predecessor
    widths, bins, weights = _side_by_side(tables.mel_banks(config))
    bins = (bin_places(config.fft_size)[bins] * lanes).astype(np.int32)
    factors = twiddles(config.fft_size)
    held = (window, places, factors, widths, bins, weights)
    plan = Plan(
        window=window.ctypes.data,
        places=places.ctypes.data,
        factors=factors.ctypes.data,
        widths=widths.ctypes.data,
        bins=bins.ctypes.data,
        weights=weights.ctypes.data,
        window_size=size,
        num_mel_bins=config.num_mel_bins,
        hop=hop,
        tile_stride=stride,
        span=_span(size, hop, lanes),
        first_sample=config.first_sample,
        padding=ZEROS if config.pad_tail else PADDINGS[config.pad_mode],
        remove_dc=config.remove_dc_offset,
        emphasise_waveform=over_waveform,
        use_power=config.use_power,
        use_log=config.use_log_fbank,
        floor_zeros_only=config.floor_zeros_only,
        # As samples lose it: a mean that loses another part leaves the difference in every sample.
        preemphasis=float(np.float32(config.preemphasis_coefficient)),
        log_floor=config.log_floor,
        log_offset=config.log_offset,
        log_factor=config.log_factor,
        log_shift=config.log_shift,
        silence=config.log_silence,
    )
    rows = used_rows(config.fft_size, size)
    worker = _worker(config.fft_size, rows, lanes, source_digest())
    in_memory = _in_memory(plan)
    return Prepared(worker, in_memory.ctypes.data, (in_memory, *held))


def _in_memory(plan: Plan) -> npt.NDArray[np.intp]:
    """Return a plan as compiled code reads it: integers, then the bits of the other numbers."""
    integers = np.array(plan[:NUM_INTEGERS], np.intp)
    return np.concatenate((integers, np.array(plan[NUM_INTEGERS:], np.float64).view(np.intp)))


def _side_by_side(
    banks: npt.NDArray[np.float64],
) -> tuple[IndexArray, IndexArray, Float32Array]:
    """Return each group's width in bins; its bins; their weights, zero where a filter is narrower.

    An empty filter gets bins of weight zero, so that it is NaN where its frame is.
    """
    num_bins = banks.shape[1]
    banks = np.pad(banks, ((0, -len(banks) % FILTERS_AT_ONCE), (0, 0)))
    used = banks != 0
    used[~used.any(axis=1), 0] = True
    starts = used.argmax(axis=1)
    ends = num_bins - used[:, ::-1].argmax(axis=1)
    widths, bins, weights = [], [], []
    for first in range(0, len(banks), FILTERS_AT_ONCE):
        group = slice(first, first + FILTERS_AT_ONCE)
        width = int((ends - starts)[group].max())
        begins = np.minimum(starts[group], num_bins - width)
        of_group = begins + np.arange(width)[:, None]  # (width, FILTERS_AT_ONCE)
        widths.append(width)
        bins.append(of_group.reshape(-1))
        weights.append(banks[np.arange(first, first + FILTERS_AT_ONCE), of_group].reshape(-1))
    return (
        np.array(widths, np.int32),
        np.concatenate(bins).astype(np.int32),
        np.concatenate(weights).astype(np.float32),
    )


class Ready(NamedTuple):
    """All that a thread's calls with one config use."""

    config: FbankConfig
    lanes: int
    prepared: Prepared
    sizes: Scratch  # of the buffers, in floats
    buffers: list[Float32Array]  # of one thread that helps, and of the next
    scratch: npt.NDArray[np.intp]  # their addresses, shape (threads, NUM_BUFFERS)
    scratch_at: int


class _OfThread(threading.local):
    """What a thread's last call used, for the next one of the same config."""

    ready: Ready | None = None


_of_thread = _OfThread()


def _take_ready(config: FbankConfig, lanes: int, threads: int) -> Ready:
    """Return what this thread's last call used, or prepare for another config or more threads.

    It is taken away until the call has ended: a signal's handler that calls meanwhile makes its
    own, and an interrupt leaves no plan beside another plan's buffers. The caller's own reference
    outlives the thread's, which goes first where an interpreter exits.
    """
    last, _of_thread.ready = _of_thread.ready, None
    if last is not None and len(last.scratch) < threads:
        last = None
    if last is not None and last.config is config and last.lanes == lanes:
        return last
    prepared = _prepare(config, lanes)
    sizes = _buffer_sizes(config, lanes)
    if last is not None and last.sizes == sizes:
        return last._replace(config=config, lanes=lanes, prepared=prepared)
    buffers = [aligned(size) for _ in range(threads) for size in sizes]
    for buffer in buffers:
        buffer[:] = 0.0
    scratch = np.array([buffer.ctypes.data for buffer in buffers], np.intp)
    scratch = scratch.reshape(threads, NUM_BUFFERS)
    return Ready(config, lanes, prepared, sizes, buffers, scratch, scratch.ctypes.data)


def _buffer_sizes(config: FbankConfig, lanes: int) -> Scratch:
    """Return the floats of each of a thread's buffers."""
    window_size, window_shift = config.window_size, config.window_shift
    stride = _tile_stride(window_size, window_shift, lanes)
    return Scratch(
        samples=1 + _span(window_size, window_shift, lanes),
        tile=(window_shift + 2) * stride,
        sums=2 * (stride + lanes),
        grid=config.fft_size * lanes,
        square=(lanes + FILTERS_AT_ONCE) * lanes,
    )


def _tile_stride(window_size: int, window_shift: int, lanes: int) -> int:
    """Hops that one block of frames touches, and so the width of a row of the tile."""
    return lanes + (window_size - 1) // window_shift


def _span(window_size: int, window_shift: int, lanes: int) -> int:
    """Samples that a block reads when it turns all its hops: those of whole squares."""
    return -(-_tile_stride(window_size, window_shift, lanes) // lanes) * lanes * window_shift


@cache
def _worker(n_fft: int, used_rows: int, lanes: int, digest: str) -> Any:
    """Return the compiled worker for one FFT length, how full it is, and the vector width.

    The digest of the sources it is emitted from is part of Numba's cache key through the closure.
    """

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
        grid, square = floats_at(scratch.grid), floats_at(scratch.square)
        window, places = floats_at(plan.window), indices_at(plan.places)
        factors, weights = floats_at(plan.factors), floats_at(plan.weights)
        widths, bins = indices_at(plan.widths), indices_at(plan.bins)
        out = floats_at(batch.out)
        hop, num_mel_bins, num_frames = plan.hop, plan.num_mel_bins, batch.num_frames
        item = 2 if batch.is_int16 else 4
        blocks = (num_frames + lanes - 1) // lanes
        shared = plan.tile_stride - lanes  # hops that a block has in common with the next
        first_block, block = _range_of(address, chunk)
        later = -1  # frame at which the block before began
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
                continue
            # The last block of a clip begins early, so that it is full like the others.
            frame = max(min(nominal, frames - lanes), 0)
            carried = later == frame + lanes
            later = frame if frame > 0 else -1
            first = frame * hop + plan.first_sample
            origin = clip * batch.clip_stride
            source = floats_at(batch.samples)
            start = origin + first
            row = (clip * num_frames + frame) * num_mel_bins
            valid = min(frames - frame, lanes)
            reads = lanes * hop if carried else plan.span
            if not _is_in_place(batch, plan, first, reads, count):
                # What no frame reads stays as it was: it ends in lanes that nobody uses.
                needed = min((valid - 1) * hop + plan.window_size, reads)
                source, start = floats_at(scratch.samples), 1
                _copy_samples(batch, plan, origin, first, needed, count, source, lanes)
            if carried:
                _carry(plan, tile, sums, shared, lanes)
            else:
                _turn_shared(source, start, plan, tile, sums, lanes)
            _turn(source, start, 0, plan, tile, sums, lanes)
            shift = _dc_shift(plan, sums, lanes)
            # The block that comes next lies just before this one, in the waveform and in `out`.
            upcoming = (
                batch.samples + (origin + first - lanes * hop) * item,
                lanes * hop * item // ALIGNMENT,
                batch.out + (row - lanes * num_mel_bins) * 4,
                lanes * num_mel_bins * 4 // ALIGNMENT,
            )
            power_spectrum(
                tile, places, window, shift, grid, factors, upcoming, n_fft, used_rows, lanes
            )
            if not plan.use_power:
                _take_magnitudes(grid, n_fft, lanes)
            weight = 0
            for m in range(0, num_mel_bins, lanes):
                width = min(lanes, num_mel_bins - m)
                weight = _sum_filters(widths, bins, weights, weight, grid, m, width, square, lanes)
                if plan.use_log:
                    _take_logs(plan, width, square, lanes)
                if width == lanes and valid == lanes:
                    transpose_tile(square, 0, out, row + m, num_mel_bins, lanes)
                else:
                    for lane in range(valid):
                        for i in range(width):
                            out[row + lane * num_mel_bins + m + i] = square[i * lanes + lane]

    return _team.compile_worker(kernel)


@stage
def _range_of(address: int, chunk: int) -> tuple[int, int]:
    """Return a chunk's first block, and the one behind its last."""
    task = integers_at(address)
    first = chunk * task[CHUNK]
    return first, min(first + task[CHUNK], task[TOTAL])


@stage
def _is_in_place(batch: Batch, plan: Plan, first: int, reads: int, count: int) -> bool:
    """Whether a block's samples, and the one before, can be read where the waveform lies."""
    return (
        first >= 1
        and first + reads <= count
        and not batch.is_int16
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
    """Write `needed` samples from `first` on, and the one before, to target[0:], as floats.

    Beyond the ends they are as `padding` says. Pre-emphasis over the waveform is done here.
    """
    begin, end = min(max(first - 1, 0), count), max(min(first + needed, count), 0)
    offset = 1 - first  # of the target's index from the waveform's
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
        return load_int16(shorts_at(batch.samples), place, lanes) * splat(
            np.float32(2.0**-15), lanes
        )
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
        return np.float32(shorts_at(batch.samples)[place]) * np.float32(2.0**-15)
    return floats_at(batch.samples)[place]


@stage
def _padded(
    batch: Batch, plan: Plan, origin: int, index: int, count: int, factor: np.float32
) -> Any:
    """Return a sample beyond an end: mirrored as often as needed, or zero."""
    if plan.padding == ZEROS or count == 0:
        return np.float32(0.0)
    repeat = 1 if plan.padding == SYMMETRIC else 0  # of the edge samples
    period = max(2 * (count - 1 + repeat), 1)
    index = index % period
    if index >= count:
        index = period - repeat - index
    return _sample(batch, origin, index, factor)


@stage
def _turn_shared(
    source: Pointer, first: int, plan: Plan, tile: Pointer, sums: Pointer, lanes: int
) -> None:
    """Turn the hops beyond a block's own `lanes`.

    Squares are written from right to left: what one writes too much belongs to the next.
    """
    column = (plan.tile_stride - 1) // lanes * lanes
    while column > 0:
        _turn(source, first + column * plan.hop, column, plan, tile, sums, lanes)
        column -= lanes


@stage
def _carry(plan: Plan, tile: Pointer, sums: Pointer, shared: int, lanes: int) -> None:
    """Move the hops that the next block shares with this one behind this one's own.

    From the last row to the first: what a vector writes too much is in a row already moved.
    """
    stride = plan.tile_stride
    for j in range(plan.hop - 1, -1, -1):
        _carry_row(tile, j * stride, shared, lanes)
    _carry_row(sums, stride + lanes, shared, lanes)
    _carry_row(sums, 0, shared, lanes)


@stage
def _carry_row(values: Pointer, row: int, shared: int, lanes: int) -> None:
    """Move the first `shared` of a row by `lanes`, four at a time, last ones first."""
    column = (shared - 1) // 4 * 4
    while column >= 0:
        store(values, row + lanes + column, load(values, row + column, 4))
        column -= 4


@stage
def _turn(
    source: Pointer, first: int, column: int, plan: Plan, tile: Pointer, sums: Pointer, lanes: int
) -> None:
    """Write sample j of hop h, pre-emphasised, to tile[j, column + h], for `lanes` hops; sum them.

    So sample n of frame f is at [n % hop, f + n // hop]. A frame's own first sample has itself as
    predecessor: those are in row `hop`, in full, once the first square has been turned.
    """
    hop, stride = plan.hop, plan.tile_stride
    coefficient = np.float32(0.0) if plan.emphasise_waveform else np.float32(plan.preemphasis)
    factor = splat(coefficient, lanes)
    rest = plan.window_size % hop
    previous = gather(source, first - 1, hop, lanes)
    total = splat(np.float32(0.0), lanes)
    part = total
    j = 0
    while j + lanes <= hop:
        if j <= rest < j + lanes:
            part = total
            for i in range(j, rest):
                part = part + gather(source, first + i, hop, lanes)
        previous, more = turn_differences(
            source, first + j, hop, tile, j * stride + column, stride, factor, previous
        )
        total = total + more
        j += lanes
    while j < hop:
        if j == rest:
            part = total
        sample = gather(source, first + j, hop, lanes)
        store(tile, j * stride + column, sample - factor * previous)
        total = total + sample
        previous = sample
        j += 1
    if plan.window_size < hop:
        total = part  # a window within its hop
    store(sums, column, total)
    store(sums, stride + lanes + column, part)
    own = gather(source, first, hop, lanes)
    store(tile, hop * stride, own - own * factor)


@stage
def _dc_shift(plan: Plan, sums: Pointer, lanes: int) -> Any:
    """Return what a removed mean takes from each frame's pre-emphasised samples.

    With c the pre-emphasis inside frames, that is (1 - c) times the mean of the samples.
    """
    if not plan.remove_dc:
        return splat(np.float32(0.0), lanes)
    hop, size = plan.hop, plan.window_size
    total = splat(np.float32(0.0), lanes)
    for h in range(size // hop):
        total = total + load(sums, h, lanes)
    if size % hop:
        total = total + load(sums, plan.tile_stride + lanes + size // hop, lanes)
    coefficient = 0.0 if plan.emphasise_waveform else plan.preemphasis
    return total * splat(np.float32((1.0 - coefficient) / size), lanes)


@stage
def _take_magnitudes(grid: Pointer, n_fft: int, lanes: int) -> None:
    """Replace powers by their roots, wherever the grid may hold one."""
    for place in range(0, n_fft * lanes, lanes):
        store(grid, place, sqrt(load(grid, place, lanes)))


@stage
def _sum_filters(
    widths: Pointer,
    bins: Pointer,
    weights: Pointer,
    weight: int,
    powers: Pointer,
    first: int,
    width: int,
    energies: Pointer,
    lanes: int,
) -> int:
    """Write the energies of `width` filters, one vector each; return the next filter's weight."""
    for m in range(0, width, FILTERS_AT_ONCE):
        a = b = c = d = splat(np.float32(0.0), lanes)
        for _ in range(widths[(first + m) // FILTERS_AT_ONCE]):
            a = a + broadcast(weights, weight, lanes) * load(powers, bins[weight], lanes)
            b = b + broadcast(weights, weight + 1, lanes) * load(powers, bins[weight + 1], lanes)
            c = c + broadcast(weights, weight + 2, lanes) * load(powers, bins[weight + 2], lanes)
            d = d + broadcast(weights, weight + 3, lanes) * load(powers, bins[weight + 3], lanes)
            weight += FILTERS_AT_ONCE
        place = m * lanes
        store(energies, place, a)
        store(energies, place + lanes, b)
        store(energies, place + 2 * lanes, c)
        store(energies, place + 3 * lanes, d)
    return weight


@stage
def _take_logs(plan: Plan, width: int, energies: Pointer, lanes: int) -> None:
    """Replace energies by their logarithms; loops of their own, so that constants stay loaded."""
    floor = splat(np.float32(plan.log_floor), lanes)
    if plan.log_offset != 0.0:
        offset = splat(np.float32(plan.log_offset), lanes)
        for place in range(0, width * lanes, lanes):
            store(energies, place, load(energies, place, lanes) + offset)
    if plan.floor_zeros_only:
        for place in range(0, width * lanes, lanes):
            energy = equal_or(load(energies, place, lanes), splat(np.float32(0.0), lanes), floor)
            store(energies, place, log(energy))
    elif plan.log_floor >= SMALLEST_NORMAL:
        for place in range(0, width * lanes, lanes):
            store(energies, place, log_of_normal(maximum(load(energies, place, lanes), floor)))
    else:
        for place in range(0, width * lanes, lanes):
            store(energies, place, log(maximum(load(energies, place, lanes), floor)))
    if plan.log_factor != 1.0 or plan.log_shift != 0.0:
        factor = splat(np.float32(plan.log_factor), lanes)
        shift = splat(np.float32(plan.log_shift), lanes)
        for place in range(0, width * lanes, lanes):
            store(energies, place, multiply_add(load(energies, place, lanes), factor, shift))
