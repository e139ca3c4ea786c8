"""The filterbank in plain torch, one function per stage; in float64 it is the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.autocast import exact_product
from ast_fast_kernels.fbank import dither, tables
from ast_fast_kernels.fbank.config import FbankConfig, PadMode
from ast_fast_kernels.fbank.whole_clip import beyond_counts, over_whole_clip


def fbank_reference(
    waveform: Tensor,
    config: FbankConfig,
    out: Tensor | None = None,
    counts: Sequence[int] | None = None,
    keys: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Return log-mel energies by the definition; differentiable, any floating dtype and device.

    Args:
        waveform: Shape (batch, num_samples); int16 is taken as sample / 32768.
        config: The conventions.
        out: Contiguous tensor that takes the result, shape (batch, num_frames, num_mel_bins).
        counts: Samples that count in each waveform; frames beyond them are `config.log_silence`.
        keys: Each clip's key for dither, shape (batch, 2); None draws them if there is dither.
        noise: Instead of keys, as `dither.noise_of` returns it.
    """
    waveform = as_floating(waveform)
    if noise is None:
        noise = dither.noise_of(keys, waveform, config)
    if counts is None:
        log_mel = log_mel_of_frames(prepare_frames(waveform, config, noise), config)
    elif config.snip_edges and not config.pad_tail:
        # A NaN after a clip's length would reach the gradient before it.
        waveform = waveform.masked_fill(beyond_counts(counts, waveform), 0.0)
        log_mel = log_mel_of_frames(prepare_frames(waveform, config, noise), config)
        frames = [config.num_frames(count) for count in counts]
        log_mel = log_mel.masked_fill(beyond_counts(frames, log_mel)[..., None], config.log_silence)
    else:  # each waveform is padded at its own end, so each runs at its own length
        num_frames = config.num_frames(waveform.shape[-1])
        noises = [None] * len(waveform) if noise is None else noise
        rows = zip(waveform, counts, noises, strict=True)
        padded = [_padded_row(row[:count], config, num_frames, own) for row, count, own in rows]
        log_mel = torch.stack(padded)
    if config.needs_whole_clip:
        ends: Sequence[int] | Tensor
        if counts is None:
            ends = torch.full(log_mel.shape[:1], log_mel.shape[1], device=log_mel.device)
        else:
            ends = [config.num_frames(count) for count in counts]
        log_mel = over_whole_clip(log_mel, config, ends)
    return log_mel if out is None else out.copy_(log_mel)


def _padded_row(row: Tensor, config: FbankConfig, num_frames: int, noise: Tensor | None) -> Tensor:
    log_mel = row.new_full((num_frames, config.num_mel_bins), config.log_silence)
    if config.num_frames(row.shape[0]) == 0:
        return log_mel
    frames = log_mel_of_frames(prepare_frames(row, config, noise), config)
    return torch.cat((frames, log_mel[frames.shape[0] :]))


def as_floating(samples: Tensor) -> Tensor:
    """Return int16 samples as float32 in [-1, 1); others as they are."""
    return samples.to(torch.float32) * 2.0**-15 if samples.dtype == torch.int16 else samples


def prepare_frames(waveform: Tensor, config: FbankConfig, noise: Tensor | None = None) -> Tensor:
    """Return the scaled, dithered, DC-free frames, which Kaldi's raw energy is taken from.

    Args:
        waveform: Shape (..., num_samples).
        config: The conventions.
        noise: Of variance 1, for at least as many frames or samples as there are; None is none.
    """
    waveform = waveform * config.waveform_scale
    if noise is not None and config.dither_over == "waveform":
        waveform = waveform + config.dither * noise[..., : waveform.shape[-1]]
    if config.preemphasis_over == "waveform":
        coefficient = config.preemphasis_coefficient
        rest = waveform[..., 1:] - coefficient * waveform[..., :-1]
        waveform = torch.cat((waveform[..., :1], rest), dim=-1)
    frames = cut_frames(waveform, config)
    if noise is not None and config.dither_over == "frame":
        frames = frames + config.dither * noise[..., : frames.shape[-2], :]
    return remove_dc_offset(frames, config)


def log_mel_of_frames(frames: Tensor, config: FbankConfig) -> Tensor:
    """Return log-mel energies of prepared frames, shape (..., num_frames, num_mel_bins)."""
    spectrum = spectrum_of_frames(apply_window(preemphasise(frames, config), config), config)
    return log_energies(apply_mel_banks(spectrum, config), config)


def cut_frames(waveform: Tensor, config: FbankConfig) -> Tensor:
    """Return overlapping frames, shape (..., num_frames, window_size).

    A waveform too short to fill a frame is mirrored repeatedly.
    """
    size, shift, num_samples = config.window_size, config.window_shift, waveform.shape[-1]
    num_frames = config.num_frames(num_samples)
    if num_frames == 0:
        return waveform.new_empty((*waveform.shape[:-1], 0, size))
    first = config.first_sample
    last = first + (num_frames - 1) * shift + size
    if first != 0 or last > num_samples:
        index = torch.arange(first, last, device=waveform.device)
        waveform = _samples_at(index, waveform, "constant" if config.pad_tail else config.pad_mode)
    return waveform.unfold(-1, size, shift)[..., :num_frames, :]


def _samples_at(index: Tensor, waveform: Tensor, pad_mode: PadMode) -> Tensor:
    """Return samples by index, which may lie beyond the waveform's ends."""
    num_samples = waveform.shape[-1]
    if pad_mode == "constant":
        inside = (index >= 0) & (index < num_samples)
        samples = waveform.index_select(-1, index.clamp(0, num_samples - 1))
        return torch.where(inside, samples, 0.0)
    repeats = 1 if pad_mode == "symmetric" else 0  # of the edge samples
    period = max(2 * (num_samples - 1 + repeats), 1)
    index = index % period
    index = torch.where(index < num_samples, index, period - repeats - index)
    return waveform.index_select(-1, index)


def remove_dc_offset(frames: Tensor, config: FbankConfig) -> Tensor:
    """Subtract each frame's mean, summed around the first sample: so equal values give zeros."""
    if not config.remove_dc_offset:
        return frames
    first = frames[..., :1].detach()  # the mean's value and gradient do not depend on it
    return frames - (first + (frames - first).mean(dim=-1, keepdim=True))


def preemphasise(frames: Tensor, config: FbankConfig) -> Tensor:
    """Subtract part of the previous sample; a frame's first sample is its own predecessor."""
    if config.preemphasis_coefficient == 0.0 or config.preemphasis_over == "waveform":
        return frames
    previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
    return frames - config.preemphasis_coefficient * previous


def apply_window(frames: Tensor, config: FbankConfig) -> Tensor:
    """Multiply each frame by the window."""
    return frames * _table(tables.window, config, frames)


def spectrum_of_frames(frames: Tensor, config: FbankConfig) -> Tensor:
    """Return the power or magnitude spectrum, shape (..., num_frames, fft_size // 2 + 1)."""
    spectrum: Tensor = torch.fft.rfft(frames, n=config.fft_size)
    if config.use_power:
        return spectrum.real.square() + spectrum.imag.square()
    return spectrum.abs()


def apply_mel_banks(spectrum: Tensor, config: FbankConfig) -> Tensor:
    """Return the energies of the mel filters, shape (..., num_frames, num_mel_bins).

    In the spectrum's own precision, under autocast too.
    """
    if not config.mel_filters:
        return spectrum / config.fft_size if config.divide_by_n_fft else spectrum
    banks = _table(tables.mel_banks, config, spectrum)  # (num_mel_bins, fft_size // 2 + 1)
    return exact_product(spectrum, banks.T)


def _table(
    compute: Callable[[FbankConfig], tables.Float64Array], config: FbankConfig, values: Tensor
) -> Tensor:
    """Return a table in the dtype of the values and on their device.

    It is kept there, once a call came before: a stream that captures a CUDA graph cannot copy it.
    """
    # A trace's or a transform's table would be its own.
    if checks.is_traced(values) or checks.is_transformed():
        return _rounded(compute(config), values.dtype, values.device)
    return _kept_table(compute, config, values.dtype, values.device)


@cache  # never freed: a captured CUDA graph keeps reading them
def _kept_table(
    compute: Callable[[FbankConfig], tables.Float64Array],
    config: FbankConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    with torch.inference_mode(mode=False):  # a gradient may keep it
        return _rounded(compute(config), dtype, device)


def _rounded(table: tables.Float64Array, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(table, dtype=dtype, device=device)


def log_energies(energies: Tensor, config: FbankConfig) -> Tensor:
    """Return log_factor · ln(max(energy + log_offset, log_floor)) + log_shift; NaN stays NaN."""
    if not config.use_log_fbank:
        return energies
    energies = energies + config.log_offset
    if config.floor_zeros_only:
        energies = energies.masked_fill(energies == 0.0, config.log_floor)
    else:
        energies = energies.clamp(min=config.log_floor)
    return energies.log() * config.log_factor + config.log_shift
