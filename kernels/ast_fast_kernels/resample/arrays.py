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
from ast_fast_kernels.resample.checks import Request
from ast_fast_kernels.resample.design import Design, design

Array = npt.NDArray[Any]


def compute(waveform: Array, asked: Request, chosen: str) -> npt.NDArray[np.float32]:
    """Do what `resample` does, for an array, by the backend chosen."""
    samples, leading = planes(waveform, asked.axis)
    rate_from, rate_to, quality, _ = asked
    if rate_from == rate_to:
        return mean_of(samples).reshape(*leading, samples.shape[-1])
    if chosen == "soxr":
        run = _dispatch.load_backend("resample", "soxr")
        resampled: Array = run(samples, rate_from, rate_to, quality)
    else:
        run = _by_reference if chosen == "reference" else _dispatch.load_backend("resample", chosen)
        resampled = run(samples, design(rate_from, rate_to, quality))
    return resampled if len(leading) == 1 else resampled.reshape(*leading, resampled.shape[-1])


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


def _by_reference(samples: Array, plan: Design) -> Array:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise needs_torch('backend "reference"') from error
    run = _dispatch.load_backend("resample", "reference")
    with torch.no_grad():
        resampled: Array = run(torch.from_numpy(mean_of(samples)), plan).numpy()
    return resampled


def chosen_backend(waveform: Array, asked: Request, backend: str) -> str:
    """Return the backend that runs."""
    if isinstance(waveform, np.ma.MaskedArray):
        raise TypeError("waveform must be an array without a mask, got MaskedArray")
    requested = _dispatch.requested_backend("resample", backend)
    return checks.chosen_backend(requested, asked, _no_obstacle)


def _no_obstacle(name: str) -> None:
    return None
