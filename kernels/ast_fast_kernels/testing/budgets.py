"""How far a result may be from its reference: the two measures that every backend is held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

QUIET_DB = 60.0
"""Bins further below their frame's loudest bin than this are not compared after the logarithm."""

LOG_MEL_MAX = 1e-3
"""Largest log-mel difference of a float32 backend from float64 within `QUIET_DB`.

A bin carries the rounding of its frame's loudest one, about eps32 / 2 · sqrt(log2 512) = 1.8e-7 of
its amplitude; 60 dB below that is 1.8e-4 of the bin's own, so 3.6e-4 of its power; three sigma."""

LOG_MEL_MEAN = 1e-6
"""Mean of the same differences: most bins err by a few eps32 of a logarithm near 10."""


def relative_norm(out: Tensor, reference: Tensor) -> float:
    """Return ‖out − reference‖ / ‖reference‖ over all elements, in float64.

    A zero reference gives 0 for an equal result and infinity for any other.
    """
    reference = reference.detach().double()
    error = float((out.detach().double() - reference).norm())
    scale = float(reference.norm())
    if scale == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / scale


def log_mel_error(log_mel: Tensor, reference: Tensor, *, use_power: bool = True) -> Tensor:
    """Return |log_mel − reference| of the bins within 60 dB of their frame's maximum, flat.

    Args:
        log_mel: Natural logarithms, shape (..., num_frames, num_mel_bins).
        reference: The same from float64.
        use_power: Whether they are of powers; False: of magnitudes.
    """
    reference = reference.double()
    loudest = reference.amax(dim=-1, keepdim=True)
    quietest = loudest - QUIET_DB / (10.0 if use_power else 20.0) * math.log(10.0)
    return (log_mel.double() - reference).abs()[reference >= quietest]


def eps_bound(dtype: torch.dtype, reduction_length: int) -> float:
    """Return the relative error that sums of that length may have: eps × sqrt(length) × 8.

    Rounding errors of a sum add like a random walk; 8 covers the few roundings per term.
    """
    return 8.0 * torch.finfo(dtype).eps * math.sqrt(reduction_length)
