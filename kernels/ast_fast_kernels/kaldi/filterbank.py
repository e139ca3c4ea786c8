"""`fbank`: Kaldi's log-mel filterbank of one channel, with torchaudio's signature."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.tracing import is_compiling
from ast_fast_kernels.fbank import drawn, tensors
from ast_fast_kernels.fbank.config import FbankConfig, WindowType
from ast_fast_kernels.kaldi.arguments import PLAIN
from ast_fast_kernels.kaldi.calls import compute, is_traced
from ast_fast_kernels.kaldi.features import begin, log_mel, run


def fbank(
    waveform: Tensor,
    blackman_coeff: float = 0.42,
    channel: int = -1,
    dither: float = 0.0,
    energy_floor: float = 1.0,
    frame_length: float = 25.0,
    frame_shift: float = 10.0,
    high_freq: float = 0.0,
    htk_compat: bool = False,
    low_freq: float = 20.0,
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
    use_log_fbank: bool = True,
    use_power: bool = True,
    vtln_high: float = -500.0,
    vtln_low: float = 100.0,
    vtln_warp: float = 1.0,
    window_type: WindowType = "povey",
) -> Tensor:
    """Compute Kaldi's log-mel filterbank of one channel, as torchaudio does.

    Takes one clip per call: a 2-D input is (channels, samples). `ast_fast_kernels.fbank` takes
    batches. Filters are computed in float32, as torchaudio does (`FbankConfig.mel_dtype`). Where
    torchaudio asserts, this raises ValueError. `use_backend` or AST_FAST_BACKEND sets the backend.

    As in torchaudio, a number may be of any type: int, bool, a numpy scalar, a tensor of one
    element, and a count may be a whole float. A switch is on if it is true.

    Args:
        waveform: Samples, shape (channels, num_samples), float32, float64 or int16. None is
            rescaled: the features are those of the numbers, as in Kaldi, whose recipes give it
            whole numbers in int16's range. `ast_fast_kernels.fbank` divides int16 by 32768.
        blackman_coeff: Constant coefficient of the generalised Blackman window.
        channel: Channel to take; below 0, the first.
        dither: Factor on the Gaussian noise added to each frame, which is torchaudio's for the same
            state of torch's generator; 0 is none.
        energy_floor: Floor of the energy column, not of the mel energies; 0 is none.
        frame_length: Length of a frame, in milliseconds.
        frame_shift: Hop between frames, in milliseconds.
        high_freq: Upper edge of the filters, in Hz; 0 or below counts down from Nyquist.
        htk_compat: Whether the energy column is the last one instead of the first.
        low_freq: Lower edge of the filters, in Hz.
        min_duration: Shortest duration, in seconds; a shorter clip gives an empty tensor, (0,).
        num_mel_bins: Number of filters, at least 4.
        preemphasis_coefficient: Per-frame pre-emphasis; 0 is none.
        raw_energy: Whether the energy is taken before pre-emphasis and window.
        remove_dc_offset: Whether each frame's mean is subtracted.
        round_to_power_of_two: Whether frames are zero-padded to a power of two for the FFT.
        sample_frequency: Sample rate, in Hz.
        snip_edges: Whether only whole frames are taken; False mirrors the clip at both ends.
        subtract_mean: Whether each column's mean over the clip is subtracted.
        use_energy: Whether a column with the frame's log energy is added.
        use_log_fbank: Whether the natural logarithm of the mel energies is taken.
        use_power: Whether the spectrum is a power spectrum; False takes magnitudes.
        vtln_high: Upper inflection point of the warp, in Hz; below 0 counts down from Nyquist.
        vtln_low: Lower inflection point of the warp, in Hz.
        vtln_warp: Vocal-tract-length warp factor; 1 is none.
        window_type: Shape of the (symmetric) window.
    Returns:
        Energies, shape (num_frames, num_mel_bins + use_energy), on the waveform's device and of its
        dtype (float32 for int16).
    Raises:
        TypeError: The waveform is not a tensor of float32, float64 or int16, or a number is none.
        ValueError: An argument is out of range, or a tensor that needs a gradient, or the clip is
            shorter than one frame.
    Source: torchaudio 2.9.1, compliance/kaldi.py, fbank.
    """
    given = (
        blackman_coeff, channel, dither, energy_floor, frame_length, frame_shift, high_freq,
        htk_compat, low_freq, min_duration, num_mel_bins, preemphasis_coefficient, raw_energy,
        remove_dc_offset, round_to_power_of_two, sample_frequency, snip_edges, subtract_mean,
        use_energy, use_log_fbank, use_power, vtln_high, vtln_low, vtln_warp, window_type,
    )  # fmt: skip
    if is_compiling():
        return compute(waveform, "fbank", given)
    again = _compute_again(waveform, given)
    if again is not None:
        return again
    if is_traced(waveform):
        return compute(waveform, "fbank", given)
    samples, settings = begin(waveform, "fbank", given)
    if settings is None:
        return samples
    energies = run(samples, settings)
    if settings.is_plain:
        _note(waveform, given, settings.config, settings.channel)
    return energies


class _Last(NamedTuple):
    """The last call of which nothing but the filterbank of one channel was asked."""

    types: tuple[type, ...]
    given: tuple[Any, ...]
    dtype: torch.dtype
    shape: torch.Size
    config: FbankConfig
    channel: int


_last: _Last | None = None


def _note(waveform: Tensor, given: tuple[Any, ...], config: FbankConfig, channel: int) -> None:
    """Take down such a call, unless an argument is of a type whose values may change."""
    global _last
    kinds = tuple(map(type, given))
    if PLAIN.issuperset(kinds):
        _last = _Last(kinds, given, waveform.dtype, waveform.shape, config, channel)


def _compute_again(waveform: Any, given: tuple[Any, ...]) -> Tensor | None:
    """Compute a clip if the last call had such a one and equal arguments; None if it had not.

    Types are compared as well: a rate that is a whole number makes other sizes than a float.
    """
    last = _last
    if (
        last is None
        or not isinstance(waveform, Tensor)
        or waveform.dtype is not last.dtype
        or waveform.shape != last.shape
        or tuple(map(type, given)) != last.types
        or given != last.given
    ):
        return None
    if last.config.dither == 0.0:
        return tensors.compute_again(waveform, last.config, "auto", row=last.channel)
    if checks.is_traced(waveform):
        return None
    samples = waveform[last.channel]
    return log_mel(samples, last.config, *drawn.draw(samples, last.config, as_words=True))
