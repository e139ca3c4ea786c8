"""`mfcc`: a liftered cosine transform of the log-mel filterbank, and Kaldi's tables of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ast_fast_kernels.fbank.cepstra import cepstral_matrix
from ast_fast_kernels.fbank.config import WindowType
from ast_fast_kernels.kaldi.calls import compute


def mfcc(
    waveform: Tensor,
    blackman_coeff: float = 0.42,
    cepstral_lifter: float = 22.0,
    channel: int = -1,
    dither: float = 0.0,
    energy_floor: float = 1.0,
    frame_length: float = 25.0,
    frame_shift: float = 10.0,
    high_freq: float = 0.0,
    htk_compat: bool = False,
    low_freq: float = 20.0,
    num_ceps: int = 13,
    min_duration: float = 0.0,
    num_mel_bins: int = 23,
    preemphasis_coefficient: float = 0.97,
    raw_energy: bool = True,
    remove_dc_offset: bool = True,
    round_to_power_of_two: bool = True,
    sample_frequency: float = 16000.0,
    snip_edges: bool = True,
    subtract_mean: bool = False,
    use_energy: bool = False,
    vtln_high: float = -500.0,
    vtln_low: float = 100.0,
    vtln_warp: float = 1.0,
    window_type: WindowType = "povey",
) -> Tensor:
    """Compute Kaldi's mel-frequency cepstral coefficients of one channel, as torchaudio does.

    `ast_fast_kernels.mfcc` takes batches. Everything that is not said here is as in `fbank`:
    numbers of any type, errors, backends, int16, gradients, `torch.compile`.

    Args:
        waveform: Samples, shape (channels, num_samples), as in `fbank`.
        blackman_coeff: Constant coefficient of the generalised Blackman window.
        cepstral_lifter: Period of the lifter that evens out the coefficients' sizes; 0 is none.
        channel: Channel to take; below 0, the first.
        dither: Factor on the Gaussian noise added to each frame, which is torchaudio's for the same
            state of torch's generator; 0 is none.
        energy_floor: Floor of the energy, not of the mel energies; 0 is none.
        frame_length: Length of a frame, in milliseconds.
        frame_shift: Hop between frames, in milliseconds.
        high_freq: Upper edge of the filters, in Hz; 0 or below counts down from Nyquist.
        htk_compat: Whether the first column comes last; if it is no energy, times the root of 2.
        low_freq: Lower edge of the filters, in Hz.
        num_ceps: Coefficients to keep, from 1 to `num_mel_bins`.
        min_duration: Shortest duration, in seconds; a shorter clip gives an empty tensor, (0,).
        num_mel_bins: Number of filters, at least 4.
        preemphasis_coefficient: Per-frame pre-emphasis; 0 is none.
        raw_energy: Whether the energy is taken before pre-emphasis and window.
        remove_dc_offset: Whether each frame's mean is subtracted.
        round_to_power_of_two: Whether frames are zero-padded to a power of two for the FFT.
        sample_frequency: Sample rate, in Hz.
        snip_edges: Whether only whole frames are taken; False mirrors the clip at both ends.
        subtract_mean: Whether each column's mean over the clip is subtracted.
        use_energy: Whether the frame's log energy stands in place of the first coefficient.
        vtln_high: Upper inflection point of the warp, in Hz; below 0 counts down from Nyquist.
        vtln_low: Lower inflection point of the warp, in Hz.
        vtln_warp: Vocal-tract-length warp factor; 1 is none.
        window_type: Shape of the (symmetric) window.
    Returns:
        Coefficients, shape (num_frames, num_ceps), on the waveform's device and of its dtype
        (float32 for int16). A clip below `min_duration` gives (0,), where torchaudio fails.
    Raises:
        TypeError: As in `fbank`.
        ValueError: As in `fbank`, or `num_ceps` or `cepstral_lifter` is out of range.
    Source: torchaudio 2.9.1, compliance/kaldi.py, mfcc.
    """
    given = (
        blackman_coeff, cepstral_lifter, channel, dither, energy_floor, frame_length, frame_shift,
        high_freq, htk_compat, low_freq, num_ceps, min_duration, num_mel_bins,
        preemphasis_coefficient, raw_energy, remove_dc_offset, round_to_power_of_two,
        sample_frequency, snip_edges, subtract_mean, use_energy, vtln_high, vtln_low, vtln_warp,
        window_type,
    )  # fmt: skip
    return compute(waveform, "mfcc", given)


def _get_dct_matrix(num_ceps: int, num_mel_bins: int) -> Tensor:
    """Return the orthonormal DCT-II, shape (num_mel_bins, num_ceps), in torch's default dtype."""
    kept = min(num_ceps, num_mel_bins)
    matrix = cepstral_matrix(num_mel_bins, kept, 0.0)
    return torch.tensor(matrix.T.copy(), dtype=torch.get_default_dtype())


def _get_lifter_coeffs(num_ceps: int, cepstral_lifter: float) -> Tensor:
    """Return the factor on each cepstral coefficient, shape (num_ceps,)."""
    index = torch.arange(num_ceps)
    return 1.0 + 0.5 * cepstral_lifter * torch.sin(math.pi * index / cepstral_lifter)
