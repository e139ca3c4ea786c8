"""Dither's noise in plain torch, by the definition in gaussian.py, and the keys that it comes from.

A clip's key is a row of two integers: the key itself, and the number of the clip's first frame, for
a part of a stream.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_fast_kernels.fbank import gaussian
from ast_fast_kernels.fbank.config import FbankConfig

_KEYS = (-(2**63), 2**63 - 1)
"""What keys are drawn from; the last one is left out."""

_WORD = 0xFFFFFFFF


def draw_keys(leading: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw each clip's key from torch's generator of a device, int64 (*leading, 2).

    One number a clip, in order: so on a CPU a batch draws what its clips would one by one.
    """
    keys = torch.randint(*_KEYS, leading, dtype=torch.int64, device=device)
    return torch.stack((keys, torch.zeros_like(keys)), dim=-1)


def redraw_keys(keys: npt.NDArray[np.int64]) -> None:
    """Draw the keys of a flat batch, (batch, 2), as `draw_keys` would on a CPU, in place."""
    torch.from_numpy(keys)[:, 0].random_(*_KEYS)


def noise_of(keys: Tensor | None, waveform: Tensor, config: FbankConfig) -> Tensor | None:
    """Return the noise of a batch, of variance 1 and the waveform's dtype; None if there is none.

    Args:
        keys: Shape (batch, 2); None draws them.
        waveform: Shape (batch, num_samples), floating.
        config: The conventions.
    Returns:
        Shape (batch, num_frames, window_size), or (batch, num_samples) if `dither_over` is
        "waveform".
    """
    if config.dither == 0.0:
        return None
    if keys is None:
        keys = draw_keys(waveform.shape[:-1], waveform.device)
    key, first = keys[..., 0], keys[..., 1, None]
    num_samples, device = waveform.shape[-1], waveform.device
    if config.dither_over == "frame":
        frames = first + torch.arange(config.num_frames(num_samples), device=device)
        places = torch.arange(config.window_size, device=device)
        return noise_at(key[..., None], frames, places).to(waveform.dtype)
    places = config.window_shift * first + torch.arange(num_samples, device=device)
    return noise_at(key, torch.zeros_like(key), places).to(waveform.dtype)


def noise_at(key: Tensor, stream: Tensor, places: Tensor) -> Tensor:
    """Return the noise of streams at places, float64, shape (..., places).

    Args:
        key: Shape (...), int64.
        stream: Each stream's number, shape (...).
        places: Shape (places,) or (..., places).
    """
    lower, upper = key & _WORD, (key >> 32) & _WORD
    steps, pairs = stream * gaussian.STEPS[0], places >> 1
    first = _mix(_mix(steps + lower) ^ upper)[..., None]
    second = _mix(_mix(steps + upper) + lower)[..., None]
    walked = first + pairs * gaussian.STEPS[0] & _WORD
    x = walked ^ (second + pairs * gaussian.STEPS[1] & _WORD) >> gaussian.SHIFTS[0]
    a = _folded(x * gaussian.FACTOR, gaussian.SHIFTS[1])
    b = a >> 24 | a >> 8 & 0xFF00 | a << 8 & 0xFF0000 | a << 24 & 0xFF000000
    radius = torch.where(a < gaussian.SIGN, 1.0, -1.0) * _radius(a | 1)
    quarters = _signed(b).to(torch.float32).double() * 2.0**-31
    square = quarters * quarters
    sine = quarters * _polynomial(square, gaussian.SINE)
    return radius * torch.where(places & 1 == 0, _polynomial(square, gaussian.COSINE), sine)


def _radius(a: Tensor) -> Tensor:
    bits = _signed(a).to(torch.float32).view(torch.int32) & gaussian.SIZE
    mantissa = (bits & gaussian.MANTISSA).double() * 2.0**-gaussian.MANTISSA_BITS
    bend = mantissa * _polynomial(mantissa, gaussian.BEND) * 2.0**gaussian.MANTISSA_BITS
    return (gaussian.WHOLE - bits - bend).sqrt() * gaussian.RADIUS_FACTOR


def _signed(words: Tensor) -> Tensor:
    """Return words from 0 to 2^32 - 1 as signed numbers of 32 bits."""
    return words - (words >> 31 << 32)


def _folded(x: Tensor, shift: int) -> Tensor:
    x = x & _WORD
    return x ^ x >> shift


def _mix(x: Tensor) -> Tensor:
    """Return `mix` of gaussian.py."""
    x = _folded(x, 16) * gaussian.MIX[0]
    x = _folded(x, 13) * gaussian.MIX[1]
    return _folded(x, 16)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    result = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result
