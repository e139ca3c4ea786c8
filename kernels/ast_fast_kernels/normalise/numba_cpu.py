"""Normalisation on a CPU: a clip's features are read from memory once and written once.

Cannot avoid, for 498 frames of 128 bins: 255 kB read and 262 kB written. The passes for mean and
deviation find the clip in the second cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np.numpy_support import carray
from torch import Tensor

from ast_fast_kernels import _checks, _team
from ast_fast_kernels._numba import source_digest, stage
from ast_fast_kernels._team import NEXT_ITEM, take
from ast_fast_kernels.simd import bytes_at, floats_at, integers_at

CLIPS_PER_THREAD = 4
"""Fewest clips worth another thread."""

COUNT, FRAMES, BINS, TARGET, OWN = range(_team.HEADER, _team.HEADER + 5)
"""What a task holds: the shapes; whether a clip is normalised by its own values; then addresses."""
LEVELS, FEATURES, OFFSETS, MASKED_FRAMES, MASKED_BINS, OUT = range(OWN + 1, OWN + 7)
"""Of offsets and masks there may be none, which is 0."""

SILENCE, MEAN, SCALE, FLOOR = range(4)
"""What is at the first of them."""


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
    levels = np.array((log_silence, mean, scale, std_floor**2), np.float32)
    if offsets is not None:
        offsets = offsets.detach().to("cpu", torch.float32)
    arrays = [
        None if array is None else _checks.dense(array.to("cpu"))
        for array in (features, offsets, masked_frames, masked_bins)
    ]
    numbers = (
        batch, num_frames, num_bins, target_frames, int(statistics is None), levels.ctypes.data,
        *(0 if array is None else array.data_ptr() for array in arrays), out.data_ptr(),
    )  # fmt: skip
    threads = min(torch.get_num_threads(), batch // CLIPS_PER_THREAD)
    _team.run_items(_worker(source_digest()), numbers, threads, shared=True)
    return out


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
        no_offsets, sums = np.zeros(num_bins, np.float32), np.empty(num_bins, np.float32)
        no_frames, no_bins = np.zeros(num_frames, np.uint8), np.zeros(num_bins, np.uint8)
        while row < count:
            _normalise(
                features[row],
                offsets[row] if task[OFFSETS] != 0 else no_offsets,
                masked_frames[row] if task[MASKED_FRAMES] != 0 else no_frames,
                masked_bins[row] if task[MASKED_BINS] != 0 else no_bins,
                out[row],
                task[OWN] != 0,
                levels,
                sums,
            )
            row = take(address, NEXT_ITEM)

    return _team.compile_worker(kernel)


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
        count = num_frames * num_bins
        # Sums of what is near 0 round less: none do in a clip of silence.
        centre = clip[0, 0] + added[0]
        sums[:] = np.float32(0)  # each bin's own, in vectors
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
        scale = np.float32(1 / np.sqrt(total / count + levels[FLOOR]))
    for t in range(shown):
        line = out[t]
        if masked_frames[t]:
            line[:] = np.float32(0)
            continue
        for k in range(num_bins):
            value = ((clip[t, k] + added[k]) - mean) * scale
            line[k] = np.float32(0) if masked_bins[k] else value
    out[shown:] = (levels[SILENCE] - mean) * scale
