"""Checks of resampling that arrays and tensors share, and the choice of a backend."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from ast_fast_kernels import _dispatch
from ast_fast_kernels.resample.design import MOST_PHASES, QUALITIES, num_phases

HIGHEST_RATE = 1_000_000
DTYPES = ("float32", "float64", "int16")


class Request(NamedTuple):
    """What `resample` is asked for beside its waveform, checked."""

    rate_from: int
    rate_to: int
    quality: str
    axis: int | None
    """That of channels, counted from the front."""


def check(
    waveform: Any, rate_from: object, rate_to: object, quality: object, channel_axis: object
) -> Request:
    """Check what `resample` is given; the waveform is an array or a tensor."""
    _check_dtype(waveform.dtype)
    rates = check_rates(rate_from, rate_to, quality)
    return Request(*rates, str(quality), _axis(waveform.shape, channel_axis))


def check_rates(rate_from: object, rate_to: object, quality: object) -> tuple[int, int]:
    """Return both rates, and check that there is such a quality."""
    rates = _rate("rate_from", rate_from), _rate("rate_to", rate_to)
    if not (isinstance(quality, str) and quality in QUALITIES):
        raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
    return rates


def _rate(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        rate = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number of Hz, got {value!r}") from None
    if not 1 <= rate <= HIGHEST_RATE:
        raise ValueError(f"{name} must be from 1 to {HIGHEST_RATE} Hz, got {rate}")
    return rate


@lru_cache(maxsize=64)
def _check_dtype(dtype: object) -> None:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"waveform must be {', '.join(DTYPES)}, got {name}")


def _axis(shape: Sequence[int], channel_axis: object) -> int | None:
    dims = len(shape)
    if channel_axis is None:
        if not dims:
            raise ValueError("waveform must be (..., num_samples), got ()")
        return None
    try:
        axis = operator.index(channel_axis)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"channel_axis must be an integer or None, got {channel_axis!r}") from None
    if dims < 2:
        raise ValueError(
            f"waveform must have an axis of channels and one of samples, got {tuple(shape)}"
        )
    if not -dims <= axis < dims:
        raise ValueError(f"channel_axis must be from {-dims} to {dims - 1}, got {axis}")
    axis %= dims
    if shape[axis] == 0:
        raise ValueError(f"waveform must have at least one channel, got {tuple(shape)}")
    return axis


def chosen_backend(requested: str, asked: Request, obstacle: Callable[[str], str | None]) -> str:
    """Return the backend that runs; auto takes numba, else soxr, else the reference.

    Args:
        requested: The result of `requested_backend`.
        asked: The result of `check`.
        obstacle: Says why a backend cannot run the waveform; None when it can.
    Raises:
        RuntimeError: A backend was asked for by name and cannot run.
    """
    obstacles: Mapping[str, Callable[[], str | None]] = {
        "numba": lambda: (
            obstacle("numba")
            or _phases_obstacle(asked.rate_from, asked.rate_to)
            or _dispatch.numba_obstacle()
        ),
        "soxr": lambda: obstacle("soxr") or soxr_obstacle(),
    }
    if requested in obstacles:
        reason = obstacles[requested]()
        if reason is not None:
            other = "soxr" if requested == "numba" and obstacles["soxr"]() is None else "reference"
            raise RuntimeError(f'{reason}; use backend="{other}"')
        return requested
    if requested != "auto":
        return requested
    first = None
    for name, find in obstacles.items():
        reason = find()
        if reason is None:
            _dispatch.log_choice("resample", name, first)
            return name
        first = first or reason
    _dispatch.log_choice("resample", "reference", first)
    return "reference"


@lru_cache(maxsize=256)
def _phases_obstacle(rate_from: int, rate_to: int) -> str | None:
    phases = num_phases(rate_from, rate_to)
    if rate_from != rate_to and phases > MOST_PHASES:
        return (
            f"numba needs rates whose filter bank has at most {MOST_PHASES} phases, "
            f"got {phases} for {rate_from} to {rate_to} Hz"
        )
    return None


@cache
def soxr_obstacle() -> str | None:
    """Say why libsoxr cannot run on this machine; None when it can."""
    if find_spec("soxr") is None:
        return "soxr is not installed (pip install 'ast-fast-kernels[audio]')"
    return None
