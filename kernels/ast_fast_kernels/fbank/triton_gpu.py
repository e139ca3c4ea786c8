"""The filterbank on the GPU: Triton before and after a real FFT of torch, chunk by chunk.

Cannot avoid: reading the samples and writing the energies, 11 µs for 64 clips of 5 s on an H100.
Frames and spectra are 15 times as many bytes, so frames go through both kernels in chunks that
half of the second-level cache holds. Guess: a third of the floor. Measured share: none yet;
`docs/triton.md` has the compiled kernels and a model of them.

Arithmetic is float32, as the reference's: a DFT by TF32 loses the quiet bins of a frame.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ast_fast_kernels._triton import Launch
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.whole_clip import over_whole_clip

MOST_SAMPLES = 8192
"""Longest frame that a program holds in registers."""

NONE, ZEROS, SYMMETRIC, REFLECT = 0, 1, 2, 3
PADDING = {"constant": ZEROS, "symmetric": SYMMETRIC, "reflect": REFLECT}

FRAME_LAUNCHES = {
    samples: Launch.of(BLOCK_N=samples, BLOCK_F=max(1, 1024 // samples), num_warps=4)
    for samples in (32, 64, 128, 256, 512, 1024, 2048)
} | {samples: Launch.of(BLOCK_N=samples, BLOCK_F=1, num_warps=8) for samples in (4096, 8192)}
"""FFTs up to the key's length → their blocks of frames."""

MEL_LAUNCH = Launch.of(BLOCK_F=32, BLOCK_M=32, num_warps=4)

DEFAULT_CACHE_BYTES = 16 << 20
"""Taken where a device does not say how large its second-level cache is."""


@triton.jit
def _source_index(index, count, PADDING: tl.constexpr):
    """Return where a sample beyond an end is mirrored to, as often as needed."""
    repeats: tl.constexpr = 1 if PADDING == 2 else 0  # of the edge samples
    period = tl.maximum(2 * (count - 1 + repeats), 1)
    index = index % period
    index = tl.where(index < 0, index + period, index)  # a remainder has its dividend's sign
    return tl.where(index < count, index, period - repeats - index)


@triton.jit
def _load_samples(
    clip_ptr, stride_n, index, count, mask, scale, preemphasis, IS_INT16: tl.constexpr,
    PADDING: tl.constexpr, EMPHASISE_WAVEFORM: tl.constexpr,
):  # fmt: skip
    """Return scaled samples by index, which may lie beyond the clip's ends."""
    if PADDING == 1:
        mask = mask & (index >= 0) & (index < count)
    elif PADDING >= 2:
        index = _source_index(index, count, PADDING)
    samples = tl.load(clip_ptr + index * stride_n, mask=mask, other=0).to(tl.float32)
    if EMPHASISE_WAVEFORM:
        before = tl.load(clip_ptr + (index - 1) * stride_n, mask=mask & (index > 0), other=0)
        if IS_INT16:
            samples = samples * 3.0517578125e-05 * scale
            return samples - preemphasis * (before.to(tl.float32) * 3.0517578125e-05 * scale)
        return samples * scale - preemphasis * (before.to(tl.float32) * scale)
    if IS_INT16:
        samples = samples * 3.0517578125e-05  # 2 ** -15
    return samples * scale


@triton.jit
def _fbank_frames_kernel(
    samples_ptr, counts_ptr, frame_counts_ptr, window_ptr, frames_ptr, stride_b, stride_n,
    num_samples, num_frames, first, last, window_size, hop, first_sample, n_fft, scale, preemphasis,
    IS_INT16: tl.constexpr, HAS_COUNTS: tl.constexpr, PADDING: tl.constexpr,
    REMOVE_DC: tl.constexpr, EMPHASISE_FRAMES: tl.constexpr, EMPHASISE_WAVEFORM: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_F whole frames in registers, cut, centred, emphasised and windowed."""
    frame = first + tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    clip = frame // num_frames
    place = frame % num_frames
    mask_f = frame < last
    count = tl.full((BLOCK_F,), 0, tl.int32) + num_samples
    used = mask_f
    if HAS_COUNTS:
        count = tl.load(counts_ptr + clip, mask=mask_f, other=0).to(tl.int32)
        used = used & (place < tl.load(frame_counts_ptr + clip, mask=mask_f, other=0))
    offs_n = tl.arange(0, BLOCK_N)
    mask = used[:, None] & (offs_n < window_size)[None, :]
    clip_ptr = samples_ptr + clip[:, None] * stride_b
    index = (first_sample + place * hop).to(tl.int32)[:, None] + offs_n[None, :]
    count = count[:, None]
    x = _load_samples(
        clip_ptr, stride_n, index, count, mask, scale, preemphasis, IS_INT16, PADDING,
        EMPHASISE_WAVEFORM,
    )  # fmt: skip
    if REMOVE_DC:
        mean = (tl.sum(x, 1) / window_size)[:, None]
        x = x - mean
    if EMPHASISE_FRAMES:
        # A frame's first sample is its own predecessor.
        before = index - (offs_n > 0).to(tl.int32)[None, :]
        previous = _load_samples(
            clip_ptr, stride_n, before, count, mask, scale, preemphasis, IS_INT16, PADDING, False
        )
        if REMOVE_DC:
            previous = previous - mean
        x = x - preemphasis * previous
    window = tl.load(window_ptr + offs_n, mask=offs_n < window_size, other=0.0)
    x = tl.where(mask, x * window[None, :], 0.0)
    places = (frame - first)[:, None] * n_fft + offs_n[None, :]
    tl.store(frames_ptr + places, x, mask=mask_f[:, None] & (offs_n < n_fft)[None, :])


@triton.jit
def _fbank_mel_kernel(
    spectrum_ptr, frame_counts_ptr, bins_ptr, weights_ptr, widths_ptr, out_ptr, num_frames, first,
    last, num_bins, num_mel_bins, log_floor, log_offset, log_factor, log_shift, log_silence,
    HAS_COUNTS: tl.constexpr, USE_POWER: tl.constexpr, USE_LOG: tl.constexpr,
    FLOOR_ZEROS_ONLY: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_F frames by BLOCK_M filters, over as many bins as the widest has."""
    blocks = tl.cdiv(num_mel_bins, BLOCK_M)
    block = tl.program_id(0) % blocks
    frame = first + (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    mel = block * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_f, mask_m = frame < last, mel < num_mel_bins
    used = mask_f
    if HAS_COUNTS:
        frame_count = tl.load(frame_counts_ptr + frame // num_frames, mask=mask_f, other=0)
        used = used & (frame % num_frames < frame_count)
    row_ptrs = spectrum_ptr + ((frame - first) * num_bins * 2)[:, None]
    bins = tl.load(bins_ptr + mel, mask=mask_m, other=0)
    energies = tl.zeros((BLOCK_F, BLOCK_M), tl.float32)
    for j in range(tl.load(widths_ptr + block)):
        weights = tl.load(weights_ptr + j * num_mel_bins + mel, mask=mask_m, other=0.0)
        # Weights beyond a narrower filter are 0: only a NaN shows through, as in its whole frame.
        mask = used[:, None] & (bins + j < num_bins)[None, :]
        ptrs = row_ptrs + ((bins + j) * 2)[None, :]
        real = tl.load(ptrs, mask=mask, other=0.0)
        imaginary = tl.load(ptrs + 1, mask=mask, other=0.0)
        power = real * real + imaginary * imaginary
        if not USE_POWER:
            power = tl.sqrt_rn(power)
        energies += weights[None, :] * power
    if USE_LOG:
        energies += log_offset
        if FLOOR_ZEROS_ONLY:
            energies = tl.where(energies == 0.0, log_floor, energies)
        else:
            energies = tl.where(energies < log_floor, log_floor, energies)  # NaN stays
        energies = tl.log(energies) * log_factor + log_shift
    energies = tl.where(used[:, None], energies, log_silence)
    out_ptrs = out_ptr + (frame * num_mel_bins)[:, None] + mel[None, :]
    tl.store(out_ptrs, energies, mask=mask_f[:, None] & mask_m[None, :])


class Tables(NamedTuple):
    """A config's constants on a device."""

    window: Tensor  # float32 (window_size,)
    bins: Tensor  # int32 (num_mel_bins,), the first bin of each filter
    weights: Tensor  # float32 (widest filter, num_mel_bins)
    widths: Tensor  # int32 (blocks of filters,), bins of the widest filter of each


def fbank_triton(
    waveform: Tensor,
    config: FbankConfig,
    out: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Return log-mel energies of a batch on its GPU.

    Args:
        waveform: Shape (batch, num_samples), float32 or int16 (taken as sample / 32768), of any
            strides; it is read where it lies.
        config: The conventions; `unsupported(config)` is None.
        out: Contiguous float32 that takes the result, shape (batch, num_frames, num_mel_bins).
        counts: Samples that count in each waveform, on its device; frames beyond them are
            `config.log_silence`. No more than num_samples are read, whatever it holds.
    """
    batch, num_samples = waveform.shape
    num_frames = config.num_frames(num_samples)
    if out is None:
        shape = (batch, num_frames, config.num_mel_bins)
        out = waveform.new_empty(shape, dtype=torch.float32)
    frame_counts = None
    if counts is not None:
        counts = counts.clamp(0, num_samples)
        frame_counts = config.num_frames(counts)
    n_fft = config.fft_size
    step = _frames_of_a_chunk(waveform.device, n_fft)
    for first in range(0, batch * num_frames, step):
        last = min(first + step, batch * num_frames)
        frames = waveform.new_empty(last - first, n_fft, dtype=torch.float32)
        launch_fbank_frames(waveform, config, frames, first, counts, frame_counts, num_frames)
        launch_fbank_mel(torch.fft.rfft(frames), config, out, first, frame_counts)
    if config.needs_whole_clip:
        every = waveform.new_full((batch,), num_frames, dtype=torch.int64)
        out.copy_(over_whole_clip(out, config, every if frame_counts is None else frame_counts))
    return out


def launch_fbank_frames(
    waveform: Tensor,
    config: FbankConfig,
    frames: Tensor,
    first: int,
    counts: Tensor | None,
    frame_counts: Tensor | None,
    num_frames: int,
) -> None:
    """Fill `frames` (frames, n_fft), contiguous, from the batch's frame `first` on."""
    is_int16 = waveform.dtype == torch.int16
    launch, constants = frames_launch(config, is_int16, counts is not None)
    _fbank_frames_kernel[triton.cdiv(len(frames), launch["BLOCK_F"]),](
        waveform, counts, frame_counts, device_tables(config, waveform.device).window, frames,
        waveform.stride(0), waveform.stride(1), waveform.shape[1], num_frames, first,
        first + len(frames), config.window_size, config.window_shift, config.first_sample,
        config.fft_size, config.waveform_scale, config.preemphasis_coefficient,
        **constants, **launch.arguments,
    )  # fmt: skip


def frames_launch(
    config: FbankConfig, is_int16: bool, has_counts: bool
) -> tuple[Launch, dict[str, bool | int]]:
    """Return the launch of the frames' kernel and the constants of its code."""
    padding = NONE
    if config.pad_tail:
        padding = ZEROS
    elif not config.snip_edges:
        padding = PADDING[config.pad_mode]
    emphasises = config.preemphasis_coefficient != 0.0
    over_waveform = config.preemphasis_over == "waveform"
    constants: dict[str, bool | int] = {
        "IS_INT16": is_int16,
        "HAS_COUNTS": has_counts,
        "PADDING": padding,
        "REMOVE_DC": config.remove_dc_offset,
        "EMPHASISE_FRAMES": emphasises and not over_waveform,
        "EMPHASISE_WAVEFORM": emphasises and over_waveform,
    }
    return FRAME_LAUNCHES[max(32, triton.next_power_of_2(config.fft_size))], constants


def mel_constants(config: FbankConfig, has_counts: bool) -> dict[str, bool]:
    """Return the constants of the filters' kernel."""
    return {
        "HAS_COUNTS": has_counts,
        "USE_POWER": config.use_power,
        "USE_LOG": config.use_log_fbank,
        "FLOOR_ZEROS_ONLY": config.floor_zeros_only,
    }


def launch_fbank_mel(
    spectrum: Tensor, config: FbankConfig, out: Tensor, first: int, frame_counts: Tensor | None
) -> None:
    """Fill `out` (batch, num_frames, num_mel_bins) from frame `first` on, one for each spectrum.

    Args:
        spectrum: Complex, contiguous, shape (frames, n_fft // 2 + 1).
        config: The conventions.
        out: Contiguous float32.
        first: Of the batch's frames.
        frame_counts: Frames that count in each clip, or None.
    """
    constants = device_tables(config, out.device)
    num_frames, num_mel_bins = out.shape[1:]
    blocks = triton.cdiv(len(spectrum), MEL_LAUNCH["BLOCK_F"]) * len(constants.widths)
    _fbank_mel_kernel[blocks,](
        torch.view_as_real(spectrum), frame_counts, constants.bins, constants.weights,
        constants.widths, out, num_frames, first, first + len(spectrum), spectrum.shape[1],
        num_mel_bins, config.log_floor, config.log_offset, config.log_factor, config.log_shift,
        config.log_silence, **mel_constants(config, frame_counts is not None),
        **MEL_LAUNCH.arguments,
    )  # fmt: skip


def unsupported(config: FbankConfig) -> str | None:
    """Say what of the conventions this backend does not do; None when it does them all."""
    if config.dither != 0.0:
        return f"triton adds no dither, got dither {config.dither:g}"
    if config.fft_size > MOST_SAMPLES:
        return f"triton needs an FFT of at most {MOST_SAMPLES}, got {config.fft_size}"
    return None


@lru_cache(maxsize=32)
def device_tables(config: FbankConfig, device: torch.device) -> Tables:
    """Return window and filters on a device, rounded once to float32."""
    banks = tables.mel_banks(config).astype(np.float32)
    covered = banks != 0.0
    firsts = np.where(covered.any(axis=1), covered.argmax(axis=1), 0)
    ends = np.where(covered.any(axis=1), banks.shape[1] - covered[:, ::-1].argmax(axis=1), 0)
    widths = ends - firsts
    weights = np.zeros((max(widths.max(), 1), len(banks)), np.float32)
    for mel, (begin, width) in enumerate(zip(firsts, widths, strict=True)):
        weights[:width, mel] = banks[mel, begin : begin + width]
    block = MEL_LAUNCH["BLOCK_M"]
    widest = [max(widths[mel : mel + block].max(), 1) for mel in range(0, len(banks), block)]
    arrays = (
        tables.window(config).astype(np.float32),
        firsts.astype(np.int32),
        weights,
        np.array(widest, np.int32),
    )
    return Tables(*(torch.from_numpy(array).to(device) for array in arrays))


@lru_cache(maxsize=64)
def _frames_of_a_chunk(device: torch.device, n_fft: int) -> int:
    """Return how many frames, with their spectra, fill half of the second-level cache."""
    size = DEFAULT_CACHE_BYTES
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).L2_cache_size or size
    return max(1024, size // 2 // (8 * n_fft))
