"""Normalisation on a CPU: a clip's features are read from memory once and written once.

Cannot avoid, for 498 frames of 128 bins: 255 kB read and 262 kB written. The passes for mean and
deviation find the clip in the second cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ast_fast_kernels import _threads
from ast_fast_kernels._numba import jit

CLIPS_PER_TASK = 4
"""Fewest clips worth another thread."""


def normalise_numba(
    features: Tensor,
    target_frames: int,
    log_silence: float,
    statistics: tuple[float, float] | None,
    std_floor: float,
    offsets: Tensor | None,
    masked_frames: Tensor | None,
    masked_bins: Tensor | None,
) -> Tensor:
    """Return the features, normalised and masked; arguments as the reference's."""
    batch, num_frames, num_bins = features.shape
    out = torch.empty(batch, target_frames, num_bins)
    mean, scale = (0.0, 0.0) if statistics is None else statistics
    arguments = (
        features.contiguous().numpy(),
        np.float32(log_silence),
        statistics is None,
        np.float32(mean),
        np.float32(scale),
        np.float32(std_floor**2),
        offsets is not None,
        _offsets(offsets, batch, num_bins),
        _flags(masked_frames, batch, num_frames),
        _flags(masked_bins, batch, num_bins),
        out.numpy(),
    )
    kernel = _kernel()

    def run(first: int, last: int) -> None:
        kernel(*arguments, first, last)

    _threads.parallel_for(run, batch, CLIPS_PER_TASK, torch.get_num_threads())
    return out


def _offsets(offsets: Tensor | None, batch: int, num_bins: int) -> Any:
    if offsets is None:
        return np.empty((0, num_bins), np.float32)
    return offsets.detach().to("cpu", torch.float32).contiguous().numpy()


def _flags(masked: Tensor | None, batch: int, size: int) -> Any:
    if masked is None:
        return np.zeros((batch, size), np.bool_)
    return masked.to("cpu").contiguous().numpy()


@cache
def _kernel() -> Any:
    """Return the compiled kernel."""
    nothing = np.empty((0, 1, 1), np.float32)
    offsets = nothing[0:0, 0]
    flags = np.empty((0, 1), np.bool_)
    zero = np.float32(0)
    with _threads.compile_lock:
        _normalise(
            nothing, zero, True, zero, zero, zero, False, offsets, flags, flags, nothing, 0, 0
        )
    return _normalise


@jit
def _normalise(
    features: Any,
    log_silence: Any,
    own: bool,
    mean: Any,
    scale: Any,
    floor: Any,
    is_offset: bool,
    offsets: Any,
    masked_frames: Any,
    masked_bins: Any,
    out: Any,
    first: int,
    last: int,
) -> None:
    num_frames, num_bins = features.shape[1:]
    shown = min(num_frames, out.shape[1])
    count = num_frames * num_bins
    sums = np.empty(num_bins, np.float32)  # each bin's own, in vectors
    zeros = np.zeros(num_bins, np.float32)
    for row in range(first, last):
        clip = features[row]
        added = offsets[row] if is_offset else zeros
        if own:
            centre = (
                clip[0, 0] + added[0]
            )  # sums of what is near 0 round less: none do in a clip of silence
            sums[:] = np.float32(0)
            for t in range(num_frames):
                for k in range(num_bins):
                    sums[k] += (clip[t, k] + added[k]) - centre
            total = 0.0
            for k in range(num_bins):
                total += sums[k]
            mean = np.float32(centre + total / count)
            sums[:] = np.float32(0)
            for t in range(num_frames):
                for k in range(num_bins):
                    apart = (clip[t, k] + added[k]) - mean
                    sums[k] += apart * apart
            total = 0.0
            for k in range(num_bins):
                total += sums[k]
            scale = np.float32(1 / np.sqrt(total / count + floor))
        for t in range(shown):
            line = out[row, t]
            if masked_frames[row, t]:
                line[:] = np.float32(0)
                continue
            for k in range(num_bins):
                value = ((clip[t, k] + added[k]) - mean) * scale
                line[k] = np.float32(0) if masked_bins[row, k] else value
        out[row, shown:] = (log_silence - mean) * scale
