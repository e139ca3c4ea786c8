"""Normalisation on a CPU: a clip's features are read from memory once and written once.

Cannot avoid, for 498 frames of 128 bins: 255 kB read and 262 kB written. The pass that writes finds
the clip in the second-level cache, where the pass for mean and deviation left it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np.numpy_support import carray
from torch import Tensor

from ast_fast_kernels._cpu.compile import source_digest, stage
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.simd import bytes_at, floats_at, integers_at
from ast_fast_kernels._cpu.team import (
    HEADER,
    NEXT_ITEM,
    NEXT_WORKER,
    compile_worker,
    run_items,
    take,
)
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.forks import one_thread_if_forked

CLIPS_PER_THREAD = 4
"""Fewest clips worth another thread."""
SAMPLED = 16
"""Sampling step, in frames, for estimating a clip's centre."""

COUNT, FRAMES, BINS, TARGET, OWN = range(HEADER, HEADER + 5)
"""What a task holds: the shapes; whether a clip is normalised by its own values; then addresses."""
LEVELS, SUMS, FEATURES, OFFSETS, MASKED_FRAMES, MASKED_BINS, OUT = range(OWN + 1, OWN + 8)

SILENCE, MEAN, SCALE, FLOOR = range(4)
"""Places of the values at LEVELS, the first address."""


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
    out = torch.empty(batch, target_frames, num_bins, dtype=torch.float32, device="cpu")
    mean, scale = (0.0, 0.0) if statistics is None else statistics
    levels = np.array((log_silence, mean, scale, std_floor**2), np.float32)
    team = torch.get_num_threads()
    sums = np.empty((team, 2, num_bins), np.float32)
    with one_thread_if_forked():
        arrays = (
            checks.dense(features),
            _given(offsets, torch.float32, (batch, num_bins)),
            _given(masked_frames, torch.bool, (batch, num_frames)),
            _given(masked_bins, torch.bool, (batch, num_bins)),
            out,
        )
    numbers = (
        batch, num_frames, num_bins, target_frames, int(statistics is None), levels.ctypes.data,
        sums.ctypes.data, *(array.data_ptr() for array in arrays),
    )  # fmt: skip
    worker = _worker(source_digest())
    run_items(worker, numbers, min(team, batch // CLIPS_PER_THREAD), team, shared=True)
    return out


def _given(values: Tensor | None, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
    """Return the given values, dense and on the CPU; zeros for None."""
    if values is None:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    return checks.dense(values.detach().to("cpu", dtype))


@cache
def _worker(digest: str) -> Any:
    """Return the compiled worker."""

    def kernel(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        row = take(address, NEXT_ITEM)
        if row >= task[COUNT]:
            return
        count, num_frames, num_bins = task[COUNT], task[FRAMES], task[BINS]
        features = carray(floats_at(task[FEATURES]), (count, num_frames, num_bins))
        out = carray(floats_at(task[OUT]), (count, task[TARGET], num_bins))
        offsets = carray(floats_at(task[OFFSETS]), (count, num_bins))
        masked_frames = carray(bytes_at(task[MASKED_FRAMES]), (count, num_frames))
        masked_bins = carray(bytes_at(task[MASKED_BINS]), (count, num_bins))
        levels = carray(floats_at(task[LEVELS]), FLOOR + 1)
        size = 2 * num_bins
        sums = carray(floats_at(task[SUMS] + take(address, NEXT_WORKER) * size * FLOAT_BYTES), size)
        while row < count:
            _normalise(
                features[row],
                offsets[row],
                masked_frames[row],
                masked_bins[row],
                out[row],
                task[OWN] != 0,
                levels,
                sums,
            )
            row = take(address, NEXT_ITEM)

    return compile_worker(kernel)


@stage
def _normalise(
    clip: Any,
    added: Any,
    masked_frames: Any,
    masked_bins: Any,
    out: Any,
    own: bool,
    levels: Any,
    sums: Any,
) -> None:
    num_frames, num_bins = clip.shape
    shown = min(num_frames, len(out))
    mean, scale = levels[MEAN], levels[SCALE]
    if own:
        centre = _centre(clip, added, sums)
        squares = sums[num_bins:]
        sums[:] = np.float32(0)  # one for each bin, in vectors
        in_fours = num_frames - num_frames % 4  # fewer passes over the sums
        for t in range(0, in_fours, 4):
            for k in range(num_bins):
                shift = added[k] - centre
                a, b = clip[t, k] + shift, clip[t + 1, k] + shift
                c, d = clip[t + 2, k] + shift, clip[t + 3, k] + shift
                sums[k] += (a + b) + (c + d)
                squares[k] += (a * a + b * b) + (c * c + d * d)
        for t in range(in_fours, num_frames):
            for k in range(num_bins):
                a = clip[t, k] + (added[k] - centre)
                sums[k] += a
                squares[k] += a * a
        total, total_squared, count = 0.0, 0.0, num_frames * num_bins
        for k in range(num_bins):
            total += sums[k]
            total_squared += squares[k]
        off = total / count
        mean = np.float32(centre + off)
        variance = max(total_squared / count - off * off, 0.0)
        scale = np.float32(1 / np.sqrt(variance + levels[FLOOR]))
    for t in range(shown):
        line = out[t]
        if masked_frames[t]:
            line[:] = np.float32(0)
            continue
        for k in range(num_bins):
            value = ((clip[t, k] + added[k]) - mean) * scale
            line[k] = np.float32(0) if masked_bins[k] else value
    out[shown:] = (levels[SILENCE] - mean) * scale


@stage
def _centre(clip: Any, added: Any, sums: Any) -> Any:
    """Return an estimate of the mean: that of every sixteenth frame.

    Sums around it have small rounding errors, and none in a clip of silence. These frames are part
    of the clip, so their mean is less than 4 of the clip's deviations from the clip's mean.
    """
    num_frames, num_bins = clip.shape
    first = clip[0, 0] + added[0]
    sums[:] = np.float32(0)
    for t in range(0, num_frames, SAMPLED):
        for k in range(num_bins):
            sums[k] += (clip[t, k] + added[k]) - first
    total = 0.0
    for k in range(num_bins):
        total += sums[k]
    frames = (num_frames + SAMPLED - 1) // SAMPLED
    return np.float32(first + total / (frames * num_bins))
