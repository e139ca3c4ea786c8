"""Kaldi's frames, window and energies step by step, under the names that projects call.

The feature functions do not use them: their way is compiled. These are plain torch, differentiable,
of any floating dtype and device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ast_fast_kernels._torch.forks import on_one_thread_if_forked

EPSILON = torch.tensor(torch.finfo(torch.float32).eps)
"""Kaldi's log floor."""
MILLISECONDS_TO_SECONDS = 0.001

HAMMING, HANNING, POVEY = "hamming", "hanning", "povey"
RECTANGULAR, BLACKMAN = "rectangular", "blackman"
WINDOWS = [HAMMING, HANNING, POVEY, RECTANGULAR, BLACKMAN]


def _get_epsilon(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the log floor as a tensor."""
    return EPSILON.to(device, dtype)


def _next_power_of_2(x: int) -> int:
    """Return the smallest power of two that is at least x; 1 for 0."""
    return 1 << (x - 1).bit_length() if x > 0 else 1


@on_one_thread_if_forked
def _get_strided(waveform: Tensor, window_size: int, window_shift: int, snip_edges: bool) -> Tensor:
    """Cut a waveform (num_samples,) into frames (num_frames, window_size).

    With `snip_edges` only whole ones, as a view, or (0, 0) if there is none; otherwise one for each
    shift, and the waveform is mirrored at its ends, the edge sample repeated.
    """
    if waveform.dim() != 1:
        raise ValueError(f"waveform must be (num_samples,), got {tuple(waveform.shape)}")
    _require(window_shift >= 1, "window_shift", "at least 1 sample", window_shift)
    num_samples = waveform.shape[0]
    if snip_edges:
        if num_samples < window_size:
            return waveform.new_empty(0, 0)
        return waveform.unfold(0, window_size, window_shift)
    num_frames = (num_samples + window_shift // 2) // window_shift
    first = window_shift // 2 - window_size // 2
    place = torch.arange(window_size, device=waveform.device)
    start = first + window_shift * torch.arange(num_frames, device=waveform.device)
    index = (start[:, None] + place) % (2 * num_samples)
    return waveform[torch.where(index < num_samples, index, 2 * num_samples - 1 - index)]


def _feature_window_function(
    window_type: str,
    window_size: int,
    blackman_coeff: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return a symmetric window, shape (window_size,)."""
    if window_type == RECTANGULAR:
        return torch.ones(window_size, device=device, dtype=dtype)
    if window_type == HAMMING:
        return torch.hamming_window(
            window_size, periodic=False, alpha=0.54, beta=0.46, device=device, dtype=dtype
        )
    if window_type in (HANNING, POVEY):
        hann = torch.hann_window(window_size, periodic=False, device=device, dtype=dtype)
        return hann if window_type == HANNING else hann**0.85
    if window_type == BLACKMAN:
        places = torch.arange(window_size, device=device, dtype=dtype)
        angle = 2 * math.pi / (window_size - 1)
        first, second = torch.cos(angle * places), torch.cos(2 * angle * places)
        return blackman_coeff - 0.5 * first + (0.5 - blackman_coeff) * second
    raise ValueError(f"window_type must be one of {', '.join(WINDOWS)}, got {window_type}")


def _get_log_energy(strided_input: Tensor, epsilon: Tensor, energy_floor: float) -> Tensor:
    """Return the log energy of frames (num_frames, window_size), floored; a floor of 0 is none."""
    energy = strided_input.square().sum(dim=1)
    log_energy = torch.maximum(energy, epsilon).log()
    _require(energy_floor >= 0.0, "energy_floor", "at least 0", energy_floor)
    return log_energy if energy_floor == 0.0 else log_energy.clamp(min=math.log(energy_floor))


def _get_waveform_and_window_properties(
    waveform: Tensor,
    channel: int,
    sample_frequency: float,
    frame_shift: float,
    frame_length: float,
    round_to_power_of_two: bool,
    preemphasis_coefficient: float,
) -> tuple[Tensor, int, int, int]:
    """Return a channel, and the shift, the frame and the FFT's length in samples.

    Raises:
        ValueError: An argument is out of range, or the channel is shorter than one frame.
    """
    channel = max(channel, 0)
    rule = f"below the waveform's {waveform.shape[0]} channels"
    _require(channel < waveform.shape[0], "channel", rule, channel)
    samples = waveform[channel]
    window_shift = int(sample_frequency * frame_shift * MILLISECONDS_TO_SECONDS)
    window_size = int(sample_frequency * frame_length * MILLISECONDS_TO_SECONDS)
    rule = f"from 2 samples to the waveform's {len(samples)}"
    got = f"{window_size} samples ({frame_length:g} ms)"
    _require(2 <= window_size <= len(samples), "frame_length", rule, got)
    _require(window_shift >= 1, "frame_shift", "at least 1 sample", frame_shift)
    padded_size = _next_power_of_2(window_size) if round_to_power_of_two else window_size
    rule = "an even number of samples when round_to_power_of_two is False"
    _require(padded_size % 2 == 0, "frame_length", rule, got)
    good = 0.0 <= preemphasis_coefficient <= 1.0
    _require(good, "preemphasis_coefficient", "from 0 to 1", preemphasis_coefficient)
    return samples, window_shift, window_size, padded_size


@on_one_thread_if_forked
def _get_window(
    waveform: Tensor,
    padded_window_size: int,
    window_size: int,
    window_shift: int,
    window_type: str,
    blackman_coeff: float,
    snip_edges: bool,
    raw_energy: bool,
    energy_floor: float,
    dither: float,
    remove_dc_offset: bool,
    preemphasis_coefficient: float,
) -> tuple[Tensor, Tensor]:
    """Return the frames as the FFT takes them, and their log energies.

    They are (num_frames, padded_window_size), with noise, mean removed, pre-emphasised, windowed
    and padded with zeros, and (num_frames,), taken before pre-emphasis if `raw_energy`.
    """
    frames = _get_strided(waveform, window_size, window_shift, snip_edges)
    if dither != 0.0:
        frames = frames + dither * torch.randn(
            frames.shape, device=waveform.device, dtype=waveform.dtype
        )
    if remove_dc_offset:
        frames = frames - frames.mean(dim=1, keepdim=True)
    of_energy = frames
    if preemphasis_coefficient != 0.0:
        previous = torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
        frames = frames - preemphasis_coefficient * previous
    frames = frames * _feature_window_function(
        window_type, window_size, blackman_coeff, waveform.device, waveform.dtype
    )
    if not raw_energy:
        of_energy = frames
    epsilon = _get_epsilon(waveform.device, waveform.dtype)
    log_energy = _get_log_energy(of_energy, epsilon, energy_floor)
    return torch.nn.functional.pad(frames, (0, padded_window_size - window_size)), log_energy


def _subtract_column_mean(tensor: Tensor, subtract_mean: bool) -> Tensor:
    """Subtract each column's mean over the rows, if asked to."""
    return tensor - tensor.mean(dim=0) if subtract_mean else tensor


def _require(good: bool, argument: str, rule: str, value: object) -> None:
    if not good:
        raise ValueError(f"{argument} must be {rule}, got {value}")
