"""The energies of a clip's frames on a CPU: one pass for the mean, one for the squares.

Cannot avoid, for 5 s at 16 kHz: 498 frames of 400 samples, read from the nearest cache twice, at
three vector operations for each eight: 75,000 of them, a thirtieth of the filterbank's. A vector
has eight lanes on every machine, so that sums have the same order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.core import types

from ast_fast_kernels._cpu.compile import callback, source_digest, stage
from ast_fast_kernels._cpu.simd import (
    address_of,
    floats_at,
    load,
    multiply_add,
    splat,
    store,
    sum_lanes,
)
from ast_fast_kernels._cpu.threads import compile_lock
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig

Float32Array = npt.NDArray[np.float32]

LANES = 8


def energies(
    samples: Float32Array, config: FbankConfig, is_raw: bool, noise: Float32Array | None
) -> Float32Array:
    """Return the sum of each frame's squares, shape (num_frames,).

    Args:
        samples: Contiguous, shape (num_samples,), before `config.waveform_scale`.
        config: Kaldi's conventions: dither and pre-emphasis over frames, mirrored edges.
        is_raw: Whether it is taken before pre-emphasis and window.
        noise: Of variance 1, contiguous, at least (num_frames, window_size); None is none.
    """
    size, shift = config.window_size, config.window_shift
    num_frames, first = config.num_frames(len(samples)), config.first_sample
    beyond = first + (num_frames - 1) * shift + size - len(samples)
    if config.waveform_scale != 1.0:
        samples = samples * np.float32(config.waveform_scale)
    if first < 0 or beyond > 0:
        samples = np.pad(samples, (max(-first, 0), max(beyond, 0)), "symmetric")
    frames = samples[max(first, 0) :]  # the first one's first sample comes first
    window = tables.window(config).astype(np.float32)
    scratch = np.empty(size, np.float32)
    out = np.empty(num_frames, np.float32)
    _compiled(source_digest()).ctypes(
        address_of(frames),
        0 if noise is None else address_of(noise),
        0 if is_raw else address_of(window),
        address_of(scratch),
        address_of(out),
        num_frames,
        size,
        shift,
        config.remove_dc_offset,
        config.dither,
        config.preemphasis_coefficient,
    )
    return out


@cache
def _compiled(digest: str) -> Any:
    def frame_energies(
        samples_at: int,
        noise_at: int,
        window_at: int,
        scratch_at: int,
        out_at: int,
        num_frames: int,
        size: int,
        shift: int,
        remove_dc: int,
        dither: float,
        preemphasis: float,
    ) -> None:
        digest  # noqa: B018 - part of the key that the code is cached by
        samples, noise = floats_at(samples_at), floats_at(noise_at)
        window, scratch = floats_at(window_at), floats_at(scratch_at)
        out = floats_at(out_at)
        for frame in range(num_frames):
            source, first = samples, frame * shift
            if noise_at != 0:
                _add_noise(samples, first, noise, frame * size, np.float32(dither), scratch, size)
                source, first = scratch, 0
            mean = _mean(source, first, size) if remove_dc != 0 else np.float32(0.0)
            if window_at == 0:
                out[frame] = _raw_energy(source, first, size, mean)
            else:
                factor = np.float32(-preemphasis)
                out[frame] = _windowed_energy(source, first, size, mean, factor, window)

    with compile_lock:
        return callback(types.void(*[types.intp] * 9, types.float64, types.float64), frame_energies)


@stage
def _add_noise(
    samples: Any, first: int, noise: Any, place: int, factor: Any, target: Any, size: int
) -> None:
    factors = splat(factor, LANES)
    whole = size // LANES * LANES
    for n in range(0, whole, LANES):
        x = load(samples, first + n, LANES)
        store(target, n, multiply_add(factors, load(noise, place + n, LANES), x))
    for n in range(whole, size):
        target[n] = multiply_add(factor, noise[place + n], samples[first + n])


@stage
def _mean(samples: Any, first: int, size: int) -> Any:
    """Return a frame's mean, summed around its first sample: so equal values give their own."""
    origin = samples[first]
    origins = splat(origin, LANES)
    a = b = splat(np.float32(0.0), LANES)
    whole = size // (2 * LANES) * (2 * LANES)
    for n in range(first, first + whole, 2 * LANES):
        a = a + (load(samples, n, LANES) - origins)
        b = b + (load(samples, n + LANES, LANES) - origins)
    total = sum_lanes(a + b)
    for n in range(first + whole, first + size):
        total += samples[n] - origin
    return origin + total / np.float32(size)


@stage
def _raw_energy(samples: Any, first: int, size: int, mean: Any) -> Any:
    means = splat(mean, LANES)
    a = b = splat(np.float32(0.0), LANES)
    whole = size // (2 * LANES) * (2 * LANES)
    for n in range(first, first + whole, 2 * LANES):
        x, y = load(samples, n, LANES) - means, load(samples, n + LANES, LANES) - means
        a, b = multiply_add(x, x, a), multiply_add(y, y, b)
    total = sum_lanes(a + b)
    for n in range(first + whole, first + size):
        x_n = samples[n] - mean
        total = multiply_add(x_n, x_n, total)
    return total


@stage
def _windowed_energy(
    samples: Any, first: int, size: int, mean: Any, factor: Any, window: Any
) -> Any:
    """Return a frame's energy after pre-emphasis by -`factor`, and the window."""
    means, factors = splat(mean, LANES), splat(factor, LANES)
    sums = splat(np.float32(0.0), LANES)
    whole = (size - 1) // LANES * LANES
    for n in range(1, 1 + whole, LANES):  # the first sample is its own predecessor
        previous = load(samples, first + n - 1, LANES) - means
        x = multiply_add(factors, previous, load(samples, first + n, LANES) - means)
        x = x * load(window, n, LANES)
        sums = multiply_add(x, x, sums)
    total = sum_lanes(sums)
    own = samples[first] - mean
    x_0 = multiply_add(factor, own, own) * window[0]
    total = multiply_add(x_0, x_0, total)
    for n in range(1 + whole, size):
        x_n = multiply_add(factor, samples[first + n - 1] - mean, samples[first + n] - mean)
        x_n = x_n * window[n]
        total = multiply_add(x_n, x_n, total)
    return total
