"""How far a result may be from its reference: the two measures that every backend is held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

QUIET_DB = 60.0
"""Bins further below their frame's loudest bin than this are not compared after the logarithm."""

LOG_MEL_MAX = 3e-4
"""Largest log-mel difference of a float32 backend from float64 within `QUIET_DB`.

A stage of rounding (window, emphasis, FFT) leaves each of 257 bins an error of about
0.6 · 2⁻²⁴ · sqrt(log2 512) / sqrt(257) = 6.7e-9 of the frame's amplitude. In a bin 60 dB down that
is 6.7e-6 of its own amplitude and 1.3e-5 of its power; three such stages give 2.3e-5, and the
largest of a million normal values is five sigma, 1.2e-4. Twice that, and a little for frames whose
spectrum is wider than one bin's energy. Measured on real clips: 1.4e-4."""

LOG_MEL_MEAN = 2e-6
"""Mean of the same differences over real clips. A logarithm between 8 and 16 is rounded to 4.8e-7
at best; the rest is the mean of the above over all levels. Measured: 6.4e-7."""


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
