"""torchaudio.compliance.kaldi's `fbank` with the same signature: only the import changes."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import numpy as np

from ast_fast_kernels._torch.optional import needs_torch

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError as error:
    raise needs_torch("ast_fast_kernels.kaldi") from error

from ast_fast_kernels._torch.forks import on_one_thread_if_forked, one_thread_if_forked
from ast_fast_kernels._torch.tracing import outside_compilation
from ast_fast_kernels.fbank import api, drawn, eager, reference, tensors
from ast_fast_kernels.fbank.config import FLOAT32_EPS, FbankConfig, WindowType, milliseconds_of
from ast_fast_kernels.fbank.scalars import as_number, as_whole

__all__ = ["fbank"]


@outside_compilation
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
    again = _compute_again(waveform, given)
    if again is not None:
        return again
    framing = _framing(sample_frequency, frame_length, frame_shift, preemphasis_coefficient)
    round_to_power_of_two = _flag("round_to_power_of_two", round_to_power_of_two)
    if not round_to_power_of_two and framing.window_size % 2:
        raise ValueError(
            "frame_length must be an even number of samples when round_to_power_of_two is False, "
            f"got {as_number('frame_length', frame_length):g} ms ({framing.window_size} samples)"
        )
    samples = _channel(waveform, channel)
    eager.check_waveform(samples, framing)
    as_number("min_duration", min_duration)
    if samples.shape[0] < _product(min_duration, sample_frequency):
        return reference.as_floating(samples[:0])
    num_mel_bins = as_whole("num_mel_bins", num_mel_bins)
    if num_mel_bins < 4:
        raise ValueError(f"num_mel_bins must be at least 4, got {num_mel_bins}")
    energy_floor = as_number("energy_floor", energy_floor)
    if not 0 <= energy_floor < math.inf:
        raise ValueError(f"energy_floor must be at least 0 and finite, got {energy_floor}")
    dither = as_number("dither", dither)
    is_plain = dither >= 0
    if not is_plain:  # the noise upside down: the features do not see a waveform's sign
        with one_thread_if_forked():
            samples, dither = -reference.as_floating(samples), -dither
    scale = _INT16_SCALE if waveform.dtype == torch.int16 else 1.0
    config = _complete(
        framing=framing,
        waveform_scale=scale,
        n_fft=None if round_to_power_of_two else framing.window_size,
        blackman_coeff=blackman_coeff,
        dither=dither,
        high_freq=high_freq,
        low_freq=low_freq,
        num_mel_bins=num_mel_bins,
        remove_dc_offset=remove_dc_offset,
        snip_edges=snip_edges,
        use_log_fbank=use_log_fbank,
        use_power=use_power,
        vtln_high=vtln_high,
        vtln_low=vtln_low,
        vtln_warp=vtln_warp,
        window_type=window_type,
    )
    raw_energy, energy_last = _flag("raw_energy", raw_energy), _flag("htk_compat", htk_compat)
    noise, backend = drawn.draw(samples, config)
    if not _flag("use_energy", use_energy):
        features = _log_mel(samples, config, noise, backend)
    else:
        is_plain = False
        features = _with_energy(
            samples, config, energy_floor, raw_energy, energy_last, noise, backend
        )
    if not _flag("subtract_mean", subtract_mean):
        if is_plain:
            _note(waveform, given, config, max(as_whole("channel", channel), 0))
        return features
    with one_thread_if_forked():
        return features - features.mean(dim=0)


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
    if _PLAIN.issuperset(kinds):
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
        return tensors.compute_again(waveform, last.config, "auto", last.channel)
    samples = waveform[last.channel]
    return _log_mel(samples, last.config, *drawn.draw(samples, last.config))


def _flag(argument: str, value: Any) -> bool:
    """Say whether a value counts as true."""
    try:
        return bool(value)
    except (RuntimeError, ValueError):  # of tensors and arrays of several elements
        raise ValueError(f"{argument} must be true or false, got {reprlib.repr(value)}") from None


def _milliseconds(argument: str, value: Any, rate: Any) -> float:
    """Return a time that truncates to as many samples as torchaudio makes of it."""
    time, hertz = as_number(argument, value), as_number("sample_frequency", rate)
    if type(value) is float and type(rate) is float:
        return time
    samples = _product(value, rate, 0.001)
    if not (math.isfinite(samples) and math.isfinite(time) and hertz > 0):
        return time
    size = int(samples)
    if size == int(hertz * time * 0.001) or size < 1:
        return time
    return milliseconds_of(size, hertz)


def _product(*factors: Any) -> float:
    """Multiply numbers in the precision of the least precise, as torch and numpy do."""
    product: Any = 1.0
    for factor in factors:
        own = type(factor) is not float and (
            isinstance(factor, np.floating)
            or (isinstance(factor, Tensor) and factor.is_floating_point())
        )
        product = product * (factor if own else float(factor))
    return float(product)


_INT16_SCALE = 32768.0
"""Undoes, exactly, that a backend divides int16."""


_PLAIN = frozenset((float, int, bool, str, type(None), FbankConfig))


def _once(function: Callable[..., FbankConfig]) -> Callable[..., FbankConfig]:
    """Keep a function's results, unless an argument is of a type whose values may change."""
    kept = lru_cache(maxsize=64, typed=True)(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> FbankConfig:
        if _PLAIN.issuperset(map(type, args)) and _PLAIN.issuperset(map(type, kwargs.values())):
            return kept(*args, **kwargs)
        return function(*args, **kwargs)

    return call


@_once
def _framing(
    sample_frequency: Any, frame_length: Any, frame_shift: Any, preemphasis_coefficient: Any
) -> FbankConfig:
    """Return the settings that are checked before `min_duration`; the rest are checked after it."""
    return FbankConfig(
        sample_frequency=as_number("sample_frequency", sample_frequency),
        frame_length=_milliseconds("frame_length", frame_length, sample_frequency),
        frame_shift=_milliseconds("frame_shift", frame_shift, sample_frequency),
        preemphasis_coefficient=as_number("preemphasis_coefficient", preemphasis_coefficient),
        low_freq=0.0,
        mel_dtype="float32",
    )


_NUMBERS = ("blackman_coeff", "high_freq", "low_freq", "vtln_high", "vtln_low", "vtln_warp")
_FLAGS = ("remove_dc_offset", "snip_edges", "use_log_fbank", "use_power")


@_once
def _complete(*, framing: FbankConfig, **given: Any) -> FbankConfig:
    """Return `framing` with the other fields, as a caller gave them."""
    numbers = {name: as_number(name, given[name]) for name in _NUMBERS}
    flags = {name: _flag(name, given[name]) for name in _FLAGS}
    return framing.replace(**{**given, **numbers, **flags})


def _channel(waveform: Tensor, channel: int) -> Tensor:
    if not isinstance(waveform, Tensor):
        raise TypeError(f"waveform must be a tensor, got {type(waveform).__name__}")
    if waveform.dim() != 2:
        raise ValueError(f"waveform must be (channels, samples), got {tuple(waveform.shape)}")
    if isinstance(channel, (bool, np.bool_)):
        raise TypeError(f"channel must be a number, got {channel}")
    channel = max(as_whole("channel", channel), 0)
    if channel >= waveform.shape[0]:
        raise ValueError(
            f"channel must be below the waveform's {waveform.shape[0]} channels, got {channel}"
        )
    return waveform[channel]


def _log_mel(samples: Tensor, config: FbankConfig, noise: Tensor | None, backend: str) -> Tensor:
    if noise is None:
        return api.fbank(samples, config)
    return drawn.log_mel_of(samples, config, noise, backend)


@on_one_thread_if_forked
def _with_energy(
    samples: Tensor,
    config: FbankConfig,
    energy_floor: float,
    raw_energy: bool,
    energy_last: bool,
    noise: Tensor | None,
    backend: str,
) -> Tensor:
    # Energy and filters see the same noise.
    frames = reference.prepare_frames(reference.as_floating(samples), config, noise)
    log_mel = _log_mel(samples, config, noise, backend)
    if not raw_energy:
        frames = reference.apply_window(reference.preemphasise(frames, config), config)
    energy = frames.square().sum(dim=-1, keepdim=True).clamp(min=FLOAT32_EPS).log()
    if energy_floor > 0:
        energy = energy.clamp(min=math.log(energy_floor))
    return torch.cat((log_mel, energy) if energy_last else (energy, log_mel), dim=-1)
