"""Resampling of numpy arrays, without torch unless its reference is asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch.optional import needs_torch
from ast_fast_kernels.resample import checks
from ast_fast_kernels.resample.channels import mean_of
from ast_fast_kernels.resample.design import design

Array = npt.NDArray[Any]


def compute(
    waveform: Array, rates: tuple[int, int], quality: str, axis: int | None, chosen: str
) -> npt.NDArray[np.float32]:
    """Do what `resample` does, for an array and arguments that were checked.

    Args:
        waveform: Samples.
        rates: From and to.
        quality: A key of QUALITIES.
        axis: That of channels, from the front, if there is one.
        chosen: The backend.
    """
    samples, leading = planes(waveform, axis)
    if rates[0] == rates[1]:
        return mean_of(samples).reshape(*leading, samples.shape[-1])
    if chosen == "reference":
        resampled = _by_reference(mean_of(samples), rates, quality)
    elif chosen == "soxr":
        resampled = _dispatch.load_backend("resample", "soxr")(samples, *rates, quality)
    else:
        run = _dispatch.load_backend("resample", "numba")
        resampled = run(samples, design(*rates, quality))
    return resampled.reshape(*leading, resampled.shape[-1])


def planes(waveform: Array, axis: int | None) -> tuple[Array, tuple[int, ...]]:
    """Return samples as (channels, rows, num_samples), float32 or int16, and the rows' shape.

    They are views of the waveform, if it is of such a dtype.
    """
    if waveform.dtype == np.float64:
        with np.errstate(over="ignore"):
            waveform = waveform.astype(np.float32)
    channels = waveform[None] if axis is None else np.moveaxis(waveform, axis, 0)
    leading, num_samples = channels.shape[1:-1], channels.shape[-1]
    return channels.reshape(len(channels), math.prod(leading), num_samples), leading


def _by_reference(rows: Array, rates: tuple[int, int], quality: str) -> Array:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise needs_torch('backend "reference"') from error
    run = _dispatch.load_backend("resample", "reference")
    with torch.no_grad():
        resampled: Array = run(torch.from_numpy(rows), design(*rates, quality)).numpy()
    return resampled


def chosen_backend(
    waveform: Array, rate_from: object, rate_to: object, quality: object, channel_axis: object,
    backend: str,
) -> str:  # fmt: skip
    """Check what `resample` is given, and return the backend that runs."""
    if isinstance(waveform, np.ma.MaskedArray):
        raise TypeError("waveform must be an array without a mask, got MaskedArray")
    checks.check_dtype(waveform.dtype)
    rates = checks.check_rates(rate_from, rate_to)
    checks.check_quality(quality)
    checks.check_axis(waveform.shape, channel_axis)
    requested = _dispatch.requested_backend("resample", backend)
    return checks.chosen_backend(requested, rates, lambda name: None)
