"""The filterbank on a CPU: fused over blocks of frames, one frame in each vector lane.

Cannot avoid, for 5 s at 16 kHz: 320 kB read and 255 kB written, and about 10,400 vector operations
for every 16 frames; at two a cycle that is 49 µs at 3.3 GHz, so arithmetic is the bound.

This file has the tables in memory, each thread's scratch memory and the division of the work;
numba_kernel.py has what a thread does with its blocks.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Sequence
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._cpu import crew
from ast_fast_kernels._cpu.caches import first_cache
from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.memory import lend, lend_at
from ast_fast_kernels._cpu.simd import address_of, aligned, host_lanes
from ast_fast_kernels._cpu.spectrum import (
    MAX_SIZE,
    bin_places,
    can_halve,
    can_leave_shift,
    grid_vectors,
    input_order,
    is_supported,
    twiddles,
    used_rows,
)
from ast_fast_kernels._cpu.team import HEADER, NEXT_ITEM, NEXT_WORKER, Pace, run_items, team_size
from ast_fast_kernels.fbank import again, tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.numba_dither import KEY_FIELDS, REFLECT, SYMMETRIC, ZEROS
from ast_fast_kernels.fbank.numba_kernel import (
    BATCH,
    CHUNK,
    COUNT,
    FILTERS_AT_ONCE,
    INT16_UNIT,
    NUM_BUFFERS,
    NUM_INTEGERS,
    Batch,
    Plan,
    Scratch,
    compiled_worker,
)
from ast_fast_kernels.fbank.numba_mersenne import BLOCK

if TYPE_CHECKING:
    from torch import Tensor

    Samples = npt.NDArray[Any] | Tensor

Float32Array = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int32]
SizeArray = npt.NDArray[np.intp]

FLOAT32_MAX = float(np.finfo(np.float32).max)

MOST_SHIFT = 2**24
"""Longest shift in samples, 17 minutes at 16 kHz: 32 bits index a block's samples, and its buffers
have up to 1 GiB."""

BLOCKS_PER_THREAD = 64
"""Fewest blocks of frames that always justify another thread: two clips of 5 s, twice its cost if
it sleeps."""

FEWEST_BLOCKS = 8
"""Fewest that justify one if `Pace` finds it awake."""

BLOCKS_AT_ONCE = 64
"""Most blocks that one of several threads takes at once: one or two clips of 5 s. The first of them
cannot reuse hops of a block before it, and nothing has been prefetched for it."""

CHUNKS_PER_THREAD = 4
"""So many, if there are blocks enough, let a thread that comes late take fewer."""

MOST_UNALIGNED = 4096
"""Numbers of a result, 32 frames of 128, for which aligning it takes longer than it saves."""

FRAMES_AT_ONCE = 256
"""Frames of a clip whose squares are held in float64: 256 KiB for 128 bins."""


def fbank_numba(
    waveform: Samples,
    config: FbankConfig,
    out: Samples | None = None,
    counts: Sequence[int] | None = None,
    keys: Samples | None = None,
    noise: Tensor | None = None,
) -> Any:
    """Return log-mel energies of a batch on the CPU, of the waveform's kind.

    Args:
        waveform: Array or tensor, shape (batch, num_samples), float32 or int16 (taken as sample /
            32768), of any strides; it is read in place.
        config: The conventions; `unsupported(config)` is None.
        out: Contiguous float32 that takes the result, shape (batch, num_frames, num_mel_bins).
        counts: Samples that count in each waveform; frames beyond them are `config.log_silence`.
        keys: Each clip's key and first frame, contiguous int64 (batch, 2), if there is dither.
        noise: Instead of keys, the standard noise of one clip's frames, contiguous float32
            (at least num_frames and 16, window_size); or the words that it is made of, int32
            (num_frames, window_size), with 16 more behind them (`numba_randn.draw_words`).
    """
    batch, num_samples = waveform.shape
    if out is None:
        shape = (batch, config.num_frames(num_samples), config.num_mel_bins)
        out = _empty(shape, waveform)
    run_blocks(waveform, out, config, host_lanes(), counts, keys, noise)
    if _normalises(config):
        every = [out.shape[1]] * batch
        frames = every if counts is None else [config.num_frames(count) for count in counts]
        for clip, num_frames in zip(np.asarray(out), frames, strict=True):
            _normalise(clip, num_frames)
    return out


class _Task:
    """A batch laid out in memory for one thread, or for more in a row of calls."""

    def __init__(
        self,
        ready: Ready,
        total: int,
        batch: Batch,
        shape: tuple[int, int, int],
        ranges: tuple[SizeArray, Float32Array] | None,
        team: int,
        threads: int,
    ) -> None:
        self._ready = ready  # keeps the plan and the buffers
        self._shape, self._total = shape, total
        size = shape[0] * shape[1] * shape[2]
        self._team, self._ranges = team, ranges
        self._bytes = size * FLOAT_BYTES
        self._sample_bytes = shape[0] * batch.num_samples * (2 if batch.is_int16 else FLOAT_BYTES)
        self._is_small = size <= MOST_UNALIGNED
        self.normalises = _normalises(ready.config)
        prepared = ready.prepared
        numbers = (1, total, total, prepared.plan_at, ready.scratch_at, *batch)
        self._memory = array("q", (*[0] * HEADER, *numbers))
        self._address, _ = self._memory.buffer_info()
        self.keys: npt.NDArray[np.int64] | None = None
        self._kernel = prepared.worker.ctypes
        self._shared: crew.Request | None = None
        if threads > 1:
            self._alone = (1, total)
            self._divided = _divided(total, threads)
            self._shared = crew.Request(prepared.worker, self._address, threads)

    def own_keys(self) -> None:
        """Hold a place for the keys of later calls."""
        self.keys = np.zeros((self._shape[0], KEY_FIELDS), np.int64)
        self._memory[_KEYS] = address_of(self.keys)

    def still_fits(self) -> bool:
        """Say whether it would be laid out for as many threads now."""
        return self._team == 0 or self._team == team_size()

    def overlaps(self, samples_at: int, out_at: int) -> bool:
        """Say whether contiguous samples and energies at two addresses share memory."""
        return out_at < samples_at + self._sample_bytes and samples_at < out_at + self._bytes

    def run(self, samples_at: int) -> Float32Array:
        """Return the energies of contiguous samples at an address."""
        if self._is_small:
            out = np.empty(self._shape, np.float32)
            out_at = address_of(out)
        else:
            out, out_at = lend_at(*self._shape)
        self.fill(samples_at, out_at)
        if self.normalises:
            for clip in out:
                _normalise(clip, out.shape[1])
        return out

    def fill(self, samples_at: int, out_at: int) -> None:
        """Write the energies, which are still to be normalised if `normalises`, to an address."""
        task, shared = self._memory, self._shared
        task[NEXT_ITEM] = task[NEXT_WORKER] = 0
        task[_SAMPLES], task[_OUT] = samples_at, out_at
        if self._ranges is not None:
            self._ranges[0][:] = 0
        if shared is None:
            self._kernel(self._address)
            return
        pace, begun = self._ready.pace, perf_counter()
        tries_more = pace.tries_more(begun, self._total)
        task[COUNT], task[CHUNK] = self._divided if tries_more else self._alone
        if tries_more:
            shared.run()
        else:
            self._kernel(self._address)
        pace.note(tries_more, begun, perf_counter(), self._total)


def _divided(total: int, threads: int) -> tuple[int, int]:
    """Return how many chunks several threads take, and of how many blocks, to end together."""
    each = -(-total // threads)
    chunk = -(-each // max(CHUNKS_PER_THREAD, -(-each // BLOCKS_AT_ONCE)))
    return -(-total // chunk), chunk


_SAMPLES, _OUT, _KEYS = (BATCH + Batch._fields.index(name) for name in ("samples", "out", "keys"))


def _limits_range(config: FbankConfig) -> bool:
    """Whether `top_db` applies."""
    return config.top_db > 0 and config.use_log_fbank


def _range_memory(clips: int, blocks: int) -> tuple[SizeArray, Float32Array]:
    """Return what `top_db` needs: a count for each clip, and two extremes for each block."""
    return np.zeros(clips, np.intp), np.empty(2 * blocks, np.float32)


def _normalises(config: FbankConfig) -> bool:
    """Whether `norm_per_feature` applies."""
    return config.norm_per_feature and config.use_log_fbank


def _empty(shape: tuple[int, int, int], waveform: Samples) -> Samples:
    """Return uninitialised float32 of the waveform's kind, aligned to a cache line."""
    out = lend(*shape)
    if isinstance(waveform, np.ndarray):
        return out
    import torch  # loaded already: the waveform is a tensor

    return torch.from_numpy(out)


def _normalise(log_mel: Float32Array, num_frames: int) -> None:
    """Apply `norm_per_feature` to a clip, (num_frames, num_mel_bins), in place.

    By numpy, which has no threads: a process forked after torch used its own would wait for them
    forever.
    """
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
    """Say which convention this backend does not support; None when it supports them all."""
    if not is_supported(config.fft_size):
        return f"numba needs an FFT length of at most {MAX_SIZE}, got {config.fft_size}"
    if config.window_shift > MOST_SHIFT:
        return f"numba needs a shift of at most {MOST_SHIFT} samples, got {config.window_shift}"
    if abs(_own_dither(config)) > FLOAT32_MAX:
        scale = config.waveform_scale
        return f"numba needs a waveform_scale that dither can be divided by, got {scale:g}"
    return None


def _own_dither(config: FbankConfig) -> float:
    """Return dither's factor in the waveform's own scale; infinite if no number is one."""
    if config.dither == 0.0:
        return 0.0
    return config.dither / config.waveform_scale if config.waveform_scale else math.inf


def run_blocks(
    waveform: Samples,
    out: Any,
    config: FbankConfig,
    lanes: int,
    counts: Sequence[int] | None = None,
    keys: Samples | None = None,
    noise: Tensor | None = None,
    cache_bytes: int | None = None,
) -> None:
    """Fill `out` (batch, num_frames, num_mel_bins) from `waveform` (batch, num_samples).

    Both are arrays, or both tensors, as `keys` is. `cache_bytes` is the size of the first cache,
    this machine's by default: it decides in which order the work is done, and changes no bit of the
    result.
    """
    clips, num_frames, _ = out.shape
    samples_of = frames_of = 0
    if counts is not None:
        valid, frames = valid_parts(counts, config)  # held until the call ends
        samples_of, frames_of = valid.ctypes.data, frames.ctypes.data
    total = clips * -(-num_frames // lanes)
    if total == 0:
        return
    ranges = _range_memory(clips, total) if _limits_range(config) else None  # held to the end
    itemsize = waveform.itemsize
    is_int16 = itemsize == 2
    if isinstance(waveform, np.ndarray):
        samples, out_at = address_of(waveform), address_of(out)
        clip_stride, sample_stride = waveform.strides
        clip_stride, sample_stride = clip_stride // itemsize, sample_stride // itemsize
        contiguous = waveform.flags.c_contiguous
    else:
        samples, out_at = waveform.data_ptr(), out.data_ptr()
        clip_stride, sample_stride = waveform.stride()
        contiguous = waveform.is_contiguous()
    team = team_size()
    few = many = 1
    if team > 1 and total >= 2 * FEWEST_BLOCKS:
        few = max(1, min(team, total // BLOCKS_PER_THREAD))
        many = min(team, total // FEWEST_BLOCKS)
    ready = _take_ready(config, is_int16, lanes, many, cache_bytes or first_cache())
    # In order: names would take longer than the rest of this function.
    batch = Batch(
        samples,
        clip_stride,
        sample_stride,
        is_int16,
        waveform.shape[1],
        num_frames,
        samples_of,
        frames_of,
        out_at,
        0 if keys is None else _address(keys),
        0 if noise is None else noise.data_ptr(),
        0 if noise is None or noise.is_floating_point() else noise.numel(),
        *((0, 0) if ranges is None else (address_of(ranges[0]), address_of(ranges[1]))),
    )
    task = None
    if few == 1 and (many == 1 or crew.is_available()):
        fits = team if total >= 2 * FEWEST_BLOCKS else 0
        task = _Task(ready, total, batch, out.shape, ranges, fits, many)
        task.fill(samples, out_at)
    else:
        begun = perf_counter()
        tries_more = many > few and ready.pace.tries_more(begun, total)
        _run_on_team(ready, total, batch, many if tries_more else few, team)
        if many > few:
            ready.pace.note(tries_more, begun, perf_counter(), total)
    _of_thread.ready = ready
    again.of_thread.latest = None
    if task is not None and counts is None and noise is None and contiguous:
        if keys is not None:
            task.own_keys()
        again.of_thread.latest = again.Latest(config, waveform.dtype, tuple(waveform.shape), task)


def _run_on_team(ready: Ready, total: int, batch: Batch, threads: int, team: int) -> None:
    """Share a long call's work out; for fewer threads than the team, one chunk for each of them.

    The rest of the team then finds none.
    """
    chunk = -(-total // threads)
    chunks, chunk = _divided(total, threads) if threads == team else (-(-total // chunk), chunk)
    prepared = ready.prepared
    numbers = (chunks, chunk, total, prepared.plan_at, ready.scratch_at, *batch)
    run_items(prepared.worker, numbers, threads, team, shared=True)


def _address(values: Samples) -> int:
    return address_of(values) if isinstance(values, np.ndarray) else values.data_ptr()


PADDINGS = {"constant": ZEROS, "symmetric": SYMMETRIC, "reflect": REFLECT}


class Prepared(NamedTuple):
    """A compiled worker, its plan's address, and the arrays that hold the plan and its tables."""

    worker: Any
    plan_at: int
    arrays: tuple[npt.NDArray[Any], ...]


@lru_cache(maxsize=32)
def _prepare(config: FbankConfig, is_int16: bool, lanes: int, halves: int) -> Prepared:
    """Return the compiled kernel and its arguments for a config and what samples are."""
    size, hop = config.window_size, config.window_shift
    unit = INT16_UNIT if is_int16 else 1.0
    window = np.zeros(config.fft_size, np.float32)
    window[:size] = tables.window(config) * config.waveform_scale * unit
    stride = _tile_stride(size, hop, lanes)
    n = np.arange(config.fft_size)
    places = np.where(n < size, n % hop * stride + n // hop, (hop + 1) * stride).astype(np.int32)
    over_waveform, plain = emphasises_waveform(config), _is_plain(config)
    if not (over_waveform or plain):
        places[0] = hop * stride  # a frame's first sample is its own predecessor
    widths, bins, weights = side_by_side(tables.mel_banks(config))
    powers = (bin_places(config.fft_size, halves) * lanes).astype(np.int32)
    bins = powers[bins]
    factors = twiddles(config.fft_size)
    order = input_order(config.fft_size)
    window, fft_places, in_order = window[order], places[order], (order * lanes).astype(np.int32)
    ones = np.ones(config.fft_size, np.float32)
    held = (window, fft_places, ones, in_order, places, powers, factors, widths, bins, weights)
    plan = Plan(
        window=window.ctypes.data,
        fft_places=fft_places.ctypes.data,
        ones=ones.ctypes.data,
        in_order=in_order.ctypes.data,
        places=places.ctypes.data,
        powers=powers.ctypes.data,
        factors=factors.ctypes.data,
        widths=widths.ctypes.data,
        bins=bins.ctypes.data,
        weights=weights.ctypes.data,
        window_size=size,
        num_mel_bins=config.num_mel_bins,
        hop=hop,
        tile_width=_tile_width(size, hop, lanes),
        tile_stride=stride,
        span=_span(size, hop, lanes),
        first_sample=config.first_sample,
        padding=ZEROS if config.pad_tail else PADDINGS[config.pad_mode],
        remove_dc=config.remove_dc_offset,
        emphasise_waveform=over_waveform,
        use_power=config.use_power,
        use_log=config.use_log_fbank,
        floor_zeros_only=config.floor_zeros_only,
        dither_waveform=config.dither_over == "waveform",
        dither=_own_dither(config) / unit,
        # Rounded as for the samples: otherwise part of the mean would stay in every sample.
        preemphasis=float(np.float32(config.preemphasis_coefficient)),
        log_floor=config.log_floor,
        log_offset=config.log_offset,
        log_factor=config.log_factor,
        log_shift=config.log_shift,
        silence=config.log_silence,
        top_range=config.top_range,
    )
    rows = used_rows(config.fft_size, size)
    dithered, ranged = int(config.dither != 0.0), int(_limits_range(config))
    worker = compiled_worker(
        config.fft_size, rows, lanes, halves, dithered, ranged, int(plain), source_digest()
    )
    numbers = in_memory(plan, NUM_INTEGERS)
    return Prepared(worker, numbers.ctypes.data, (numbers, *held))


def _is_plain(config: FbankConfig) -> bool:
    """Whether frames are neither centred nor pre-emphasised, at a length where that saves time."""
    emphasises_frames = config.preemphasis_over == "frame" and config.preemphasis_coefficient != 0.0
    changes = config.remove_dc_offset or emphasises_frames
    return can_leave_shift(config.fft_size) and not changes


def emphasises_waveform(config: FbankConfig) -> bool:
    """Whether pre-emphasis goes over the waveform, and there is any."""
    return config.preemphasis_over == "waveform" and config.preemphasis_coefficient != 0.0


def in_memory(plan: tuple[Any, ...], num_integers: int) -> npt.NDArray[np.intp]:
    """Return a plan as compiled code reads it: integers, then the bits of the other numbers."""
    integers = np.array(plan[:num_integers], np.intp)
    return np.concatenate((integers, np.array(plan[num_integers:], np.float64).view(np.intp)))


def valid_parts(counts: Sequence[int], config: FbankConfig) -> tuple[SizeArray, SizeArray]:
    """Return how many samples of each clip count, and how many frames."""
    samples = np.array(counts, np.intp)
    return samples, config.num_frames(samples).astype(np.intp)


def side_by_side(
    banks: npt.NDArray[np.float64],
) -> tuple[IndexArray, IndexArray, Float32Array]:
    """Return each group's width in bins, its bins, and their weights: 0 beyond a narrower filter.

    An empty filter gets bins of weight 0, so that it is NaN where its frame is.
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
    """What a thread's calls with one config use."""

    config: FbankConfig
    is_int16: bool
    lanes: int
    cache_bytes: int
    prepared: Prepared
    sizes: Scratch  # of the buffers, in floats
    buffers: list[Float32Array]  # of the first helping thread, then of the next
    scratch: npt.NDArray[np.intp]  # their addresses, shape (threads, NUM_BUFFERS)
    scratch_at: int
    pace: Pace


class _OfThread(threading.local):
    """What a thread's last call used, for the next call with the same config."""

    ready: Ready | None = None


_of_thread = _OfThread()


def _take_ready(
    config: FbankConfig, is_int16: bool, lanes: int, threads: int, cache_bytes: int
) -> Ready:
    """Return what this thread's last call used, or prepare for another config or more threads.

    The thread gives it up until the call ends. So a signal handler that calls meanwhile makes its
    own, and an interrupt leaves no plan with another plan's buffers. The caller keeps a reference
    too: at an interpreter's exit the thread's is released first.
    """
    last, _of_thread.ready = _of_thread.ready, None
    if last is not None and len(last.scratch) < threads:
        last = None
    if (
        last is not None
        and last.config is config
        and last.is_int16 == is_int16
        and last.lanes == lanes
        and last.cache_bytes == cache_bytes
    ):
        return last
    halves = in_halves(config, lanes, cache_bytes)
    prepared = _prepare(config, is_int16, lanes, halves)
    sizes = _buffer_sizes(config, lanes, halves)
    if last is not None and last.sizes == sizes:
        return last._replace(
            config=config,
            is_int16=is_int16,
            lanes=lanes,
            cache_bytes=cache_bytes,
            prepared=prepared,
            pace=Pace(),
        )
    buffers = [aligned(size) for _ in range(threads) for size in sizes]
    for buffer in buffers:
        buffer[:] = 0.0
    scratch = np.array([buffer.ctypes.data for buffer in buffers], np.intp)
    scratch = scratch.reshape(threads, NUM_BUFFERS)
    scratch_at = scratch.ctypes.data
    return Ready(
        config, is_int16, lanes, cache_bytes, prepared, sizes, buffers, scratch, scratch_at, Pace()
    )


def _buffer_sizes(config: FbankConfig, lanes: int, halves: int) -> Scratch:
    """Return the size of each of a thread's buffers, in floats."""
    window_size, window_shift = config.window_size, config.window_shift
    stride = _tile_stride(window_size, window_shift, lanes)
    return Scratch(
        samples=1 + _span(window_size, window_shift, lanes),
        tile=(window_shift + 2) * stride,
        sums=3 * (stride + lanes),
        grid=grid_vectors(config.fft_size, halves) * lanes,
        frames=config.fft_size * lanes if _keeps_frames(config) else 0,
        energies=-(-config.num_mel_bins // FILTERS_AT_ONCE) * FILTERS_AT_ONCE * lanes,
        normals=config.window_size * lanes + 3 * BLOCK if _dithers_frames(config) else 0,
    )


def _keeps_frames(config: FbankConfig) -> bool:
    """Whether frames are written out before they are transformed, or transformed again."""
    return _dithers_frames(config) or not config.use_power


def _dithers_frames(config: FbankConfig) -> bool:
    """Whether each frame has noise of its own."""
    return config.dither != 0.0 and config.dither_over == "frame"


def in_halves(config: FbankConfig, lanes: int, cache_bytes: int) -> int:
    """Return 1 if half of an FFT's bins are made after the other, else 0.

    They are where the tile and a whole grid, which every column's pass reads and writes, do not
    fit the first cache together. Where they do, the operations that halves repeat cost more.
    """
    sizes = _buffer_sizes(config, lanes, 0)
    return int((sizes.tile + sizes.grid) * FLOAT_BYTES > cache_bytes and can_halve(config.fft_size))


def _tile_width(window_size: int, window_shift: int, lanes: int) -> int:
    """Return how many hops one block of frames touches."""
    return lanes + (window_size - 1) // window_shift


def _tile_stride(window_size: int, window_shift: int, lanes: int) -> int:
    """Return the floats of a tile's row: in fours, so that no vector stored crosses a line twice.

    Vectors of shared hops that are moved by fours then end within their row.
    """
    return -(-_tile_width(window_size, window_shift, lanes) // 4) * 4


def _span(window_size: int, window_shift: int, lanes: int) -> int:
    """Return how many samples a block reads when it transposes all its hops, in whole squares."""
    return -(-_tile_width(window_size, window_shift, lanes) // lanes) * lanes * window_shift
