"""The filterbank of numpy arrays by Numba, without torch: checks, choice of a backend, run."""

from __future__ import annotations

import ctypes
import math
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch.optional import is_tensor
from ast_fast_kernels.fbank import again
from ast_fast_kernels.fbank.checks import (
    Lengths,
    check_config,
    check_length,
    numba_obstacle,
    settled_backend,
)
from ast_fast_kernels.fbank.config import FbankConfig

Array = npt.NDArray[Any]

_DTYPES = frozenset(map(np.dtype, (np.float32, np.float64, np.int16)))


def compute(
    waveform: Array,
    config: FbankConfig,
    counts: Array | None,
    out: Array | None,
    keys: Array | None = None,
) -> Array:
    """Do what `fbank` does for an array that Numba can take.

    Args:
        waveform: Checked by `chosen_backend`.
        config: The conventions.
        counts: As `check_lengths` returned them.
        out: Checked by `check_out`.
        keys: As `draw_keys` returned them, if there is dither.
    """
    leading, num_samples = waveform.shape[:-1], waveform.shape[-1]
    shape = (*leading, config.num_frames(num_samples), config.num_mel_bins)
    if 0 in shape:
        return np.empty(shape, np.float32) if out is None else out
    if out is not None and np.may_share_memory(waveform, out):
        waveform = waveform.copy()  # the kernel would read frames that it has overwritten
    rows = _readable(waveform)
    flat_out = None if out is None else np.asarray(out)  # a matrix would stay one, of two axes
    if rows.ndim != 2:
        rows = rows.reshape(math.prod(leading), num_samples)
        flat_out = None if flat_out is None else flat_out.reshape(len(rows), *shape[-2:])
    log_mel: Array = _dispatch.load_backend("fbank", "numba")(
        rows,
        config,
        flat_out,
        None if counts is None else counts.reshape(-1).tolist(),
        None if keys is None else keys.reshape(-1, 2),
    )
    if out is not None:
        return out
    return log_mel if len(shape) == 3 else log_mel.reshape(shape)


def compute_again(waveform: Array, config: FbankConfig, out: object, backend: str) -> Array | None:
    """Compute a clip or a batch if the last call was like this; None if it has to be checked."""
    if type(waveform) is not np.ndarray or not waveform.flags.carray:
        return None
    last = again.take(config, backend, waveform.dtype, waveform.shape)
    if last is None:
        return None
    samples_at = _address(_first_byte(waveform))
    log_mel: Array | None
    if out is None:
        _draw_again(last)
        log_mel = last.task.run(samples_at)
        if waveform.ndim == 1:
            log_mel = log_mel[0]
    else:
        log_mel = _fill_again(last, samples_at, out)
    again.of_thread.passed = last
    return log_mel


def _fill_again(last: again.Passed, samples_at: int, out: object) -> Array | None:
    """Fill `out`, and return it; None if it has to be checked, or the samples to be copied."""
    task = last.task
    if (
        type(out) is not np.ndarray
        or out.dtype is not _FLOAT32
        or out.shape != last.result
        or not out.flags.carray
        or task.normalises
    ):
        return None
    out_at = _address(_first_byte(out))
    if task.overlaps(samples_at, out_at):
        return None
    _draw_again(last)
    task.fill(samples_at, out_at)
    return out


def _draw_again(last: again.Passed) -> None:
    """Draw the keys of a call that is computed for certain: each call draws once."""
    if last.task.keys is not None:
        last.task.keys[:] = draw_keys(last.shape[:-1])


_FLOAT32 = np.dtype(np.float32)

# A third of the time of `ctypes.data`; only of arrays that can be written to.
_address: Callable[[Any], int] = ctypes.addressof
_first_byte: Callable[[Any], Any] = ctypes.c_char.from_buffer


def note_passed(waveform: Array, config: FbankConfig, backend: str) -> None:
    """Take down a call, without lengths, in which Numba computed some frames."""
    if waveform.ndim in (1, 2):
        requested = _dispatch.requested_backend("fbank", backend)
        again.note(config, requested, waveform.dtype, waveform.shape)


def draw_keys(leading: tuple[int, ...]) -> Array:
    """Draw each clip's key for dither from numpy's global generator, int64 (*leading, 2).

    One number a clip, in order: so a batch draws what its clips would one by one.
    """
    keys = np.zeros((*leading, 2), np.int64)
    drawn = np.random.bytes(8 * math.prod(leading))  # noqa: NPY002 - what np.random.seed seeds
    keys[..., 0] = np.frombuffer(drawn, np.int64).reshape(leading)
    return keys


def chosen_backend(waveform: Array, config: FbankConfig, backend: str) -> str:
    """Check a waveform and its config, and return the backend that runs."""
    if waveform.dtype not in _DTYPES:
        raise TypeError(f"waveform must be float32, float64 or int16, got {waveform.dtype}")
    if isinstance(waveform, np.ma.MaskedArray):
        raise TypeError("waveform must be an array without a mask, got MaskedArray")
    check_config(config)
    check_length(waveform.shape, config)
    requested = _dispatch.requested_backend("fbank", backend)
    if requested not in ("auto", "numba"):
        return requested
    return settled_backend(requested, "numba", obstacle(waveform, config))


def obstacle(waveform: Array, config: FbankConfig) -> str | None:
    """Say why numba cannot run this input; None when it can."""
    if waveform.dtype == np.float64:
        return f"numba needs a float32 or int16 waveform, got {waveform.dtype}"
    return numba_obstacle(config)


def check_out(out: object, waveform: Array, config: FbankConfig) -> None:
    """Raise unless `out` can take the energies of the waveform."""
    if not isinstance(out, np.ndarray):
        kind = type(out).__name__
        raise TypeError(f"out must be a numpy array, as the waveform is, got {kind}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writable")
    dtype = np.dtype(np.float64 if waveform.dtype == np.float64 else np.float32)
    if out.dtype != dtype:
        raise TypeError(f"out must be {dtype}, got {out.dtype}")
    num_frames = config.num_frames(waveform.shape[-1])
    shape = (*waveform.shape[:-1], num_frames, config.num_mel_bins)
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")


def _readable(waveform: Array) -> Array:
    """Return the waveform, copied if a stride is negative or not a whole number of samples."""
    item = waveform.itemsize
    if not waveform.flags.c_contiguous and any(
        stride < 0 or stride % item for stride in waveform.strides
    ):
        return waveform.copy()
    return waveform


def check_lengths(lengths: Lengths | None, waveform: Array) -> Array | None:
    """Return the samples that count in each waveform, int64, shape (...); None if all do."""
    if lengths is None:
        return None
    leading, num_samples = waveform.shape[:-1], waveform.shape[-1]
    if is_tensor(lengths):
        lengths = lengths.numpy(force=True)
    try:
        counts = np.asarray(lengths)
    except ValueError:  # from ragged lists
        counts = np.asarray(None)
    if counts.dtype.kind not in "biufc":
        given = reprlib.repr(lengths)
        raise TypeError(f"lengths must be integers of shape {leading}, got {given}")
    if counts.dtype.kind not in "iu" and counts.size:  # an empty list has no type of its own
        raise TypeError(f"lengths must be integers, got {counts.dtype}")
    if counts.shape != leading:
        raise ValueError(f"lengths must have shape {leading}, got {counts.shape}")
    for count in counts.reshape(-1).tolist():
        if not 0 <= count <= num_samples:
            raise ValueError(f"lengths must be from 0 to num_samples ({num_samples}), got {count}")
    return counts.astype(np.int64)
