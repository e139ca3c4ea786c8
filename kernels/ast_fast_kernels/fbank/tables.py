"""Window and mel filters in float64, cached by config; each backend rounds them once."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ast_fast_kernels.fbank.config import FLOAT32_TINY, FbankConfig, MelScale

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

NORM_EPSILON = 1e-5
"""Added to standard deviations; NVIDIA NeMo, collections/asr/parts/preprocessing/features.py."""


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
    """Return the mel filters, divided by the FFT length if the config says so.

    The Nyquist bin of triangles is zero: none reaches beyond it. A filter narrower than one FFT bin
    can be empty (AST's 128 bins at n_fft 512 have one); it stays, as in torchaudio and librosa.
    Without `mel_filters` each filter is one bin of the spectrum, with weight 1, Nyquist included.

    Returns:
        Read-only filters, shape (num_mel_bins, fft_size // 2 + 1).
    Source: kaldi/src/feat/mel-computations.cc; librosa/filters.py; python_speech_features/base.py;
    speechbrain/processing/features.py.
    """
    banks = np.zeros((config.num_mel_bins, config.fft_size // 2 + 1))
    if not config.mel_filters:
        np.fill_diagonal(banks, 1.0)
    elif config.mel_dtype == "float32":
        banks[:, :-1] = _float32_mel_banks(config)
    elif config.filter_shape == "triangular":
        banks[:, :-1] = _mel_banks(config)
    else:
        banks[:] = _symmetric_banks(config)
    return _read_only(banks / config.fft_size if config.divide_by_n_fft else banks)


@lru_cache(maxsize=32)
def reach_nyquist(config: FbankConfig) -> bool:
    """Say whether a filter takes something of the Nyquist bin."""
    return bool(mel_banks(config)[:, -1].any())


def _mel_banks(config: FbankConfig) -> Float64Array:
    """Return the filters without the Nyquist bin."""
    mel = _mel_edges(config)
    hertz = inverse_mel_scale(mel, config.mel_scale)
    bins = np.arange(config.fft_size // 2) * (config.nyquist / (config.fft_size // 2))  # Hz
    match config.triangle_axis:
        case "hertz":
            edges, place = hertz, bins
        case "mel":
            edges, place = mel, mel_scale(bins, config.mel_scale)
        case "bins":
            edges = np.floor((config.fft_size + 1) * hertz / config.sample_frequency)
            place = np.arange(config.fft_size // 2, dtype=np.float64)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    banks = np.zeros((config.num_mel_bins, len(place)))
    np.divide(place - left, centre - left, out=banks, where=(place > left) & (place < centre))
    np.divide(right - place, right - centre, out=banks, where=(place >= centre) & (place < right))
    if config.mel_norm == "slaney":
        banks *= 2.0 / (hertz[2:, None] - hertz[:-2, None])
    return banks


def _symmetric_banks(config: FbankConfig) -> Float64Array:
    """Return filters that are as wide above their centre as below, with the Nyquist bin."""
    edges = filter_edges(config)
    left, centre = edges[:-2, None], edges[1:-1, None]
    bins = np.linspace(0.0, config.nyquist, config.fft_size // 2 + 1)  # Hz
    distance = np.abs(bins - centre) / (centre - left)  # in half a filter's width
    match config.filter_shape:
        case "rectangular":
            return (distance <= 1.0).astype(np.float64)
        case "gaussian":
            banks = np.exp(-2.0 * distance**2)
            return np.where(banks < FLOAT32_TINY, 0.0, banks)  # as it is in a kernel's dtype
    return np.maximum(1.0 - distance, 0.0)


def filter_edges(config: FbankConfig) -> Float64Array:
    """Return where filters begin, peak and end, in Hz, shape (num_mel_bins + 2,).

    Filter i begins at edge i, peaks at edge i + 1 and, if triangular, ends at edge i + 2. Without
    `mel_filters`, that is from one bin of the spectrum to the one after the next.
    """
    if not config.mel_filters:
        width = config.sample_frequency / config.fft_size
        return width * np.arange(-1.0, config.num_mel_bins + 1.0)
    return inverse_mel_scale(_mel_edges(config), config.mel_scale)


def _mel_edges(config: FbankConfig) -> Float64Array:
    low, high = mel_scale([config.low_freq, config.upper_edge], config.mel_scale)
    edges = np.linspace(low, high, config.num_mel_bins + 2)
    if config.vtln_warp == 1.0:
        return edges
    warped = _vtln_warp(inverse_mel_scale(edges, config.mel_scale), config)
    return mel_scale(warped, config.mel_scale)


def mel_scale(frequency: npt.ArrayLike, scale: MelScale = "htk") -> Float64Array:
    """Return Hz as mel: HTK's and Kaldi's scale, or that of Slaney's Auditory Toolbox."""
    hertz = np.asarray(frequency, np.float64)
    if scale == "htk":
        return np.asarray(1127.0 * np.log1p(hertz / 700.0))
    above = np.log(np.maximum(hertz, 1000.0) / 1000.0) / _SLANEY_STEP
    return np.where(hertz < 1000.0, hertz * 3.0 / 200.0, 15.0 + above)


def inverse_mel_scale(mel: npt.ArrayLike, scale: MelScale = "htk") -> Float64Array:
    """Return mel as Hz."""
    mel = np.asarray(mel, np.float64)
    if scale == "htk":
        return np.asarray(700.0 * np.expm1(mel / 1127.0))
    above = 1000.0 * np.exp(_SLANEY_STEP * np.maximum(mel - 15.0, 0.0))
    return np.where(mel < 15.0, mel * 200.0 / 3.0, above)


_SLANEY_STEP = np.log(6.4) / 27.0
"""Logarithm of the ratio between frequencies one mel apart, above 1 kHz."""


def _float32_mel_banks(config: FbankConfig) -> Float32Array:
    """Return Kaldi's filters as torchaudio computes them, without the Nyquist bin.

    In float32 a bin on a filter's edge may fall just inside it, with a weight near 1e-6, and the
    filter is then not empty. So every operation is torchaudio's, in its order. Logarithms are
    rounded once; torch's may be off by a unit in the last place.
    Source: torchaudio 2.9.1, compliance/kaldi.py, get_mel_banks.
    """
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (config.low_freq, config.upper_edge))
    delta = (high - low) / (config.num_mel_bins + 1)
    index = np.arange(config.num_mel_bins, dtype=np.float32)[:, None]
    left, centre, right = (low + (index + place) * delta for place in (0.0, 1.0, 2.0))
    if config.vtln_warp != 1.0:
        left, centre, right = (_float32_vtln_warp(mel, config) for mel in (left, centre, right))
    bins = np.arange(config.fft_size // 2, dtype=np.float32)  # without Nyquist
    mel = _float32_mel_scale(config.nyquist / (config.fft_size // 2) * bins)
    rising = (mel - left) / (centre - left)
    falling = (right - mel) / (right - centre)
    zero = np.float32(0.0)
    banks: Float32Array
    if config.vtln_warp == 1.0:
        banks = np.maximum(np.minimum(rising, falling), zero)
    else:  # a warp may reorder a filter's edges
        banks = np.where((mel > left) & (mel <= centre), rising, zero)
        banks = np.where((mel > centre) & (mel < right), falling, banks)
    return banks


def _float32_mel_scale(frequency: Float32Array) -> Float32Array:
    logarithm = np.log(1.0 + frequency / 700.0, dtype=np.float64)
    mel: Float32Array = 1127.0 * logarithm.astype(np.float32)
    return mel


def _float32_vtln_warp(mel: Float32Array, config: FbankConfig) -> Float32Array:
    frequency = 700.0 * (np.exp(mel / 1127.0, dtype=np.float64).astype(np.float32) - 1.0)
    low, high, scale = config.low_freq, config.upper_edge, 1.0 / config.vtln_warp
    lower = config.vtln_low * max(1.0, config.vtln_warp)
    upper = config.vtln_upper_edge * min(1.0, config.vtln_warp)
    low_slope = (scale * lower - low) / (lower - low)
    high_slope = (high - scale * upper) / (high - upper)
    warped = high + high_slope * (frequency - high)
    warped = np.where(frequency < upper, scale * frequency, warped)
    warped = np.where(frequency < lower, low + low_slope * (frequency - low), warped)
    outside = (frequency < low) | (frequency > high)
    return _float32_mel_scale(np.where(outside, frequency, warped))


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
