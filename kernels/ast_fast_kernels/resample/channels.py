"""Samples as backends take them: float32 in [-1, 1], channels mixed down to their mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def mean_of(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the mean over the first axis, float32; int16 is read as sample / 32768."""
    levels: npt.NDArray[np.float32] = samples[0].astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for channel in samples[1:]:
            levels += channel
        if samples.dtype == np.int16:
            levels *= np.float32(1 / 32768)
        if len(samples) > 1:
            levels /= np.float32(len(samples))
    return levels
