"""The resampling that callers see: arrays to arrays, tensors to tensors."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._torch.tracing import is_loaded
from ast_fast_kernels.resample import arrays, checks

if TYPE_CHECKING:
    from torch import Tensor


@overload
def resample(
    waveform: Tensor,
    rate_from: int,
    rate_to: int,
    *,
    quality: str = ...,
    channel_axis: int | None = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def resample(
    waveform: npt.NDArray[Any],
    rate_from: int,
    rate_to: int,
    *,
    quality: str = ...,
    channel_axis: int | None = ...,
    backend: str = ...,
) -> npt.NDArray[np.float32]: ...
def resample(
    waveform: Tensor | npt.NDArray[Any],
    rate_from: int,
    rate_to: int,
    *,
    quality: str = "hq",
    channel_axis: int | None = None,
    backend: str = "auto",
) -> Tensor | npt.NDArray[np.float32]:
    """Return waveforms at another sample rate.

    With f half of the lower rate, `"hq"` is flat to 0.0001 dB up to 0.925 f and lets nothing above
    1.075 f through, to -110 dB; `"fast"` is flat to 0.001 dB up to 0.88 f, to -80 dB above 1.12 f.
    In between the gain falls, to -6 dB at f. So nothing below 0.925 f is aliased, and what lies as
    far above f as to 1.075 f lands between 0.925 f and f, weaker. soxr's HQ instead falls from
    0.913 f on and is silent at f.

    The filters are symmetric, so nothing is delayed: sample n of the result is the waveform at the
    time n / `rate_to`, with silence before its first sample and after its last. A NaN or infinite
    sample makes only its surroundings NaN. Numba's result depends neither on threads nor on the
    batch, and int16 gives what its samples / 32768 give, bit for bit.

    Args:
        waveform: Samples, shape (..., num_samples), numpy or torch, of any strides: float32,
            float64 (rounded to float32) or int16 (read as sample / 32768).
        rate_from: Sample rate of the waveform, a whole number of Hz.
        rate_to: Sample rate of the result.
        quality: `"hq"` or `"fast"`.
        channel_axis: Axis of channels whose mean is resampled, such as -1 for (num_samples, 2) as
            a stereo file holds it; None if there is none. Numba mixes while it reads.
        backend: `"auto"`, `"reference"` (plain torch), `"numba"` (CPU) or `"soxr"` (CPU; HQ or
            MQ). Auto takes numba on the CPU, and soxr for ratios such as 44100 : 16001.
    Returns:
        The waveforms' kind and leading dimensions, float32, ceil(num_samples * rate_to / rate_from)
        samples each. It has a gradient, which is the reference's.
    Raises:
        TypeError: An argument's type or dtype is none of those above.
        ValueError: A rate, `quality`, `channel_axis`, a shape or `backend` does not fit.
        RuntimeError: The backend asked for cannot run this input.
        ImportError: The reference is needed, and torch is not installed.
    """
    chosen = chosen_backend(
        waveform, rate_from, rate_to, quality=quality, channel_axis=channel_axis, backend=backend
    )
    rates = checks.check_rates(rate_from, rate_to)
    axis = checks.check_axis(waveform.shape, channel_axis)
    if isinstance(waveform, np.ndarray):
        return arrays.compute(waveform, rates, quality, axis, chosen)
    from ast_fast_kernels.resample import tensors

    return tensors.compute(waveform, rates, quality, axis, chosen)


def chosen_backend(
    waveform: Tensor | npt.NDArray[Any],
    rate_from: int,
    rate_to: int,
    *,
    quality: str = "hq",
    channel_axis: int | None = None,
    backend: str = "auto",
) -> str:
    """Return the backend that `resample` runs for these arguments; raise the same errors."""
    kind: Any = arrays
    if not isinstance(waveform, np.ndarray):
        if not is_loaded():
            given = type(waveform).__name__
            raise TypeError(f"waveform must be a tensor or a numpy array, got {given}")
        kind = import_module("ast_fast_kernels.resample.tensors")
    chosen: str = kind.chosen_backend(waveform, rate_from, rate_to, quality, channel_axis, backend)
    return chosen
