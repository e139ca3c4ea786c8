"""The filterbank on a CPU: fused over blocks of frames, one frame in each vector lane.

Cannot avoid, for 5 s at 16 kHz: 320 kB read and 255 kB written, and about 9,800 vector operations
for every 16 frames; at two a cycle that is 47 µs at 3.3 GHz, so arithmetic is the bound.

This file has the tables in memory, each thread's scratch memory and the division of the work;
numba_kernel.py has what a thread does with its blocks.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels._cpu.fft import (
    MAX_SIZE,
    MIN_SIZE,
    SIZES_OF_25,
    bin_places,
    is_supported,
    twiddles,
    used_rows,
)
from ast_fast_kernels._cpu.simd import address_of, aligned, host_lanes
from ast_fast_kernels._cpu.team import run_items, team_size
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.numba_dither import REFLECT, SYMMETRIC, ZEROS
from ast_fast_kernels.fbank.numba_kernel import (
    FILTERS_AT_ONCE,
    NUM_BUFFERS,
    NUM_INTEGERS,
    Batch,
    Plan,
    Scratch,
    compiled_worker,
)

if TYPE_CHECKING:
    from torch import Tensor

    Samples = npt.NDArray[Any] | Tensor

Float32Array = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int32]

MOST_SHIFT = 2**24
"""Longest shift in samples, 17 minutes at 16 kHz: 32 bits index a block's samples, and its buffers
have up to 1 GiB."""

BLOCKS_PER_THREAD = 64
"""Fewest blocks of frames that justify another thread: two clips of 5 s, twice a thread's cost."""

BLOCKS_AT_ONCE = 16
"""Blocks that one of several threads takes at once: half a clip of 5 s. The first of them cannot
reuse hops of a block before it."""

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
            (at least num_frames and 16, window_size).
    """
    batch, num_samples = waveform.shape
    if out is None:
        shape = (batch, config.num_frames(num_samples), config.num_mel_bins)
        out = _empty(shape, waveform)
    run_blocks(waveform, out, config, host_lanes(), counts, keys, noise)
    if config.needs_whole_clip:
        every = [out.shape[1]] * batch
        frames = every if counts is None else [config.num_frames(count) for count in counts]
        for clip, num_frames in zip(np.asarray(out), frames, strict=True):
            _over_whole_clip(clip, config, num_frames)
    return out


def _empty(shape: tuple[int, int, int], waveform: Samples) -> Samples:
    """Return uninitialised float32 of the waveform's kind, aligned to a cache line."""
    if isinstance(waveform, np.ndarray):
        return aligned(math.prod(shape)).reshape(shape)
    import torch  # loaded already: the waveform is a tensor

    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _over_whole_clip(log_mel: Float32Array, config: FbankConfig, num_frames: int) -> None:
    """Apply `top_db` and `norm_per_feature` to a clip, (num_frames, num_mel_bins), in place.

    By numpy, which has no threads: a process forked after torch used its own would wait for them
    forever.
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
    """Say which convention this backend does not support; None when it supports them all."""
    if not is_supported(config.fft_size):
        sizes = (
            f"{', '.join(map(str, SIZES_OF_25))} or a power of two from {MIN_SIZE} to {MAX_SIZE}"
        )
        return f"numba needs an FFT length of {sizes}, got {config.fft_size}"
    if config.window_shift > MOST_SHIFT:
        return f"numba needs a shift of at most {MOST_SHIFT} samples, got {config.window_shift}"
    return None


def run_blocks(
    waveform: Samples,
    out: Any,
    config: FbankConfig,
    lanes: int,
    counts: Sequence[int] | None = None,
    keys: Samples | None = None,
    noise: Tensor | None = None,
) -> None:
    """Fill `out` (batch, num_frames, num_mel_bins) from `waveform` (batch, num_samples).

    Both are arrays, or both tensors, as `keys` is.
    """
    clips, num_frames, _ = out.shape
    samples_of = frames_of = 0
    if counts is not None:
        valid = np.array(counts, np.intp)
        frames = config.num_frames(valid).astype(np.intp)
        samples_of, frames_of = valid.ctypes.data, frames.ctypes.data
    total = clips * -(-num_frames // lanes)
    if total == 0:
        return
    if isinstance(waveform, np.ndarray):
        samples, out_at = address_of(waveform), address_of(out)
        clip_stride, sample_stride = (stride // waveform.itemsize for stride in waveform.strides)
    else:
        samples, out_at = waveform.data_ptr(), out.data_ptr()
        clip_stride, sample_stride = waveform.stride()
    team = team_size()
    threads = max(1, min(team, total // BLOCKS_PER_THREAD))
    # For fewer threads than the team, cut one chunk for each: the rest of the team finds none.
    chunk = BLOCKS_AT_ONCE if 1 < threads == team else -(-total // threads)
    batch = Batch(
        samples=samples,
        clip_stride=clip_stride,
        sample_stride=sample_stride,
        is_int16=waveform.itemsize == 2,
        num_samples=waveform.shape[1],
        num_frames=num_frames,
        samples_of=samples_of,
        frames_of=frames_of,
        out=out_at,
        keys=0 if keys is None else _address(keys),
        noise=0 if noise is None else noise.data_ptr(),
    )
    ready = _take_ready(config, lanes, threads)
    prepared = ready.prepared
    chunks = -(-total // chunk)
    numbers = (chunks, chunk, total, prepared.plan_at, ready.scratch_at, *batch)
    run_items(prepared.worker, numbers, threads, team, shared=True)
    _of_thread.ready = ready


def _address(values: Samples) -> int:
    return address_of(values) if isinstance(values, np.ndarray) else values.data_ptr()


PADDINGS = {"constant": ZEROS, "symmetric": SYMMETRIC, "reflect": REFLECT}


class Prepared(NamedTuple):
    """A compiled worker, its plan's address, and the arrays that hold the plan and its tables."""

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
    ones, in_grid = np.ones(config.fft_size, np.float32), (n * lanes).astype(np.int32)
    held = (window, places, ones, in_grid, factors, widths, bins, weights)
    plan = Plan(
        window=window.ctypes.data,
        places=places.ctypes.data,
        ones=ones.ctypes.data,
        in_grid=in_grid.ctypes.data,
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
        dither_waveform=config.dither_over == "waveform",
        dither=config.dither / config.waveform_scale,
        # Rounded as for the samples: otherwise part of the mean would stay in every sample.
        preemphasis=float(np.float32(config.preemphasis_coefficient)),
        log_floor=config.log_floor,
        log_offset=config.log_offset,
        log_factor=config.log_factor,
        log_shift=config.log_shift,
        silence=config.log_silence,
    )
    rows = used_rows(config.fft_size, size)
    dithered = int(config.dither != 0.0)
    worker = compiled_worker(config.fft_size, rows, lanes, dithered, source_digest())
    in_memory = _in_memory(plan)
    return Prepared(worker, in_memory.ctypes.data, (in_memory, *held))


def _in_memory(plan: Plan) -> npt.NDArray[np.intp]:
    """Return a plan as compiled code reads it: integers, then the bits of the other numbers."""
    integers = np.array(plan[:NUM_INTEGERS], np.intp)
    return np.concatenate((integers, np.array(plan[NUM_INTEGERS:], np.float64).view(np.intp)))


def _side_by_side(
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
    lanes: int
    prepared: Prepared
    sizes: Scratch  # of the buffers, in floats
    buffers: list[Float32Array]  # of the first helping thread, then of the next
    scratch: npt.NDArray[np.intp]  # their addresses, shape (threads, NUM_BUFFERS)
    scratch_at: int


class _OfThread(threading.local):
    """What a thread's last call used, for the next call with the same config."""

    ready: Ready | None = None


_of_thread = _OfThread()


def _take_ready(config: FbankConfig, lanes: int, threads: int) -> Ready:
    """Return what this thread's last call used, or prepare for another config or more threads.

    The thread gives it up until the call ends. So a signal handler that calls meanwhile makes its
    own, and an interrupt leaves no plan with another plan's buffers. The caller keeps a reference
    too: at an interpreter's exit the thread's is released first.
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
    """Return the size of each of a thread's buffers, in floats."""
    window_size, window_shift = config.window_size, config.window_shift
    stride = _tile_stride(window_size, window_shift, lanes)
    return Scratch(
        samples=1 + _span(window_size, window_shift, lanes),
        tile=(window_shift + 2) * stride,
        sums=3 * (stride + lanes),
        grid=config.fft_size * lanes,
        square=(lanes + FILTERS_AT_ONCE) * lanes,
    )


def _tile_stride(window_size: int, window_shift: int, lanes: int) -> int:
    """Return how many hops one block of frames touches: the width of a row of the tile."""
    return lanes + (window_size - 1) // window_shift


def _span(window_size: int, window_shift: int, lanes: int) -> int:
    """Return how many samples a block reads when it transposes all its hops, in whole squares."""
    return -(-_tile_stride(window_size, window_shift, lanes) // lanes) * lanes * window_shift
