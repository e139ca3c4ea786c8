"""Window and mel filters: cached by config, in float64, rounded once by who uses them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_fast_kernels.fbank.config import FbankConfig

Float64Array = npt.NDArray[np.float64]


@lru_cache(maxsize=32)
def window(config: FbankConfig) -> Float64Array:
    """Return the analysis window.

    Symmetric unless `window_periodic`; not padded to the FFT length. Povey is Hann to the power
    of 0.85.

    Returns:
        Read-only window, shape (window_size,).
    Source: torchaudio/compliance/kaldi.py, _feature_window_function.
    """
    size = config.window_size
    angle = 2 * np.pi / (size if config.window_periodic else size - 1) * np.arange(size)
    match config.window_type:
        case "hanning":
            values = 0.5 - 0.5 * np.cos(angle)
        case "hamming":
            values = 0.54 - 0.46 * np.cos(angle)
        case "povey":
            values = (0.5 - 0.5 * np.cos(angle)) ** 0.85
        case "rectangular":
            values = np.ones(size)
        case "blackman":
            coeff = config.blackman_coeff
            values = coeff - 0.5 * np.cos(angle) + (0.5 - coeff) * np.cos(2 * angle)
    return _read_only(values)


@lru_cache(maxsize=32)
def mel_banks(config: FbankConfig) -> Float64Array:
    """Return the triangular mel filters of Kaldi's fbank.

    HTK mel scale, triangles linear in mel with peak 1, no area normalisation; the Nyquist bin is
    zero, as in Kaldi. A filter narrower than one FFT bin can be empty (AST's 128 bins at n_fft 512
    have one); it stays, as in torchaudio.

    Returns:
        Read-only filters, shape (num_mel_bins, fft_size // 2 + 1).
    Source: kaldi/src/feat/mel-computations.cc.
    """
    if config.mel_dtype == "float32":
        return _read_only(_float32_mel_banks(config).double().numpy())
    edges = np.linspace(
        mel_scale(config.low_freq), mel_scale(config.upper_edge), config.num_mel_bins + 2
    )
    if config.vtln_warp != 1.0:
        edges = mel_scale(_vtln_warp(inverse_mel_scale(edges), config))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]

    num_bins = config.fft_size // 2  # without Nyquist
    mel = mel_scale(np.arange(num_bins) * (config.sample_frequency / config.fft_size))
    rising = (mel > left) & (mel <= centre)
    falling = (mel > centre) & (mel < right)
    banks = np.zeros((config.num_mel_bins, num_bins + 1))
    banks[:, :-1] = np.where(rising, (mel - left) / (centre - left), 0.0)
    banks[:, :-1] += np.where(falling, (right - mel) / (right - centre), 0.0)
    return _read_only(banks)


def mel_scale(frequency: npt.ArrayLike) -> Float64Array:
    """Return Hz as mel (HTK's and Kaldi's scale)."""
    return np.asarray(1127.0 * np.log1p(np.asarray(frequency, np.float64) / 700.0))


def inverse_mel_scale(mel: npt.ArrayLike) -> Float64Array:
    """Return mel as Hz."""
    return np.asarray(700.0 * np.expm1(np.asarray(mel, np.float64) / 1127.0))


def _float32_mel_banks(config: FbankConfig) -> Tensor:
    """Return the filters as torchaudio computes them: torch's float32 from the mel edges on.

    In float32 a bin on a filter's edge may lie just inside it, with a weight near 1e-6, and the
    filter be no longer empty; so every operation is torchaudio's, in its order.
    Source: torchaudio 2.9.1, compliance/kaldi.py, get_mel_banks.
    """
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (config.low_freq, config.upper_edge))
    delta = (high - low) / (config.num_mel_bins + 1)
    index = torch.arange(config.num_mel_bins, dtype=torch.float32, device="cpu")[:, None]
    left, centre, right = (low + (index + place) * delta for place in (0.0, 1.0, 2.0))
    if config.vtln_warp != 1.0:
        left, centre, right = (_float32_vtln_warp(mel, config) for mel in (left, centre, right))
    num_bins = config.fft_size // 2  # without Nyquist
    bins = torch.arange(num_bins, dtype=torch.float32, device="cpu")
    mel = _float32_mel_scale(config.sample_frequency / config.fft_size * bins)
    rising = (mel - left) / (centre - left)
    falling = (right - mel) / (right - centre)
    if config.vtln_warp == 1.0:
        banks = torch.minimum(rising, falling).clamp(min=0.0)
    else:  # a warp may reorder a filter's edges
        banks = torch.where((mel > left) & (mel <= centre), rising, 0.0)
        banks = torch.where((mel > centre) & (mel < right), falling, banks)
    return torch.nn.functional.pad(banks, (0, 1))


def _float32_mel_scale(frequency: Tensor) -> Tensor:
    return 1127.0 * (1.0 + frequency / 700.0).log()


def _float32_vtln_warp(mel: Tensor, config: FbankConfig) -> Tensor:
    frequency = 700.0 * ((mel / 1127.0).exp() - 1.0)
    low, high, scale = config.low_freq, config.upper_edge, 1.0 / config.vtln_warp
    lower = config.vtln_low * max(1.0, config.vtln_warp)
    upper = config.vtln_upper_edge * min(1.0, config.vtln_warp)
    low_slope = (scale * lower - low) / (lower - low)
    high_slope = (high - scale * upper) / (high - upper)
    warped = high + high_slope * (frequency - high)
    warped = torch.where(frequency < upper, scale * frequency, warped)
    warped = torch.where(frequency < lower, low + low_slope * (frequency - low), warped)
    outside = (frequency < low) | (frequency > high)
    return _float32_mel_scale(torch.where(outside, frequency, warped))


def _vtln_warp(frequency: Float64Array, config: FbankConfig) -> Float64Array:
    """Warp frequencies piecewise linearly; outside the filters' range they stay (Kaldi's VTLN)."""
    low, high, warp = config.low_freq, config.upper_edge, config.vtln_warp
    lower = config.vtln_low * max(1.0, warp)
    upper = config.vtln_upper_edge * min(1.0, warp)
    low_slope = (lower / warp - low) / (lower - low)
    high_slope = (high - upper / warp) / (high - upper)
    return np.select(
        [(frequency < low) | (frequency > high), frequency < lower, frequency < upper],
        [frequency, low + low_slope * (frequency - low), frequency / warp],
        default=high + high_slope * (frequency - high),
    )


def _read_only(values: Float64Array) -> Float64Array:
    values.setflags(write=False)
    return values
