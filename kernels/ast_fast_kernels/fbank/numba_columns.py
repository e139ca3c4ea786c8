"""What stands beside or instead of a clip's log-mel energies: frames' energies, cepstra.

Cannot avoid, for the energies of 5 s at 16 kHz: 498 frames of 400 samples, read from the nearest
cache twice, at three vector operations for each eight: 75,000 of them, a thirtieth of the
filterbank's. For 13 cepstra of 23 filters: 34,000 more. torch's operators would wait for its
threads, one after the other. A vector has eight lanes on every machine, so that sums have the same
order.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._cpu.compile import source_digest, stage
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.simd import (
    INTEGER_BYTES,
    address_of,
    broadcast,
    doubles_of,
    floats_at,
    integers_of,
    load,
    log,
    maximum,
    multiply_add,
    splat,
    store,
    sum_lanes,
)
from ast_fast_kernels._cpu.team import (
    HEADER,
    NEXT_ITEM,
    NEXT_WORKER,
    compile_worker,
    run_items,
    take,
    team_size,
)
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig

Float32Array = npt.NDArray[np.float32]

LANES = 8

CHUNK = 256
"""Frames that a thread takes at once."""

FRAMES_PER_THREAD = 2048
"""Fewest that justify another thread: a clip of 20 s, ten times its start."""


class Task(NamedTuple):
    """Addresses and sizes, in numbers: integers first."""

    samples: int  # of the first frame
    noise: int  # (num_frames, size); 0 if none
    window: int  # (size,); 0 if energies are taken before it
    scratch: int  # (threads, size + LANES)
    log_mel: int  # (num_frames, num_mel_bins)
    columns: int  # (num_mel_bins, num_ceps in whole vectors); 0 if log_mel is copied, or `out`
    out: int  # (num_frames, width)
    num_frames: int
    size: int
    shift: int
    remove_dc: int
    num_mel_bins: int
    num_ceps: int
    width: int
    energy_at: int  # column; -1 if there is none
    dither: float
    preemphasis: float
    least: float


NUM_FLOATS = 3
NUM_INTEGERS = len(Task._fields) - NUM_FLOATS


class Energy(NamedTuple):
    """What a frame's energy is taken from, and where it goes."""

    samples: Float32Array  # contiguous, before `config.waveform_scale`
    is_raw: bool
    least: float  # smaller ones are raised to it
    column: int
    noise: Float32Array | None  # of variance 1, contiguous, at least (num_frames, window_size)


def finish(
    log_mel: Float32Array,
    columns: Float32Array | None,
    num_ceps: int,
    energy: Energy | None,
    config: FbankConfig,
    *,
    one_more: bool,
) -> Float32Array:
    """Return log-mel energies or their cepstra, with the energy in a column.

    Args:
        log_mel: Contiguous, shape (num_frames, num_mel_bins).
        columns: What makes cepstra of it, contiguous, shape (num_mel_bins, num_ceps), with zeros to
            whole vectors; None is nothing.
        num_ceps: Cepstra to keep; 0 without `columns`.
        energy: None is none.
        config: Kaldi's conventions: dither and pre-emphasis over frames, mirrored edges.
        one_more: Whether the energy's column is one more; otherwise it takes another one's place,
            without `columns` in `log_mel` itself.
    """
    num_frames, num_mel_bins = log_mel.shape
    out = log_mel
    if columns is not None or one_more:
        width = num_mel_bins if columns is None else num_ceps
        out = np.empty((num_frames, width + int(one_more)), np.float32)
    size = config.window_size
    frames = noise = window = None
    if energy is not None:
        frames, noise = _first_frame(energy.samples, config, num_frames), energy.noise
        window = None if energy.is_raw else tables.window(config).astype(np.float32)
    team = team_size()
    threads = max(1, min(team, num_frames // FRAMES_PER_THREAD))
    workers = team if threads > 1 else 1  # any of the team may find a chunk
    scratch = np.empty(workers * (size + LANES), np.float32)
    task = Task(
        0 if frames is None else address_of(frames),
        0 if noise is None else address_of(noise),
        0 if window is None else address_of(window),
        address_of(scratch),
        address_of(log_mel),
        0 if columns is None else address_of(columns),
        address_of(out),
        num_frames,
        size,
        config.window_shift,
        int(config.remove_dc_offset),
        num_mel_bins,
        num_ceps,
        out.shape[1],
        -1 if energy is None else energy.column,
        config.dither,
        config.preemphasis_coefficient,
        0.0 if energy is None else energy.least,
    )
    floats = np.array(task[NUM_INTEGERS:]).view(np.int64).tolist()
    numbers = (*task[:NUM_INTEGERS], *floats)
    run_items(_compiled(source_digest()), numbers, threads, team, shared=True)
    return out


def _first_frame(samples: Float32Array, config: FbankConfig, num_frames: int) -> Float32Array:
    """Return scaled samples from the first frame's first one, mirrored at the ends."""
    if config.waveform_scale != 1.0:
        samples = samples * np.float32(config.waveform_scale)
    first = config.first_sample
    beyond = first + (num_frames - 1) * config.window_shift + config.window_size - len(samples)
    if first < 0 or beyond > 0:
        samples = np.pad(samples, (max(-first, 0), max(beyond, 0)), "symmetric")
    return samples[max(first, 0) :]


@cache
def _compiled(digest: str) -> Any:
    def columns(address: int) -> None:
        digest  # noqa: B018 - part of the key that the code is cached by
        floats_from = address + (HEADER + NUM_INTEGERS) * INTEGER_BYTES
        task = Task(
            *(
                integers_of(address + HEADER * INTEGER_BYTES, NUM_INTEGERS)
                + doubles_of(floats_from, NUM_FLOATS)
            )
        )
        chunk = take(address, NEXT_ITEM)
        if chunk * CHUNK >= task.num_frames:
            return
        place = take(address, NEXT_WORKER) * (task.size + LANES) * FLOAT_BYTES
        scratch = floats_at(task.scratch + place)
        while chunk * CHUNK < task.num_frames:
            for frame in range(chunk * CHUNK, min((chunk + 1) * CHUNK, task.num_frames)):
                if task.columns != 0:
                    _write_cepstra(task, frame, scratch)
                elif task.width > task.num_mel_bins:
                    _copy_energies(task, frame)
                if task.energy_at >= 0:
                    _write_energy(task, frame, scratch)
            chunk = take(address, NEXT_ITEM)

    return compile_worker(columns)


@stage
def _write_cepstra(task: Task, frame: int, scratch: Any) -> None:
    log_mel, columns, out = floats_at(task.log_mel), floats_at(task.columns), floats_at(task.out)
    source, target = frame * task.num_mel_bins, frame * task.width
    stride = (task.num_ceps + LANES - 1) // LANES * LANES
    even = task.num_mel_bins // 2 * 2
    for c in range(0, task.num_ceps, LANES):
        a = b = splat(np.float32(0.0), LANES)
        for m in range(0, even, 2):
            place = m * stride + c
            a = multiply_add(broadcast(log_mel, source + m, LANES), load(columns, place, LANES), a)
            value = broadcast(log_mel, source + m + 1, LANES)
            b = multiply_add(value, load(columns, place + stride, LANES), b)
        if even < task.num_mel_bins:
            last = load(columns, even * stride + c, LANES)
            a = multiply_add(broadcast(log_mel, source + even, LANES), last, a)
        if c + LANES <= task.num_ceps:
            store(out, target + c, a + b)
        else:
            store(scratch, 0, a + b)
            for i in range(task.num_ceps - c):
                out[target + c + i] = scratch[i]


@stage
def _copy_energies(task: Task, frame: int) -> None:
    log_mel, out = floats_at(task.log_mel), floats_at(task.out)
    source, target = frame * task.num_mel_bins, frame * task.width
    if task.energy_at == 0:
        target += 1
    whole = task.num_mel_bins // LANES * LANES
    for m in range(0, whole, LANES):
        store(out, target + m, load(log_mel, source + m, LANES))
    for m in range(whole, task.num_mel_bins):
        out[target + m] = log_mel[source + m]


@stage
def _write_energy(task: Task, frame: int, scratch: Any) -> None:
    source, first, size = floats_at(task.samples), frame * task.shift, task.size
    if task.noise != 0:
        noise = floats_at(task.noise)
        _add_noise(source, first, noise, frame * size, np.float32(task.dither), scratch, size)
        source, first = scratch, 0
    mean = _mean(source, first, size) if task.remove_dc != 0 else np.float32(0.0)
    if task.window == 0:
        energy = _raw_energy(source, first, size, mean)
    else:
        factor = np.float32(-task.preemphasis)
        energy = _windowed_energy(source, first, size, mean, factor, floats_at(task.window))
    least = splat(np.float32(task.least), LANES)
    store(scratch, size, log(maximum(splat(energy, LANES), least)))
    floats_at(task.out)[frame * task.width + task.energy_at] = scratch[size]


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
