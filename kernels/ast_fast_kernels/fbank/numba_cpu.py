"""The filterbank on a CPU: fused over blocks of frames, one frame in each vector lane.

Cannot avoid, for 5 s at 16 kHz: 320 kB read and 255 kB written, and about 9,800 vector operations
for every 16 frames; at two a cycle that is 60 µs at 2.6 GHz, so arithmetic is the bound.

A block of `lanes` frames goes through scratch memory that stays in the nearest caches: its
samples, pre-emphasised, are turned so that one vector holds the same sample of every frame;
windowed into the FFT's grid; transformed (fft.py); summed by mel filter; logged, turned back and
stored.
Every lane does the same arithmetic on its own frame alone, so a frame's result depends neither on
the batch, nor on the threads, nor on its place in a block.
"""

from __future__ import annotations

import threading
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_fast_kernels import _threads
from ast_fast_kernels._numba import jit, source_digest, stage
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fft import is_supported, power_spectrum, twiddles, used_rows
from ast_fast_kernels.simd import (
    ALIGNMENT,
    broadcast,
    gather,
    host_lanes,
    load,
    log,
    log_of_normal,
    maximum,
    pointer,
    scatter,
    splat,
    sqrt,
    store,
    transpose_differences,
    transpose_tile,
)

Float32Array = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.intp]
Pointer = Any
"""Address of a flat array's first element, in compiled code."""

SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)

BLOCKS_PER_TASK = 64
"""Fewest blocks of frames worth another thread: two clips of 5 s, twice what a thread costs."""


def fbank_numba(waveform: Tensor, config: FbankConfig, out: Tensor | None = None) -> Tensor:
    """Return log-mel energies of a float32 batch on the CPU.

    Args:
        waveform: Shape (batch, num_samples), contiguous float32.
        config: The conventions; `unsupported(config)` is None.
        out: Contiguous float32 that takes the result, shape (batch, num_frames, num_mel_bins).
    """
    batch, num_samples = waveform.shape
    num_frames = config.num_frames(num_samples)
    if out is None:
        out = waveform.new_empty((batch, num_frames, config.num_mel_bins))
    run_blocks(waveform.numpy(), out.numpy(), config, host_lanes(), torch.get_num_threads())
    return out


def unsupported(config: FbankConfig) -> str | None:
    """Say what of the conventions this backend does not do; None when it does them all."""
    if config.dither != 0.0:
        return f"numba adds no dither, got dither {config.dither:g}"
    if not is_supported(config.fft_size):
        return f"numba needs an FFT of a power of two from 32 to 4096, got {config.fft_size}"
    for name, done in ONLY.items():
        if getattr(config, name) != done and not (name == "pad_mode" and config.snip_edges):
            return f"numba takes {name} {done!r} only, got {getattr(config, name)!r}"
    return None


ONLY: dict[str, object] = {
    "preemphasis_over": "frame",
    "center": False,
    "pad_mode": "symmetric",
    "pad_tail": False,
    "log_type": "ln",
    "floor_zeros_only": False,
    "output_shift": 0.0,
    "output_scale": 1.0,
}
"""Fields that this backend takes one value of."""


def run_blocks(
    waveform: Float32Array, out: Float32Array, config: FbankConfig, lanes: int, num_threads: int
) -> None:
    """Fill `out` (batch, num_frames, num_mel_bins) from `waveform` (batch, num_samples)."""
    kernel, kernel_tables, conventions = _prepare(config, lanes)
    batch, num_frames, _ = out.shape
    flat_out = out.reshape(-1)
    blocks = -(-num_frames // lanes)

    def run(first: int, last: int) -> None:
        scratch = _scratch_of_thread(config, lanes)
        kernel(waveform, flat_out, num_frames, first, last, kernel_tables, conventions, scratch)

    _threads.parallel_for(run, batch * blocks, BLOCKS_PER_TASK, num_threads)


class Tables(NamedTuple):
    """A config's tables, rounded to float32."""

    window: Float32Array  # (n_fft,), zero beyond the window
    places: IndexArray  # (n_fft,), where the tile holds each sample of a frame
    factors: Float32Array  # the FFT's twiddles
    starts: IndexArray  # (num_mel_bins,), first bin of each mel filter
    pairs: IndexArray  # (num_mel_bins,), bins of each mel filter, in twos
    weights: Float32Array  # of those bins, one filter after another


class Conventions(NamedTuple):
    """A config's numbers and choices, lengths in samples."""

    window_size: int
    num_mel_bins: int
    hop: int
    tile_stride: int
    offset: int  # of the first frame from the first sample
    mirror: bool
    scale: np.float32
    remove_dc: bool
    preemphasis: np.float32
    use_power: bool
    use_log: bool
    log_floor: np.float32
    log_offset: np.float32


class Scratch(NamedTuple):
    """One thread's buffers, flat."""

    samples: Float32Array  # of one block of frames, after the one before it
    tile: Float32Array  # (hop + 2, tile stride): hops side by side, first samples, zeros
    sums: Float32Array  # (3, tile stride), of each hop's pre-emphasised samples
    grid: Float32Array  # (n_fft, lanes)
    power: Float32Array  # (n_fft // 2 + 1, lanes), and zeros for a last pair to read
    square: Float32Array  # (lanes, lanes), of energies about to be turned


@lru_cache(maxsize=32)
def _prepare(config: FbankConfig, lanes: int) -> tuple[Any, Tables, Conventions]:
    """Return the compiled kernel and its arguments for a config."""
    size, hop = config.window_size, config.window_shift
    window = np.zeros(config.fft_size, np.float32)
    window[:size] = tables.window(config)
    stride = _tile_stride(size, hop, lanes)
    n = np.arange(config.fft_size)
    places = np.where(n < size, n % hop * stride + n // hop, (hop + 1) * stride)
    places[0] = hop * stride
    starts, pairs, weights = _pairs(tables.mel_banks(config))
    kernel_tables = Tables(
        window=window,
        places=places.astype(np.intp),
        factors=twiddles(config.fft_size),
        starts=starts,
        pairs=pairs,
        weights=weights,
    )
    conventions = Conventions(
        window_size=size,
        num_mel_bins=config.num_mel_bins,
        hop=hop,
        tile_stride=stride,
        offset=0 if config.snip_edges else hop // 2 - size // 2,
        mirror=not config.snip_edges,
        scale=np.float32(config.waveform_scale),
        remove_dc=config.remove_dc_offset,
        preemphasis=np.float32(config.preemphasis_coefficient),
        use_power=config.use_power,
        use_log=config.use_log_fbank,
        log_floor=np.float32(config.log_floor),
        log_offset=np.float32(config.log_offset),
    )
    with _threads.compile_lock:
        rows = used_rows(config.fft_size, size)
        kernel = _build_kernel(config.fft_size, rows, lanes, source_digest())
        samples, out = np.zeros((1, size), np.float32), np.zeros(0, np.float32)
        # No blocks: this only compiles, where that has not been done.
        kernel(samples, out, 1, 0, 0, kernel_tables, conventions, _scratch(config, lanes))
    return kernel, kernel_tables, conventions


def _pairs(banks: npt.NDArray[np.float64]) -> tuple[IndexArray, IndexArray, Float32Array]:
    """Return each filter's first bin, its bins in twos, and their weights, zero-padded.

    An empty filter gets two bins of weight zero, so that it is NaN where its frame is.
    """
    used = banks != 0
    used[~used.any(axis=1), 0] = True
    starts = used.argmax(axis=1)
    ends = banks.shape[1] - used[:, ::-1].argmax(axis=1)
    pairs = (ends - starts + 1) // 2
    padded = np.pad(banks, ((0, 0), (0, 1)))
    weights = [
        row[start : start + 2 * count]
        for row, start, count in zip(padded, starts, pairs, strict=True)
    ]
    return (
        starts.astype(np.intp),
        pairs.astype(np.intp),
        np.concatenate(weights).astype(np.float32),
    )


class _ThreadScratch(threading.local):
    """The buffers that a thread used last, and what they were for."""

    key: tuple[int, ...] = ()
    scratch: Scratch


_of_thread = _ThreadScratch()


def _scratch_of_thread(config: FbankConfig, lanes: int) -> Scratch:
    """Return this thread's buffers; they are kept from call to call."""
    key = (config.fft_size, config.window_size, config.window_shift, lanes)
    if _of_thread.key != key:
        _of_thread.scratch = _scratch(config, lanes)
        _of_thread.key = key
    return _of_thread.scratch


def _scratch(config: FbankConfig, lanes: int) -> Scratch:
    hop = config.window_shift
    span = (lanes - 1) * hop + max(hop, config.window_size)  # whole hops are turned
    stride = _tile_stride(config.window_size, hop, lanes)
    scratch = Scratch(
        samples=_aligned(1 + span),
        tile=_aligned((hop + 2) * stride),
        sums=_aligned(3 * stride),
        grid=_aligned(config.fft_size * lanes),
        power=_aligned((config.fft_size // 2 + 2) * lanes),
        square=_aligned(lanes * lanes),
    )
    scratch.tile[(hop + 1) * stride :] = 0.0
    scratch.power[-lanes:] = 0.0
    return scratch


def _aligned(size: int) -> Float32Array:
    raw = np.empty(size + ALIGNMENT // 4, np.float32)
    start = -(raw.ctypes.data // 4) % (ALIGNMENT // 4)
    return raw[start : start + size]


def _tile_stride(window_size: int, window_shift: int, lanes: int) -> int:
    """Hops that one block of frames touches, and so the width of a row of the tile."""
    return lanes + (window_size - 1) // window_shift


@cache
def _build_kernel(n_fft: int, used_rows: int, lanes: int, digest: str) -> Any:
    """Return the compiled block loop for one FFT length, how full it is, and the vector width.

    The digest of the sources it is emitted from is part of Numba's cache key through the closure.
    """

    @jit
    def kernel(
        waveform: Float32Array,
        out: Float32Array,
        num_frames: int,
        first_block: int,
        last_block: int,
        tables: Tables,
        conventions: Conventions,
        scratch: Scratch,
    ) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        num_samples = waveform.shape[1]
        samples, target = pointer(waveform), pointer(out)
        tile, grid, power = pointer(scratch.tile), pointer(scratch.grid), pointer(scratch.power)
        sums, square = pointer(scratch.sums), pointer(scratch.square)
        window, places = pointer(tables.window), pointer(tables.places)
        factors = pointer(tables.factors)
        starts, pairs = pointer(tables.starts), pointer(tables.pairs)
        weights = pointer(tables.weights)
        blocks = (num_frames + lanes - 1) // lanes
        for block in range(first_block, last_block):
            clip = block // blocks
            # The last block of a clip begins early, so that it is full like the others.
            frame = max(min((block - clip * blocks) * lanes, num_frames - lanes), 0)
            first = frame * conventions.hop + conventions.offset
            source = samples
            if _holds_block(first, num_samples, conventions, lanes):
                first += clip * num_samples
            else:
                _copy_samples(waveform[clip], first, conventions, scratch.samples, lanes)
                source, first = pointer(scratch.samples), 1
            _turn(source, first, conventions, tile, lanes)
            shift = _dc_shift(source, first, conventions, tile, sums, lanes)
            power_spectrum(
                tile, places, window, shift, grid, power, factors, n_fft, used_rows, lanes
            )
            if not conventions.use_power:
                _take_magnitudes(power, n_fft // 2 + 1, lanes)
            valid = min(num_frames - frame, lanes)
            row = (clip * num_frames + frame) * conventions.num_mel_bins
            weight = 0
            for m in range(0, conventions.num_mel_bins, lanes):
                width = min(lanes, conventions.num_mel_bins - m)
                weight = _sum_filters(
                    starts, pairs, weights, weight, power, m, width, square, lanes
                )
                if conventions.use_log:
                    _take_logs(conventions, width, square, lanes)
                if width == lanes and valid == lanes:
                    stride = conventions.num_mel_bins
                    transpose_tile(square, 0, lanes, target, row + m, stride, lanes)
                else:
                    for lane in range(valid):
                        for i in range(width):
                            at = row + lane * conventions.num_mel_bins + m + i
                            target[at] = square[i * lanes + lane]

    return kernel


@stage
def _holds_block(first: int, num_samples: int, conventions: Conventions, lanes: int) -> bool:
    """Whether a waveform has all samples of a block, and the one before, as the kernel wants them.

    Whole hops are read, also where a window is shorter.
    """
    hop = conventions.hop
    count = (lanes - 1) * hop + max(hop, conventions.window_size)
    return first >= 1 and first + count <= num_samples and conventions.scale == np.float32(1.0)


@stage
def _copy_samples(
    waveform: Float32Array, first: int, conventions: Conventions, samples: Float32Array, lanes: int
) -> None:
    """Copy a block's samples to samples[1:], scaled; beyond the ends mirrored, or zero."""
    size = waveform.size
    count = (lanes - 1) * conventions.hop + conventions.window_size
    before = min(max(-first, 0), count)
    after = max(min(size - first, count), before)
    inside = waveform[max(first, 0) : max(first, 0) + after - before]
    target = samples[1 + before : 1 + after]
    for i in range(inside.size):
        target[i] = inside[i] * conventions.scale
    samples[0] = 0.0
    for start, stop in ((0, before), (after, count)):
        for i in range(start, stop):
            mirrored = waveform[_mirror(first + i, size)] if conventions.mirror else np.float32(0.0)
            samples[1 + i] = mirrored * conventions.scale


@stage
def _mirror(index: int, size: int) -> int:
    """Reflect an index into 0..size-1, edge samples repeated."""
    while index < 0 or index >= size:
        index = -index - 1 if index < 0 else 2 * size - 1 - index
    return index


@stage
def _turn(source: Pointer, first: int, conventions: Conventions, tile: Pointer, lanes: int) -> None:
    """Write sample j of hop h, pre-emphasised, to tile[j, h].

    So sample n of frame f is at [n % hop, f + n // hop]. A frame's own first sample has itself as
    predecessor: those are in row `hop`, in full.
    """
    hop, coefficient = conventions.hop, conventions.preemphasis
    stride = conventions.tile_stride
    factor = splat(coefficient, lanes)
    turned = 0
    if hop >= lanes:
        turned = lanes
        for group in range(0, hop, lanes):
            j = min(group, hop - lanes)
            transpose_differences(
                source, first + j, hop, tile, j * stride, stride, coefficient, lanes
            )
    count = (lanes - 1) * hop + conventions.window_size
    for h in range(turned, stride):
        start = first + h * hop
        size = min(hop, count - h * hop)
        whole = size // lanes * lanes
        for j in range(0, whole, lanes):
            previous = load(source, start + j - 1, lanes)
            emphasised = load(source, start + j, lanes) - previous * factor
            scatter(tile, j * stride + h, stride, emphasised)
        for j in range(whole, size):
            tile[j * stride + h] = source[start + j] - coefficient * source[start + j - 1]
    own = gather(source, first, hop, lanes)
    store(tile, hop * stride, own - own * factor)


@stage
def _dc_shift(
    source: Pointer,
    first: int,
    conventions: Conventions,
    tile: Pointer,
    sums: Pointer,
    lanes: int,
) -> Any:
    """Return what a removed mean takes from each frame's pre-emphasised samples.

    With c the pre-emphasis, that is (1 - c) times the mean of the samples, and the pre-emphasised
    ones sum to (1 - c) times the samples' sum, plus c times the last sample less the first.
    """
    if not conventions.remove_dc:
        return splat(np.float32(0.0), lanes)
    hop, size, stride = conventions.hop, conventions.window_size, conventions.tile_stride
    # Of each hop's samples: all, all but the first, and those that end a window.
    whole_sums, tail_sums, part_sums = 0, stride, 2 * stride
    used = min(hop, size)
    rest = size % hop if size > hop else 0
    for h in range(0, stride, lanes):
        column = min(h, stride - lanes)
        begin = load(tile, column, lanes)
        part = _sum_rows(tile, column, 1, max(rest, 1), stride, lanes)
        tail = part + _sum_rows(tile, column, max(rest, 1), used, stride, lanes)
        store(sums, part_sums + column, begin + part)
        store(sums, tail_sums + column, tail)
        store(sums, whole_sums + column, begin + tail)
    # A frame's first sample has no part in the difference at which its first hop begins.
    total = load(tile, hop * stride, lanes) + load(sums, tail_sums, lanes)
    for h in range(1, size // hop):
        total = total + load(sums, whole_sums + h, lanes)
    if rest:
        total = total + load(sums, part_sums + size // hop, lanes)
    last = gather(source, first + size - 1, hop, lanes)
    ends = last - gather(source, first, hop, lanes)
    total = total - ends * splat(conventions.preemphasis, lanes)
    return total * splat(np.float32(1.0) / np.float32(size), lanes)


@stage
def _sum_rows(tile: Pointer, column: int, first: int, last: int, stride: int, lanes: int) -> Any:
    """Return the sum of tile[first:last, column:], in four chains that need not wait in turn."""
    a = b = c = d = splat(np.float32(0.0), lanes)
    whole = first + max(last - first, 0) // 4 * 4
    for j in range(first, whole, 4):
        a = a + load(tile, j * stride + column, lanes)
        b = b + load(tile, (j + 1) * stride + column, lanes)
        c = c + load(tile, (j + 2) * stride + column, lanes)
        d = d + load(tile, (j + 3) * stride + column, lanes)
    for j in range(whole, last):
        a = a + load(tile, j * stride + column, lanes)
    return (a + b) + (c + d)


@stage
def _take_magnitudes(power: Pointer, bins: int, lanes: int) -> None:
    for place in range(0, bins * lanes, lanes):
        store(power, place, sqrt(load(power, place, lanes)))


@stage
def _sum_filters(
    starts: Pointer,
    pairs: Pointer,
    weights: Pointer,
    weight: int,
    power: Pointer,
    first: int,
    width: int,
    energies: Pointer,
    lanes: int,
) -> int:
    """Write the energies of `width` filters, one vector each; return the next filter's weight."""
    for m in range(width):
        even = odd = splat(np.float32(0.0), lanes)
        place = starts[first + m] * lanes
        for _ in range(pairs[first + m]):
            even = even + broadcast(weights, weight, lanes) * load(power, place, lanes)
            odd = odd + broadcast(weights, weight + 1, lanes) * load(power, place + lanes, lanes)
            place += 2 * lanes
            weight += 2
        store(energies, m * lanes, even + odd)
    return weight


@stage
def _take_logs(conventions: Conventions, width: int, energies: Pointer, lanes: int) -> None:
    """Replace energies by their logarithms; a loop of its own, so that constants stay loaded."""
    floor = splat(conventions.log_floor, lanes)
    offset = splat(conventions.log_offset, lanes)
    if conventions.log_floor >= SMALLEST_NORMAL:
        for place in range(0, width * lanes, lanes):
            energy = maximum(load(energies, place, lanes) + offset, floor)
            store(energies, place, log_of_normal(energy))
    else:
        for place in range(0, width * lanes, lanes):
            energy = maximum(load(energies, place, lanes) + offset, floor)
            store(energies, place, log(energy))
