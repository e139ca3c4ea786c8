"""Copies of clips at other speeds, made before training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ast_fast.data.audio import as_int16
from ast_fast_kernels import resample

BATCH = 64
"""Clips resampled at once: what they need besides the copies is 20 MB a second of audio."""


def with_speeds(
    waveforms: NDArray[np.int16], speeds: Sequence[float], sample_rate: int
) -> NDArray[np.int16]:
    """Return clips, and after them a copy of all at each speed.

    A clip at a higher speed is shorter, and is repeated from its beginning; at a lower speed it is
    longer, and is cut. Pitch changes with speed.

    Args:
        waveforms: Shape (num_clips, num_samples).
        speeds: Each a whole number of Hz times `sample_rate`.
        sample_rate: In Hz.
    Returns:
        Shape ((1 + number of speeds) * num_clips, num_samples), in memory.
    """
    count, num_samples = waveforms.shape
    copies = np.empty(((1 + len(speeds)) * count, num_samples), np.int16)
    copies[:count] = waveforms
    for number, speed in enumerate(speeds, start=1):
        rate = round(sample_rate * speed)
        for first in range(0, count, BATCH):
            heard = resample(waveforms[first : first + BATCH], rate, sample_rate, quality="fast")
            place = number * count + first
            copies[place : place + len(heard)] = _of_length(as_int16(heard), num_samples)
    return copies


def _of_length(waveforms: NDArray[np.int16], num_samples: int) -> NDArray[np.int16]:
    times = -(-num_samples // waveforms.shape[1])
    return np.tile(waveforms, (1, times))[:, :num_samples]
