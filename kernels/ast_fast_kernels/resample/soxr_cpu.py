"""Resampling by libsoxr, for ratios that the kernel does not have, and to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from ast_fast_kernels.resample.channels import mean_of

RECIPES = {"hq": "HQ", "fast": "MQ"}


def resample_soxr(
    samples: npt.NDArray[Any], rate_from: int, rate_to: int, quality: str
) -> npt.NDArray[np.float32]:
    """Return rows at another rate.

    Args:
        samples: Shape (channels, rows, num_samples), float32 or int16; the channels' mean is taken.
        rate_from: Their rate.
        rate_to: The other.
        quality: A key of RECIPES.
    Returns:
        Shape (rows, ceil(num_samples * rate_to / rate_from)).
    """
    rows = mean_of(samples)
    num_out = -(-rows.shape[1] * rate_to // rate_from)
    out = np.empty((len(rows), num_out), np.float32)
    # libsoxr rounds the length: what it has after the end is asked for by a few zeros.
    silence = np.zeros(rate_from // rate_to + 2, np.float32)
    for row, into in zip(rows, out, strict=True):
        longer = np.concatenate((row, silence))
        into[:] = soxr.resample(longer, rate_from, rate_to, quality=RECIPES[quality])[:num_out]
    return out
