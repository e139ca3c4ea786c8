"""Features as they are stored: float32 as computed, or rounded to float16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._cpu.float16 import to_float16
from ast_fast_kernels.corpus.formats.shard import DtypeName, Stored


def to_dtype(
    features: npt.NDArray[np.float32], dtype: DtypeName, out: Stored | None = None
) -> Stored:
    """Return features as they are stored.

    float16 has 11 significant bits: a log-mel energy between 8 and 16, of either sign, is off by at
    most 0.004, one between 16 and 32 by 0.008.

    Args:
        features: Any shape; NaN and infinities stay what they are.
        dtype: float16 or float32.
        out: Contiguous array of that type and of the features' shape, which receives them.
    Raises:
        ValueError: A finite value is beyond float16's range.
    """
    if dtype == "float32":
        if out is None:
            return features
        out[...] = features
        return out
    stored, beyond = to_float16(features, out)
    if beyond:
        largest = np.abs(features[np.isfinite(features)]).max()
        raise ValueError(
            f"a feature of {largest:.3g} is beyond float16's range (65504); use --dtype float32"
        )
    return stored
