"""Features as they are stored: float32 as computed, or rounded to float16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ast_fast_kernels.corpus.formats.shard import DtypeName, Stored

LARGEST_HALF = 65504.0
"""Largest finite float16."""


def to_dtype(features: npt.NDArray[np.float32], dtype: DtypeName) -> Stored:
    """Return features as they are stored.

    float16 has 11 significant bits: a log-mel energy of magnitude 8 to 16 is off by at most 0.004.

    Args:
        features: Any shape; NaN and infinities stay what they are.
        dtype: float16 or float32.
    Raises:
        ValueError: A finite value is beyond float16's range.
    """
    if dtype == "float32":
        return features
    stored = np.empty(features.shape, np.float16)
    with np.errstate(over="ignore"):
        stored[...] = features
    if np.isinf(stored).any() and not np.array_equal(np.isinf(stored), np.isinf(features)):
        largest = np.abs(features[np.isfinite(features)]).max()
        raise ValueError(
            f"a feature of magnitude {largest:.3g} is beyond float16's range "
            f"({LARGEST_HALF:g}); use --dtype float32"
        )
    return stored
