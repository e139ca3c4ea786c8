"""Checks of resampling that arrays and tensors share, and the choice of a backend."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from ast_fast_kernels import _dispatch
from ast_fast_kernels.resample.design import MOST_PHASES, QUALITIES, num_phases

HIGHEST_RATE = 1_000_000
DTYPES = ("float32", "float64", "int16")


def check_rates(rate_from: object, rate_to: object) -> tuple[int, int]:
    """Return both rates as integers."""
    return _rate("rate_from", rate_from), _rate("rate_to", rate_to)


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


def check_quality(quality: object) -> None:
    """Raise unless it is the name of a quality."""
    if not (isinstance(quality, str) and quality in QUALITIES):
        raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, got {quality!r}")


def check_dtype(dtype: object) -> None:
    """Raise unless samples of this dtype, of numpy or torch, can be resampled."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"waveform must be {', '.join(DTYPES)}, got {name}")


def check_axis(shape: Sequence[int], channel_axis: object) -> int | None:
    """Return the axis of channels counted from the front; None if there is none."""
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


def chosen_backend(
    requested: str, rates: tuple[int, int], obstacle: Callable[[str], str | None]
) -> str:
    """Return the backend that runs; auto takes numba, else soxr, else the reference.

    Args:
        requested: The result of `requested_backend`.
        rates: Both, checked.
        obstacle: Says why a backend cannot run the waveform; None when it can.
    Raises:
        RuntimeError: A backend was asked for by name and cannot run.
    """
    obstacles: Mapping[str, Callable[[], str | None]] = {
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
