"""The filterbank's gradient on a CPU: fused over blocks of frames, one frame in each vector lane.

Cannot avoid, for 5 s at 16 kHz: 575 kB read and 320 kB written, and what the filterbank itself
computes, twice: the transform and the filters once more, and both of them back. So arithmetic is
the bound.

This file has the tables in memory, each thread's scratch memory and the division of the work;
numba_gradient_kernel.py has what a thread does with its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels._cpu.fft import Plan as Split
from ast_fast_kernels._cpu.fft import is_supported as is_split
from ast_fast_kernels._cpu.fft_gradient import rotations
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.simd import LINE, address_of, aligned, host_lanes
from ast_fast_kernels._cpu.spectrum import used_rows
from ast_fast_kernels._cpu.team import run_items, team_size
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.gradient import before_whole_clip
from ast_fast_kernels.fbank.numba_cpu import (
    PADDINGS,
    emphasises_waveform,
    in_memory,
    run_blocks,
    valid_parts,
)
from ast_fast_kernels.fbank.numba_dither import ZEROS
from ast_fast_kernels.fbank.numba_gradient_kernel import (
    NUM_INTEGERS,
    Batch,
    Plan,
    Scratch,
    compiled_worker,
)

FRAMES_PER_THREAD = 128
"""Fewest frames that justify another thread: they take ten times as long as its start."""

PIECES_PER_THREAD = 2
"""Pieces that a batch is cut into for each of several threads, unless its clips are as many."""


def gradient_numba(
    grad: Tensor, waveform: Tensor, config: FbankConfig, counts: Sequence[int] | None
) -> Tensor:
    """Return the waveform's gradient, float32 (batch, num_samples), from that of the energies.

    Args:
        grad: Gradient of the energies, float32 (batch, num_frames, num_mel_bins).
        waveform: Float32 (batch, num_samples) on the CPU, of any strides; it is read in place.
        config: The conventions, which numba_cpu.py and `is_supported` support.
        counts: Samples that count in each waveform; None is all.
    """
    grad, waveform = grad.resolve_neg(), waveform.resolve_neg()
    if config.needs_whole_clip:
        log_mel = torch.empty(grad.shape, dtype=torch.float32, device="cpu")
        run_blocks(waveform, log_mel, config.replace(top_db=0.0), host_lanes(), counts)
        frames = None if counts is None else [config.num_frames(count) for count in counts]
        grad = before_whole_clip(grad, log_mel, config, frames)
    out = torch.empty(waveform.shape, dtype=torch.float32, device="cpu")
    run_pieces(grad.contiguous(), waveform, out, config, host_lanes(), counts)
    return out


def is_supported(config: FbankConfig) -> bool:
    """Say whether the kernel has the config's FFT length."""
    return is_split(config.fft_size)


def run_pieces(
    grad: Tensor,
    waveform: Tensor,
    out: Tensor,
    config: FbankConfig,
    lanes: int,
    counts: Sequence[int] | None = None,
) -> None:
    """Fill `out` (batch, num_samples) from `grad` (batch, num_frames, num_mel_bins).

    That is the gradient before `top_db` and `norm_per_feature`. Both are contiguous float32.
    """
    clips, num_frames, _ = grad.shape
    samples_of = frames_of = 0
    if counts is not None:
        valid, frames = valid_parts(counts, config)  # held until the call ends
        samples_of, frames_of = valid.ctypes.data, frames.ctypes.data
    team = team_size()
    threads = max(1, min(team, clips * num_frames // FRAMES_PER_THREAD))
    prepared = _prepare(config, lanes)
    piece = _piece(config, clips, num_frames, threads, lanes)
    batch = Batch(
        samples=waveform.data_ptr(),
        clip_stride=waveform.stride(0),
        sample_stride=waveform.stride(1),
        num_samples=waveform.shape[1],
        num_frames=num_frames,
        samples_of=samples_of,
        frames_of=frames_of,
        grad=grad.data_ptr(),
        out=out.data_ptr(),
        pieces=max(-(-num_frames // piece), 1),  # one without frames writes zeros
        piece=piece,
        least=_least_piece(config),
    )
    workers = team if threads > 1 else 1  # any of the team may find a piece
    buffers = aligned(workers * prepared.floats)
    begins = address_of(buffers) + FLOAT_BYTES * prepared.floats * np.arange(workers)
    scratch = begins[:, None] + prepared.offsets
    numbers = (clips * batch.pieces, prepared.plan_at, address_of(scratch), *batch)
    run_items(prepared.worker, numbers, threads, team, shared=True)


def _least_piece(config: FbankConfig) -> int:
    """Return the frames of the shortest piece: padding repeats none but its own samples."""
    reach = 2 * (config.window_size + config.fft_size)
    return 1 + -(-reach // config.window_shift)


def _piece(config: FbankConfig, clips: int, num_frames: int, threads: int, lanes: int) -> int:
    """Return how many frames of a clip one thread takes at once.

    With the frames before it that a piece does too, it is a whole number of blocks.
    """
    pieces = -(-PIECES_PER_THREAD * threads // clips) if threads > 1 else 1
    if pieces == 1 or emphasises_waveform(config):
        return max(num_frames, 1)
    overlap = _overlap(config)
    piece = max(-(-num_frames // pieces), _least_piece(config)) + overlap
    return -(-piece // lanes) * lanes - overlap


def _overlap(config: FbankConfig) -> int:
    """Return how many hops after its own a frame reaches into."""
    return (config.window_size - 1) // config.window_shift


def _buffer_sizes(config: FbankConfig, lanes: int) -> Scratch:
    """Return the size of each of a thread's buffers, in floats."""
    return Scratch(
        samples=lanes * config.window_shift + config.window_size,
        grid=(config.fft_size + 1) * lanes,
        bins=(config.fft_size // 2 + 1) * lanes,
        slopes=config.num_mel_bins * lanes,
        sums=config.window_shift * _sums_stride(config, lanes),
        edge=max(-config.first_sample, 0),
        used=lanes,
    )


def _sums_stride(config: FbankConfig, lanes: int) -> int:
    """Return how many hops a block's frames reach into, in whole vectors."""
    return lanes * (1 + -(-_overlap(config) // lanes))


class Prepared(NamedTuple):
    """A compiled worker, its plan's address, and the arrays that hold the plan and its tables."""

    worker: Any
    plan_at: int
    floats: int  # of a thread's buffers
    offsets: npt.NDArray[np.intp]  # where each of them begins, in bytes
    arrays: tuple[npt.NDArray[Any], ...]


@lru_cache(maxsize=32)
def _prepare(config: FbankConfig, lanes: int) -> Prepared:
    """Return the compiled kernel and its arguments for a config."""
    split = Split.of(config.fft_size)
    banks = tables.mel_banks(config)
    starts, widths, weights = _filters(banks)
    filters, shares = _shares(2.0 * banks if config.use_power else banks)
    window = (tables.window(config) * config.waveform_scale).astype(np.float32)
    table = rotations(split.rows, split.columns)
    held = (window, table, starts, widths, weights, filters, shares)
    plan = Plan(
        window=window.ctypes.data,
        table=table.ctypes.data,
        starts=starts.ctypes.data,
        widths=widths.ctypes.data,
        weights=weights.ctypes.data,
        filters=filters.ctypes.data,
        shares=shares.ctypes.data,
        most_filters=shares.shape[1],
        window_size=config.window_size,
        num_mel_bins=config.num_mel_bins,
        hop=config.window_shift,
        overlap=_overlap(config),
        sums_stride=_sums_stride(config, lanes),
        first_sample=config.first_sample,
        padding=ZEROS if config.pad_tail else PADDINGS[config.pad_mode],
        remove_dc=config.remove_dc_offset,
        emphasise_waveform=emphasises_waveform(config),
        use_power=config.use_power,
        use_log=config.use_log_fbank,
        floor_zeros_only=config.floor_zeros_only,
        # Rounded as for the samples: otherwise part of the mean would stay in every sample.
        preemphasis=float(np.float32(config.preemphasis_coefficient)),
        log_floor=config.log_floor,
        log_offset=config.log_offset,
        log_factor=config.log_factor,
    )
    rows = min(used_rows(config.fft_size, config.window_size) or split.rows, split.rows)
    worker = compiled_worker(split.rows, split.columns, rows, lanes, source_digest())
    numbers = in_memory(plan, NUM_INTEGERS)
    ends = np.cumsum([-(-size // LINE) * LINE for size in _buffer_sizes(config, lanes)])
    offsets = FLOAT_BYTES * np.concatenate(([0], ends[:-1]))
    return Prepared(worker, address_of(numbers), int(ends[-1]), offsets, (numbers, *held))


def _filters(
    banks: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return each filter's first bin, its number of bins, and their weights."""
    starts, widths = _spans(banks != 0)
    weights = [
        row[start : start + width] for row, start, width in zip(banks, starts, widths, strict=True)
    ]
    return starts, widths, np.concatenate(weights).astype(np.float32)


def _shares(
    banks: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return each bin's first filter, and its weights in it and those after, as many for each."""
    starts, widths = _spans(banks.T != 0)
    most = max(int(widths.max()), 1)
    starts = np.minimum(starts, len(banks) - most).astype(np.int32)
    filters = starts[:, None] + np.arange(most)
    shares = np.take_along_axis(banks.T, filters, axis=1)
    return starts, np.ascontiguousarray(shares, np.float32)


def _spans(used: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return where each row begins to be used, and how long it is."""
    starts = used.argmax(axis=1)
    ends = np.where(used.any(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1), starts)
    return starts.astype(np.int32), (ends - starts).astype(np.int32)
