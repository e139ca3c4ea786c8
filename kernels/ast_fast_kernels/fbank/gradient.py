"""The filterbank's gradient in its waveform: the reference's stages, from the last to the first.

Written out, because an operator cannot run autograd inside. It is plain torch, so autograd can
differentiate it again. Every stage before the spectrum is linear and keeps nothing. On a CPU,
numba_gradient.py does the same for float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ast_fast_kernels._torch.autocast import exact_product
from ast_fast_kernels.fbank import dither, reference, tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.whole_clip import beyond_counts


def waveform_gradient(
    grad: Tensor,
    waveform: Tensor,
    config: FbankConfig,
    counts: list[int] | None,
    keys: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Return the waveform's gradient, shape (batch, num_samples), from that of the energies.

    Args:
        grad: Gradient of the energies, shape (batch, num_frames, num_mel_bins).
        waveform: Shape (batch, num_samples), floating.
        config: The conventions.
        counts: Samples that count in each waveform; None is all.
        keys: Each clip's key, shape (batch, 2), if there is dither.
        noise: Instead of keys, as `dither.noise_of` returns it.
    """
    if noise is None:
        noise = dither.noise_of(keys, waveform, config)
    if counts is None:
        log_mel, pull_back = _vjp(waveform, config, noise)
        return pull_back(before_whole_clip(grad, log_mel, config, None))
    # Each waveform has its own end, so each runs alone.
    noises = [None] * len(waveform) if noise is None else noise
    rows = [
        _vjp(row[None, :count], config, own)
        for row, count, own in zip(waveform, counts, noises, strict=True)
    ]
    num_frames = [log_mel.shape[1] for log_mel, _ in rows]
    padded = [
        pad(log_mel, (0, 0, 0, grad.shape[1] - log_mel.shape[1]), value=config.log_silence)
        for log_mel, _ in rows
    ]
    grad = before_whole_clip(grad, torch.cat(padded), config, num_frames)
    gradients = [
        pull_back(row[None, :frames])
        for (_, pull_back), row, frames in zip(rows, grad, num_frames, strict=True)
    ]
    return torch.cat([pad(row, (0, waveform.shape[1] - row.shape[1])) for row in gradients])


def _vjp(
    waveform: Tensor, config: FbankConfig, noise: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return a batch's log-mel energies, and a function from their gradient to the waveform's."""
    frames = reference.preemphasise(reference.prepare_frames(waveform, config, noise), config)
    if frames.numel() == 0:
        nothing = waveform.new_zeros(*frames.shape[:-1], config.num_mel_bins)
        return nothing, lambda grad: torch.zeros_like(waveform)
    spectrum = torch.fft.rfft(reference.apply_window(frames, config), n=config.fft_size)
    power = spectrum.real.square() + spectrum.imag.square() if config.use_power else spectrum.abs()
    energies = reference.apply_mel_banks(power, config)

    def pull_back(grad: Tensor) -> Tensor:
        grad = _before_log(grad, energies, config)
        grad = _before_mel_banks(grad, config)
        grad = 2.0 * grad * spectrum if config.use_power else grad * spectrum.sgn()
        grad = reference.apply_window(_before_fft(grad, config), config)
        grad = reference.remove_dc_offset(before_preemphasis(grad, config), config)
        return before_frames(grad, waveform.shape[1], config)

    return reference.log_energies(energies, config), pull_back


def before_whole_clip(
    grad: Tensor, log_mel: Tensor, config: FbankConfig, num_frames: list[int] | None
) -> Tensor:
    """Return the gradient before `top_db` and `norm_per_feature`.

    Args:
        grad: Gradient of the energies, shape (batch, num_frames, num_mel_bins).
        log_mel: Energies before these two, likewise; `config.log_silence` beyond the clips.
        config: The conventions.
        num_frames: Frames that count in each clip; None is all.
    """
    if not config.use_log_fbank:
        return grad
    kept = log_mel
    if config.top_db > 0:
        loudest = log_mel.amax(dim=(1, 2), keepdim=True)
        kept = torch.maximum(log_mel, loudest - config.top_range)
    if config.norm_per_feature:
        counts = [log_mel.shape[1]] * log_mel.shape[0] if num_frames is None else num_frames
        grad = _before_norm(grad, kept, counts)
    if config.top_db > 0:
        raised = grad.masked_fill(log_mel == kept, 0.0)
        loud = (log_mel == loudest).to(grad.dtype)
        to_loudest = raised.sum(dim=(1, 2), keepdim=True) / loud.sum(dim=(1, 2), keepdim=True)
        grad = grad - raised + to_loudest * loud
    return grad


def _before_norm(grad: Tensor, log_mel: Tensor, counts: list[int]) -> Tensor:
    outside = beyond_counts(counts, log_mel)[..., None]
    count = torch.tensor(counts, device=log_mel.device)[:, None, None].clamp(min=1)
    grad = grad.masked_fill(outside, 0.0)
    mean = log_mel.masked_fill(outside, 0.0).sum(dim=1, keepdim=True) / count
    centred = (log_mel - mean).masked_fill(outside, 0.0)
    degrees = (count - 1).clamp(min=1)
    deviation = (centred.square().sum(dim=1, keepdim=True) / degrees).sqrt()
    scale = deviation + tables.NORM_EPSILON
    slope = (grad * centred).sum(dim=1, keepdim=True) / (scale.square() * deviation * degrees)
    grad = grad / scale - centred * slope.masked_fill(deviation == 0.0, 0.0)
    return (grad - grad.sum(dim=1, keepdim=True) / count).masked_fill(outside, 0.0)


def _before_mel_banks(grad: Tensor, config: FbankConfig) -> Tensor:
    if not config.mel_filters:
        return grad / config.fft_size if config.divide_by_n_fft else grad
    banks = torch.tensor(tables.mel_banks(config), dtype=grad.dtype, device=grad.device)
    return exact_product(grad, banks)


def _before_log(grad: Tensor, energies: Tensor, config: FbankConfig) -> Tensor:
    if not config.use_log_fbank:
        return grad
    energies = energies + config.log_offset
    floored = energies == 0.0 if config.floor_zeros_only else energies < config.log_floor
    return grad * config.log_factor / energies.masked_fill(floored, math.inf)


def _before_fft(grad: Tensor, config: FbankConfig) -> Tensor:
    """Return the frames' gradient from that of the lower half of their FFT."""
    halves = grad.real.new_full(grad.shape[-1:], 0.5 * config.fft_size)
    halves[0] = halves[-1] = config.fft_size
    frames: Tensor = torch.fft.irfft(grad * halves, n=config.fft_size)
    return frames[..., : config.window_size]


def before_preemphasis(grad: Tensor, config: FbankConfig) -> Tensor:
    """Return the frames' gradient from that of the pre-emphasised frames."""
    if config.preemphasis_coefficient == 0.0 or config.preemphasis_over == "waveform":
        return grad
    # A frame's first sample precedes itself as well as the second.
    following = pad(grad[..., 1:], (0, 1))
    following = torch.cat((following[..., :1] + grad[..., :1], following[..., 1:]), dim=-1)
    return grad - config.preemphasis_coefficient * following


def before_frames(grad: Tensor, num_samples: int, config: FbankConfig) -> Tensor:
    """Sum the frames' gradients at each sample, mirrored ones included; then scale them back."""
    # Frames cut from the sample numbers 1, 2, … tell which samples they hold; 0 is padding.
    numbers = torch.arange(1, num_samples + 1, dtype=torch.float64, device=grad.device)
    places = reference.cut_frames(numbers, config).flatten().long().expand(grad.shape[0], -1)
    total = grad.new_zeros(grad.shape[0], 1 + num_samples)
    total = total.scatter_add(1, places, grad.flatten(1))[:, 1:]
    if config.preemphasis_over == "waveform":
        total = total - config.preemphasis_coefficient * pad(total[:, 1:], (0, 1))
    return total * config.waveform_scale
