"""The filterbank on the GPU: one launch for an FFT of 512 points, else Triton around torch's FFT.

Cannot avoid: reading the samples and writing the energies, 11 µs for 64 clips of 5 s on an H100.
The one launch is bound by its instructions, about 1,000 per frame and warp: 34 µs at the rate at
which an H100 can start them. Other FFTs need three launches for each chunk of frames; a chunk fills
half of the second-level cache, because frames and spectra are 15 times as many bytes. Measured
share: none yet; `docs/triton.md` has the compiled kernels and a model of them.

Arithmetic is float32, as the reference's: a DFT by TF32 loses the quiet bins of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ast_fast_kernels._gpu import occupancy
from ast_fast_kernels._gpu.fft import complex_fft, exchange, real_fft, stack, unstack
from ast_fast_kernels._gpu.launch import ALIGNMENT, PREPARED, Launch, Plan, Prepared, on_its_device
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.whole_clip import over_whole_clip

MOST_SAMPLES = 8192
"""Longest frame that a program holds in registers."""

MOST_PLACES = 2**31 - 2**15
"""A clip has fewer samples than this, so that 32 bits index them and a frame's padding beyond: 37
hours at 16 kHz."""

SMALL, RAISE = tl.constexpr(2.0**-40), tl.constexpr(2.0**96)
LARGE, LOWER = tl.constexpr(2.0**60), tl.constexpr(2.0**-80)
"""Parts of a spectrum below SMALL or above LARGE are scaled before they are squared: their squares
would lose bits or overflow."""

NONE, ZEROS, SYMMETRIC, REFLECT = 0, 1, 2, 3
PADDING = {"constant": ZEROS, "symmetric": SYMMETRIC, "reflect": REFLECT}

FRAME_LAUNCHES = {
    samples: Launch.of(BLOCK_N=samples, BLOCK_F=max(1, 1024 // samples), num_warps=4)
    for samples in (32, 64, 128, 256, 512, 1024, 2048)
} | {samples: Launch.of(BLOCK_N=samples, BLOCK_F=1, num_warps=8) for samples in (4096, 8192)}
"""FFTs up to the key's length → their blocks of frames."""

MEL_LAUNCH = Launch.of(BLOCK_F=32, BLOCK_M=32, num_warps=4)

FUSED_FFT = 512
FUSED_BLOCK = 8
"""Frames that a program of the one launch takes at once, with 16 threads each."""
FUSED_LAUNCHES = {
    mel_bins: Launch.of(BLOCK_F=FUSED_BLOCK, BLOCK_M=mel_bins, num_warps=4)
    for mel_bins in (32, 64, 128)
}
"""Mel bins up to the key (the last serves any number) → the blocks of the one launch."""

DEFAULT_CACHE_BYTES = 16 << 20
"""Used if a device does not report the size of its second-level cache."""


@triton.jit
def _source_index(index, count, PADDING: tl.constexpr):
    """Return the index that a sample beyond an end is mirrored to, as often as needed.

    Without signs: the period is up to twice a clip.
    """
    repeats: tl.constexpr = 1 if PADDING == 2 else 0  # of the edge samples
    index = tl.where(index < 0, -index - repeats, index).to(tl.uint32)
    count = count.to(tl.uint32)
    period = tl.where(count + repeats > 1, 2 * (count + repeats) - 2, 1).to(tl.uint32)
    index = index % period
    return tl.where(index < count, index, period - repeats - index).to(tl.int32)


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
        mask = mask & (count > 0)
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
def _magnitude_scale(largest):
    """Return the power of two that brings numbers this large to where squares are exact; 1/it."""
    scale = tl.where(largest < SMALL, RAISE, tl.where(largest > LARGE, LOWER, 1.0))
    inverse = tl.where(largest < SMALL, 1.0 / RAISE, tl.where(largest > LARGE, 1.0 / LOWER, 1.0))
    return scale, inverse


@triton.jit
def _level(re, im, USE_POWER: tl.constexpr):
    """Return the power or the magnitude of complex numbers."""
    if USE_POWER:
        return re * re + im * im
    scale, inverse = _magnitude_scale(tl.maximum(tl.abs(re), tl.abs(im)))
    re, im = re * scale, im * scale
    return tl.sqrt_rn(re * re + im * im) * inverse


@triton.jit
def _logarithms(
    energies, log_floor, log_offset, log_factor, log_shift, USE_LOG: tl.constexpr,
    FLOOR_ZEROS_ONLY: tl.constexpr,
):  # fmt: skip
    if USE_LOG:
        energies += log_offset
        if FLOOR_ZEROS_ONLY:
            energies = tl.where(energies == 0.0, log_floor, energies)
        else:
            energies = tl.where(energies < log_floor, log_floor, energies)  # NaN stays
        energies = tl.log(energies) * log_factor + log_shift
    return energies


@triton.jit(do_not_specialize=["num_samples", "num_frames", "first", "last"])
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
        # Around the first sample, so that the mean of equal samples is exact.
        size = tl.zeros((BLOCK_F,), tl.float32) + window_size
        first_index = (first_sample + place * hop).to(tl.int32)[:, None]
        start = _load_samples(
            clip_ptr, stride_n, first_index, count, used[:, None], scale, preemphasis, IS_INT16,
            PADDING, EMPHASISE_WAVEFORM,
        )  # fmt: skip
        differences = tl.where(mask, x - start, 0.0)
        mean = start + tl.div_rn(tl.sum(differences, 1), size)[:, None]
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


@triton.jit(do_not_specialize=["num_frames", "first", "last"])
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
        # Weights beyond a narrower filter are 0; a NaN there still shows, as in its whole frame.
        mask = used[:, None] & (bins + j < num_bins)[None, :]
        ptrs = row_ptrs + ((bins + j) * 2)[None, :]
        real = tl.load(ptrs, mask=mask, other=0.0)
        imaginary = tl.load(ptrs + 1, mask=mask, other=0.0)
        energies += weights[None, :] * _level(real, imaginary, USE_POWER)
    energies = _logarithms(
        energies, log_floor, log_offset, log_factor, log_shift, USE_LOG, FLOOR_ZEROS_ONLY
    )
    energies = tl.where(used[:, None], energies, log_silence)
    out_ptrs = out_ptr + (frame * num_mel_bins)[:, None] + mel[None, :]
    tl.store(out_ptrs, energies, mask=mask_f[:, None] & mask_m[None, :])


@triton.jit(do_not_specialize=["clips", "num_samples", "num_frames"])
def _fbank_fused_kernel(
    samples_ptr, counts_ptr, frame_counts_ptr, window_ptr, cosines_ptr, sines_ptr,
    middle_factors_ptr, bins_ptr, weights_ptr, widths_ptr, scratch_ptr, out_ptr, stride_b,
    stride_n, clips, num_samples, num_frames, hop, first_sample, preemphasis, num_mel_bins,
    log_floor, log_offset, log_factor, log_shift, log_silence, WINDOW_SIZE: tl.constexpr,
    HAS_COUNTS: tl.constexpr, PADDING: tl.constexpr, REMOVE_DC: tl.constexpr,
    EMPHASISE_FRAMES: tl.constexpr, EMPHASISE_WAVEFORM: tl.constexpr, USE_POWER: tl.constexpr,
    USE_LOG: tl.constexpr, FLOOR_ZEROS_ONLY: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program: one block of BLOCK_F frames after another, 16 threads per frame; FFTs of 512.

    Sample 16 a + b is point a of thread b, so a transform of 32 real points over a needs no other
    thread. After one exchange, thread k holds what frequencies k + 32 j need, for 16 values of j;
    the upper half of these mirror those of 32 - k. Only frequencies 16 + 32 j are missing: they are
    sums over one value of each thread. Powers go to the filters through memory that stays in the
    caches. The window includes every factor on the samples, and the half that `real_fft` needs.
    """
    blocks = tl.cdiv(num_frames, BLOCK_F)
    row = tl.arange(0, BLOCK_F * 16)
    frame_of_row, b = row // 16, row % 16
    column = tl.arange(0, 16)[None, :]
    powers_ptr = scratch_ptr + tl.program_id(0).to(tl.int64) * BLOCK_F * (256 + 16)
    middle_ptr = powers_ptr + BLOCK_F * 256
    frame_in_block = tl.arange(0, BLOCK_F)
    STEP: tl.constexpr = BLOCK_F * 16 // BLOCK_M
    PARTS: tl.constexpr = BLOCK_F // STEP
    for block in range(tl.program_id(0), clips * blocks, tl.num_programs(0)):
        clip = (block // blocks).to(tl.int64)
        first = block % blocks * BLOCK_F
        count = num_samples
        frame_count = num_frames
        if HAS_COUNTS:
            count = tl.load(counts_ptr + clip).to(tl.int32)
            frame_count = tl.load(frame_counts_ptr + clip).to(tl.int32)
        # Rows of frames that do not count read the clip's first; their results are not kept.
        frame = tl.where(first + frame_of_row < frame_count, first + frame_of_row, 0)
        start = first_sample + frame * hop
        clip_ptr = samples_ptr + clip * stride_b
        ptrs = clip_ptr + (start + b).to(tl.int64) * stride_n
        first_of_frame = tl.zeros((BLOCK_F * 16,), tl.float32)
        if REMOVE_DC:
            first_of_frame = _load_samples(
                clip_ptr, stride_n, start, count, b >= 0, 1.0, preemphasis, False, PADDING,
                EMPHASISE_WAVEFORM,
            )  # fmt: skip
        samples, befores = (), ()
        total = tl.zeros((BLOCK_F * 16,), tl.float32)
        for a in tl.static_range((WINDOW_SIZE + 15) // 16):
            # The first sample of a frame is its own predecessor.
            back = tl.where(b > 0, 1, 0) if a == 0 else 1
            inside = 16 * a + b < WINDOW_SIZE
            if PADDING == 0 and not EMPHASISE_WAVEFORM:
                x = tl.load(ptrs + 16 * a * stride_n, mask=inside, other=0).to(tl.float32)
                before = x
                if EMPHASISE_FRAMES:
                    before = tl.load(ptrs + (16 * a - back) * stride_n, mask=inside, other=0)
            else:
                x = _load_samples(
                    clip_ptr, stride_n, start + 16 * a + b, count, inside, 1.0, preemphasis, False,
                    PADDING, EMPHASISE_WAVEFORM,
                )  # fmt: skip
                before = x
                if EMPHASISE_FRAMES:
                    before = _load_samples(
                        clip_ptr, stride_n, start + 16 * a + b - back, count, inside, 1.0,
                        preemphasis, False, PADDING, False,
                    )  # fmt: skip
            samples = samples + (x,)
            befores = befores + (before.to(tl.float32),)
            if REMOVE_DC:
                difference = x - first_of_frame
                if 16 * a + 16 > WINDOW_SIZE:
                    difference = tl.where(inside, difference, 0.0)
                total += difference
        mean = tl.zeros((BLOCK_F * 16,), tl.float32)
        if REMOVE_DC:
            # Around the first sample, so that the mean of equal samples is exact.
            sums = tl.sum(tl.reshape(total, (BLOCK_F, 16)), 1)
            means = tl.div_rn(sums, tl.full((BLOCK_F,), WINDOW_SIZE, tl.float32))
            spread = tl.broadcast_to(means[:, None], (BLOCK_F, 16))
            mean = first_of_frame + tl.reshape(spread, (BLOCK_F * 16,))
        points = ()
        for a in tl.static_range(32):
            if a < (WINDOW_SIZE + 15) // 16:
                x = samples[a] - mean
                if EMPHASISE_FRAMES:
                    x = x - preemphasis * (befores[a] - mean)
                points = points + (x * tl.load(window_ptr + 16 * a + b),)
            else:
                points = points + (tl.zeros((BLOCK_F * 16,), tl.float32),)

        re, im = real_fft(points)
        middle = re[16]
        re, im = stack(re[:16]), stack(im[:16])  # (threads b, frequencies k)
        places = b[:, None] * 16 + column
        cosines = tl.load(cosines_ptr + places)
        sines = tl.load(sines_ptr + places)
        re, im = re * cosines + im * sines, im * cosines - re * sines
        re, im = complex_fft(unstack(exchange(re, BLOCK_F)), unstack(exchange(im, BLOCK_F)))
        power_ptrs = powers_ptr + frame_of_row * 256 + b
        for j in tl.static_range(16):
            power = _level(re[j], im[j], USE_POWER)
            if j < 8:
                tl.store(power_ptrs + 32 * j, power)
            else:  # of frequency 32 j + k, the mirror of 32 (16 - j) - k; thread 0 has it already
                tl.store(power_ptrs + (512 - 32 * j) - 2 * b, power, mask=b > 0)
        tl.store(middle_ptr + row, middle)
        tl.debug_barrier()
        # Frequencies 16 + 32 j: cosines' sums in threads j, sines' in threads 8 + j.
        factors = tl.load(middle_factors_ptr + column * 16 + b[:, None])
        part = tl.sum(factors * tl.load(middle_ptr + frame_of_row[:, None] * 16 + column), 1)
        parts = tl.reshape(part, (BLOCK_F, 2, 8))
        if USE_POWER:
            middle_power = tl.sum(parts * parts, 1)
        else:
            scale, inverse = _magnitude_scale(tl.max(tl.abs(parts), 1))
            parts = parts * scale[:, None, :]
            middle_power = tl.sqrt_rn(tl.sum(parts * parts, 1)) * inverse
        middle_bins = 16 + 32 * tl.arange(0, 8)
        tl.store(powers_ptr + frame_in_block[:, None] * 256 + middle_bins[None, :], middle_power)
        tl.debug_barrier()

        # A thread has one filter and every STEP-th frame, so nothing here is exchanged; the
        # tiles of two dimensions that this could be get another layout from each Triton.
        out_rows = out_ptr + (clip * num_frames + first) * num_mel_bins
        for first_mel in range(0, num_mel_bins, BLOCK_M):
            mel = first_mel + row % BLOCK_M
            mask_m = mel < num_mel_bins
            bins = tl.load(bins_ptr + mel, mask=mask_m, other=0)
            bin_ptrs = powers_ptr + row // BLOCK_M * 256 + bins
            energies = ()
            for _ in tl.static_range(PARTS):
                energies = energies + (tl.zeros((BLOCK_F * 16,), tl.float32),)
            for place in range(tl.load(widths_ptr + first_mel // BLOCK_M)):
                weights = tl.load(weights_ptr + place * num_mel_bins + mel, mask=mask_m, other=0.0)
                mask_bin = bins + place < 256
                longer = ()
                for i in tl.static_range(PARTS):
                    powers = tl.load(bin_ptrs + i * STEP * 256 + place, mask=mask_bin, other=0.0)
                    longer = longer + (energies[i] + weights * powers,)
                energies = longer
            for i in tl.static_range(PARTS):
                log_mel = _logarithms(
                    energies[i], log_floor, log_offset, log_factor, log_shift, USE_LOG,
                    FLOOR_ZEROS_ONLY,
                )  # fmt: skip
                place_f = i * STEP + row // BLOCK_M
                log_mel = tl.where(first + place_f < frame_count, log_mel, log_silence)
                mask_out = (first + place_f < num_frames) & mask_m
                tl.store(out_rows + (place_f * num_mel_bins + mel), log_mel, mask=mask_out)
        tl.debug_barrier()  # before the next block's powers


class Tables(NamedTuple):
    """A config's constants on a device, its filters in blocks."""

    window: Tensor  # float32 (window_size,)
    bins: Tensor  # int32 (num_mel_bins,), the first bin of each filter
    weights: Tensor  # float32 (widest filter, num_mel_bins)
    widths: Tensor  # int32 (blocks of filters,), bins of the widest filter of each


@on_its_device
def fbank_triton(
    waveform: Tensor,
    config: FbankConfig,
    out: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Return log-mel energies of a batch on its GPU.

    Args:
        waveform: Shape (batch, num_samples), float32 or int16 (taken as sample / 32768), of any
            strides; it is read in place.
        config: The conventions; `unsupported(config)` is None.
        out: Contiguous float32 that takes the result, shape (batch, num_frames, num_mel_bins).
        counts: Samples that count in each waveform, on its device; frames beyond them are
            `config.log_silence`. No more than num_samples are read, whatever it holds.
    """
    batch, num_samples = waveform.shape
    if num_samples * waveform.stride(1) >= MOST_PLACES:  # samples are addressed by 32 bits
        waveform = waveform.contiguous()
    num_frames = config.num_frames(num_samples)
    if out is None:
        shape = (batch, num_frames, config.num_mel_bins)
        out = waveform.new_empty(shape, dtype=torch.float32)
    frame_counts = None
    if counts is not None:
        counts = counts.to(torch.int64).clamp(0, num_samples).contiguous()
        frame_counts = config.num_frames(counts)
    if is_fused(config):
        launch_fbank_fused(waveform, config, out, counts, frame_counts)
    else:
        _in_chunks(waveform, config, out, counts, frame_counts)
    if config.needs_whole_clip:
        every = waveform.new_full((batch,), num_frames, dtype=torch.int64)
        out.copy_(over_whole_clip(out, config, every if frame_counts is None else frame_counts))
    return out


def _in_chunks(
    waveform: Tensor,
    config: FbankConfig,
    out: Tensor,
    counts: Tensor | None,
    frame_counts: Tensor | None,
) -> None:
    """Fill `out` by frames, FFTs and filters of one chunk of frames after another."""
    batch, num_frames, _ = out.shape
    n_fft = config.fft_size
    step = _frames_of_a_chunk(waveform.device, n_fft)
    for first in range(0, batch * num_frames, step):
        last = min(first + step, batch * num_frames)
        frames = waveform.new_empty(last - first, n_fft, dtype=torch.float32)
        launch_fbank_frames(waveform, config, frames, first, counts, frame_counts, num_frames)
        launch_fbank_mel(torch.fft.rfft(frames), config, out, first, frame_counts)


def launch_fbank_fused(
    waveform: Tensor,
    config: FbankConfig,
    out: Tensor,
    counts: Tensor | None,
    frame_counts: Tensor | None,
) -> None:
    """Fill `out` (batch, num_frames, num_mel_bins), contiguous float32, in one launch.

    Args:
        waveform: Shape (batch, num_samples), float32 or int16, of any strides.
        config: The conventions, with an FFT of 512.
        out: Receives the energies.
        counts: Samples that count in each clip, or None.
        frame_counts: Frames that count in each clip, or None.
    """
    clips, num_frames, _ = out.shape
    at_once = clips_of_a_launch(num_frames, FUSED_BLOCK)
    if clips > at_once:
        for first in range(0, clips, at_once):
            part = slice(first, first + at_once)
            of_part = (None if of is None else of[part] for of in (counts, frame_counts))
            launch_fbank_fused(waveform[part], config, out[part], *of_part)
        return
    layout = waveform.shape, waveform.stride(), waveform.dtype, waveform.device
    prepare_fused(config, *layout, counts is not None)(waveform, out, counts, frame_counts)


class FusedForm:
    """The fused kernel for a config, dtype and device: constants, tables and programs."""

    def __init__(
        self, config: FbankConfig, dtype: torch.dtype, device: torch.device, has_counts: bool
    ) -> None:
        """Put the tables on the device.

        Raises:
            RuntimeError: The current stream captures a CUDA graph, and they are not there yet.
        """
        launch, constants = fused_launch(config, has_counts)
        filters = device_tables(config, device, launch["BLOCK_M"])
        factors = fused_tables(config, device, dtype == torch.int16)
        self.constants = {**constants, **launch.arguments}
        self.tables = (*factors, filters.bins, filters.weights, filters.widths)
        self.numbers = (
            config.window_shift, config.first_sample, config.preemphasis_coefficient,
            config.num_mel_bins, config.log_floor, config.log_offset, config.log_factor,
            config.log_shift, config.log_silence,
        )  # fmt: skip
        self._device = device
        self._programs: dict[tuple[bool, ...], int] = {}

    def most_programs(self, tensors: tuple[Tensor | None, ...], numbers: tuple[float, ...]) -> int:
        """Return how many programs the device holds at once, by the code for these arguments."""
        gpu = occupancy.gpu_of(self._device)
        if gpu is None:
            return 2  # the interpreter's: several blocks to a program, as on a GPU
        # What Triton compiles other code for, besides this object's own constants.
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        key = (
            *(address % ALIGNMENT == 0 for address in addresses),
            *(is_so for stride in numbers[:2] for is_so in (stride == 1, stride % 16 == 0)),
        )
        if key not in self._programs:
            compiled = _fbank_fused_kernel.warmup(*tensors, *numbers, grid=(1,), **self.constants)
            if compiled is None:  # a hook of Triton's keeps it from compiling, and so from running
                return 1
            self._programs[key] = occupancy.programs_at_once(compiled, gpu, self._device)
        return self._programs[key]


fused_form = cache(FusedForm)
"""Returns a config's form; arguments as in `FusedForm`. Never freed: a captured CUDA graph keeps
reading its tables."""


class Fused:
    """The one launch for batches of one layout."""

    def __init__(
        self,
        config: FbankConfig,
        shape: torch.Size,
        strides: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        has_counts: bool,
        programs: int | None = None,
    ) -> None:
        """Prepare the launch.

        Args:
            config: The conventions, with an FFT of 512.
            shape: The waveforms', (batch, num_samples), neither of them 0.
            strides: The same.
            dtype: The same, float32 or int16.
            device: The same.
            has_counts: Whether only a part of each counts.
            programs: The most to start; None starts as many as the device holds at once.
        """
        self._form = fused_form(config, dtype, device, has_counts)
        clips, num_samples = shape
        num_frames = config.num_frames(num_samples)
        self._numbers = (*strides, clips, num_samples, num_frames, *self._form.numbers)
        self._blocks = clips * triton.cdiv(num_frames, FUSED_BLOCK)
        self._device, self._most = device, programs
        self._prepared: tuple[Prepared, tuple[int, int]] | None = None  # and its scratch's shape

    @property
    def is_compiled(self) -> bool:
        """Whether later calls start the compiled kernel."""
        return self._prepared is not None and self._prepared[0].is_bound

    def __call__(
        self, samples: Tensor, out: Tensor, counts: Tensor | None, frame_counts: Tensor | None
    ) -> None:
        """Fill `out` (batch, num_frames, num_mel_bins); arguments as in `launch_fbank_fused`.

        Leading dimensions are not looked at: a single clip and its energies may have none.
        """
        given = samples, counts, frame_counts, *self._form.tables
        if self._prepared is None:
            self._prepared = self._prepare((*given, out, out))
        launch, shape = self._prepared  # together: threads may prepare other numbers of programs
        scratch = samples.new_empty(shape, dtype=torch.float32)
        launch(*given, scratch, out)

    def _prepare(self, tensors: tuple[Tensor | None, ...]) -> tuple[Prepared, tuple[int, int]]:
        most = self._most
        if most is None:
            most = self._form.most_programs(tensors, self._numbers)
        programs = min(self._blocks, most)
        plan = Plan(_fbank_fused_kernel, programs, self._numbers, self._form.constants)
        return Prepared(plan, self._device), (programs, FUSED_BLOCK * (256 + 16))


prepare_fused = lru_cache(maxsize=PREPARED)(Fused)
"""Returns what runs batches of one layout; arguments as in `Fused`."""


def is_fused(config: FbankConfig) -> bool:
    """Say whether the one launch computes a config: it has no bin at Nyquist."""
    return config.fft_size == FUSED_FFT and not tables.reach_nyquist(config)


def clips_of_a_launch(num_frames: int, block: int) -> int:
    """Return how many clips have so few blocks of frames that 32 bits count them."""
    return max(1, MOST_PLACES // -(-num_frames // block))


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
    window = device_tables(config, waveform.device, MEL_LAUNCH["BLOCK_M"]).window
    _fbank_frames_kernel[triton.cdiv(len(frames), launch["BLOCK_F"]),](
        waveform, counts, frame_counts, window, frames,
        waveform.stride(0), waveform.stride(1), waveform.shape[1], num_frames, first,
        first + len(frames), config.window_size, config.window_shift, config.first_sample,
        config.fft_size, config.waveform_scale, config.preemphasis_coefficient,
        **constants, **launch.arguments,
    )  # fmt: skip


def frames_launch(
    config: FbankConfig, is_int16: bool, has_counts: bool
) -> tuple[Launch, dict[str, bool | int]]:
    """Return the launch of the frames' kernel and the constants of its code."""
    launch = FRAME_LAUNCHES[max(32, triton.next_power_of_2(config.fft_size))]
    return launch, {"IS_INT16": is_int16, **_framing_constants(config, has_counts)}


def fused_launch(config: FbankConfig, has_counts: bool) -> tuple[Launch, dict[str, bool | int]]:
    """Return the launch of the fused kernel and the constants of its code."""
    constants = _framing_constants(config, has_counts) | mel_constants(config, has_counts)
    mel_bins = min(max(triton.next_power_of_2(config.num_mel_bins), 32), 128)
    return FUSED_LAUNCHES[mel_bins], {"WINDOW_SIZE": config.window_size, **constants}


def _framing_constants(config: FbankConfig, has_counts: bool) -> dict[str, bool | int]:
    padding = NONE
    if config.pad_tail:
        padding = ZEROS
    elif not config.snip_edges:
        padding = PADDING[config.pad_mode]
    emphasises = config.preemphasis_coefficient != 0.0
    over_waveform = config.preemphasis_over == "waveform"
    return {
        "HAS_COUNTS": has_counts,
        "PADDING": padding,
        "REMOVE_DC": config.remove_dc_offset,
        "EMPHASISE_FRAMES": emphasises and not over_waveform,
        "EMPHASISE_WAVEFORM": emphasises and over_waveform,
    }


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
        first: First of the batch's frames to fill.
        frame_counts: Frames that count in each clip, or None.
    """
    constants = device_tables(config, out.device, MEL_LAUNCH["BLOCK_M"])
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
    """Say which convention this backend does not support; None when it supports them all."""
    if config.dither != 0.0:
        return f"triton adds no dither, got dither {config.dither:g}"
    if config.fft_size > MOST_SAMPLES:
        return f"triton needs an FFT length of at most {MOST_SAMPLES}, got {config.fft_size}"
    return None


@cache  # never freed: a captured CUDA graph keeps reading them
def device_tables(config: FbankConfig, device: torch.device, block: int) -> Tables:
    """Return window and filters on a device, rounded once to float32.

    Args:
        config: The conventions.
        device: Where to put them.
        block: Filters of a block, for `widths`.
    """
    banks = tables.mel_banks(config).astype(np.float32)
    covered = banks != 0.0
    firsts = np.where(covered.any(axis=1), covered.argmax(axis=1), 0)
    ends = np.where(covered.any(axis=1), banks.shape[1] - covered[:, ::-1].argmax(axis=1), 0)
    widths = ends - firsts
    weights = np.zeros((max(widths.max(), 1), len(banks)), np.float32)
    for mel, (begin, width) in enumerate(zip(firsts, widths, strict=True)):
        weights[:width, mel] = banks[mel, begin : begin + width]
    widest = [max(widths[mel : mel + block].max(), 1) for mel in range(0, len(banks), block)]
    arrays = (
        tables.window(config).astype(np.float32),
        firsts.astype(np.int32),
        weights,
        np.array(widest, np.int32),
    )
    return Tables(*_on_device(arrays, device))


@cache
def fused_tables(
    config: FbankConfig, device: torch.device, is_int16: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the fused kernel's window and factors on a device, rounded once to float32.

    Returns:
        The window times every factor on the samples and one half, shape (512,); cosines and sines
        of 2 pi b k / 512, shape (16, 16) each; and those of 2 pi b (2 j + 1) / 32, cosines beside
        sines, shape (16, 16).
    """
    window = np.zeros(FUSED_FFT)
    scale = 0.5 * config.waveform_scale * (2.0**-15 if is_int16 else 1.0)
    window[: config.window_size] = scale * tables.window(config)
    sixteen = np.arange(16)
    turns = 2 * np.pi / FUSED_FFT * np.outer(sixteen, sixteen)
    middle = 2 * np.pi / 32 * np.outer(sixteen, 2 * np.arange(8) + 1)
    arrays = (
        window,
        np.cos(turns),
        np.sin(turns),
        np.concatenate([np.cos(middle), np.sin(middle)], axis=1),
    )
    rounded = [array.astype(np.float32) for array in arrays]
    window_, cosines, sines, factors = _on_device(rounded, device)
    return window_, cosines, sines, factors


def _on_device(arrays: Sequence[np.ndarray[Any, Any]], device: torch.device) -> list[Tensor]:
    """Return the arrays on a device.

    Raises:
        RuntimeError: The current stream captures a CUDA graph, which takes no copy from the host.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"fbank's tables for this config are not on {device} yet, and a stream that captures a "
            "CUDA graph cannot copy them there; call fbank once with the same config, dtype and "
            "device before the capture"
        )
    return [torch.from_numpy(array).to(device) for array in arrays]


@lru_cache(maxsize=64)
def _frames_of_a_chunk(device: torch.device, n_fft: int) -> int:
    """Return how many frames, with their spectra, fill half of the second-level cache."""
    size = DEFAULT_CACHE_BYTES
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).L2_cache_size or size
    return max(1024, size // 2 // (8 * n_fft))
