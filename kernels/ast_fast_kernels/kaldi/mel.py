"""Kaldi's mel scale, vocal-tract-length warp and filters, in torchaudio's arithmetic.

Every operation is torchaudio's, in its order and precision, because a bin on a filter's edge turns
on the last bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ast_fast_kernels._torch.forks import on_one_thread_if_forked


def mel_scale_scalar(freq: float) -> float:
    """Return a frequency in Hz as mel."""
    return 1127.0 * math.log(1.0 + freq / 700.0)


def mel_scale(freq: Tensor) -> Tensor:
    """Return frequencies in Hz as mel."""
    return 1127.0 * torch.log(1.0 + freq / 700.0)


def inverse_mel_scale_scalar(mel_freq: float) -> float:
    """Return a frequency in mel as Hz."""
    return 700.0 * (math.exp(mel_freq / 1127.0) - 1.0)


def inverse_mel_scale(mel_freq: Tensor) -> Tensor:
    """Return frequencies in mel as Hz."""
    return 700.0 * (torch.exp(mel_freq / 1127.0) - 1.0)


def vtln_warp_freq(
    vtln_low_cutoff: float,
    vtln_high_cutoff: float,
    low_freq: float,
    high_freq: float,
    vtln_warp_factor: float,
    freq: Tensor,
) -> Tensor:
    """Warp frequencies piecewise linearly, by Kaldi's vocal-tract-length normalisation.

    Between two inflection points a frequency is divided by the factor. From them, straight lines
    lead to the filters' edges, which stay where they are, as does everything outside.

    Args:
        vtln_low_cutoff: Lower inflection point, in Hz, before or after the warp: the lesser.
        vtln_high_cutoff: Upper inflection point, likewise: the greater.
        low_freq: Lower edge of the filters, in Hz.
        high_freq: Upper edge of the filters, in Hz.
        vtln_warp_factor: The factor.
        freq: Frequencies in Hz, any shape.
    Raises:
        ValueError: An inflection point is not between the edges.
    """
    lower = vtln_low_cutoff * max(1.0, vtln_warp_factor)
    upper = vtln_high_cutoff * min(1.0, vtln_warp_factor)
    rule = f"above low_freq ({low_freq:g} Hz)"
    _require(min(vtln_low_cutoff, lower) > low_freq, "vtln_low_cutoff", rule, vtln_low_cutoff)
    rule = f"below high_freq ({high_freq:g} Hz)"
    _require(max(vtln_high_cutoff, upper) < high_freq, "vtln_high_cutoff", rule, vtln_high_cutoff)
    scale = 1.0 / vtln_warp_factor
    low_slope = (scale * lower - low_freq) / (lower - low_freq)
    high_slope = (high_freq - scale * upper) / (high_freq - upper)
    warped = torch.where(freq < upper, scale * freq, high_freq + high_slope * (freq - high_freq))
    warped = torch.where(freq < lower, low_freq + low_slope * (freq - low_freq), warped)
    return torch.where((freq < low_freq) | (freq > high_freq), freq, warped)


def vtln_warp_mel_freq(
    vtln_low_cutoff: float,
    vtln_high_cutoff: float,
    low_freq: float,
    high_freq: float,
    vtln_warp_factor: float,
    mel_freq: Tensor,
) -> Tensor:
    """Do what `vtln_warp_freq` does, to frequencies in mel; its other arguments are in Hz."""
    edges = (vtln_low_cutoff, vtln_high_cutoff, low_freq, high_freq)
    return mel_scale(vtln_warp_freq(*edges, vtln_warp_factor, inverse_mel_scale(mel_freq)))


@on_one_thread_if_forked
def get_mel_banks(
    num_bins: int,
    window_length_padded: int,
    sample_freq: float,
    low_freq: float,
    high_freq: float,
    vtln_low: float,
    vtln_high: float,
    vtln_warp_factor: float,
) -> tuple[Tensor, Tensor]:
    """Return Kaldi's triangular mel filters, without the Nyquist bin, and their centres.

    Args:
        num_bins: Number of filters, at least 4.
        window_length_padded: FFT length, in samples, even.
        sample_freq: Sample rate, in Hz.
        low_freq: Lower edge of the filters, in Hz.
        high_freq: Upper edge of the filters, in Hz; 0 or below counts down from Nyquist.
        vtln_low: Lower inflection point of the warp, in Hz.
        vtln_high: Upper inflection point of the warp, in Hz; below 0 counts down from Nyquist.
        vtln_warp_factor: Vocal-tract-length warp factor; 1 is none.
    Returns:
        Filters, shape (num_bins, window_length_padded // 2), and centres in Hz, (num_bins, 1), in
        torch's default dtype and on its default device.
    Raises:
        ValueError: An argument is out of range.
    Source: torchaudio 2.9.1, compliance/kaldi.py, get_mel_banks.
    """
    _require(num_bins >= 4, "num_bins", "at least 4", num_bins)
    good = window_length_padded % 2 == 0
    _require(good, "window_length_padded", "even", window_length_padded)
    nyquist = 0.5 * sample_freq
    high_edge = high_freq if high_freq > 0.0 else high_freq + nyquist
    rule = f"from 0 to below the upper edge ({high_edge:g} Hz)"
    _require(0.0 <= low_freq < high_edge, "low_freq", rule, low_freq)
    _require(high_edge <= nyquist, "high_freq", f"at most Nyquist ({nyquist:g} Hz)", high_freq)
    vtln_edge = vtln_high if vtln_high >= 0.0 else vtln_high + nyquist
    is_warped = vtln_warp_factor != 1.0
    if is_warped:
        rule = f"above low_freq ({low_freq:g} Hz) and below vtln_high ({vtln_edge:g} Hz)"
        _require(low_freq < vtln_low < vtln_edge, "vtln_low", rule, vtln_low)
        rule = f"below the upper edge ({high_edge:g} Hz)"
        _require(vtln_edge < high_edge, "vtln_high", rule, vtln_high)

    low, high = mel_scale_scalar(low_freq), mel_scale_scalar(high_edge)
    delta = (high - low) / (num_bins + 1)
    index = torch.arange(num_bins)[:, None]
    left, centre, right = (low + (index + place) * delta for place in (0.0, 1.0, 2.0))
    if is_warped:
        edges = (vtln_low, vtln_edge, low_freq, high_edge, vtln_warp_factor)
        left, centre, right = (vtln_warp_mel_freq(*edges, mel) for mel in (left, centre, right))
    mel = mel_scale(sample_freq / window_length_padded * torch.arange(window_length_padded / 2))
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    if is_warped:  # a warp may reorder a filter's edges
        banks = torch.where((mel > left) & (mel <= centre), rising, 0.0)
        banks = torch.where((mel > centre) & (mel < right), falling, banks)
    else:
        banks = torch.minimum(rising, falling).clamp(min=0.0)
    return banks, inverse_mel_scale(centre)


def _require(good: bool, argument: str, rule: str, value: object) -> None:
    if not good:
        raise ValueError(f"{argument} must be {rule}, got {value}")
