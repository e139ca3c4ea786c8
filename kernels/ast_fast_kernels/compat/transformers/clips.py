"""What callers give: clips in many forms, and their sample rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._torch.optional import is_tensor

Clip = npt.NDArray[np.float32]


def mono_clips(raw_speech: Any, extractor: object) -> list[Clip]:
    """Return clips of one channel, each (num_samples,), from arrays, tensors or lists.

    An array or a tensor of two axes, and a list of clips, is a batch.

    Raises:
        ValueError: An array has more than two axes, or a clip more than one channel.
    """
    if getattr(raw_speech, "ndim", 1) > 2:
        raise ValueError(f"Only mono-channel audio is supported for input to {extractor}")
    return [_mono(clip) for clip in split(raw_speech)]


def split(raw_speech: Any) -> list[Any]:
    """Return a batch's clips as they are given; a single clip is a batch of one."""
    if is_tensor(raw_speech):
        raw_speech = np.asarray(raw_speech)
    if isinstance(raw_speech, np.ndarray):
        return list(raw_speech) if raw_speech.ndim > 1 else [raw_speech]
    if isinstance(raw_speech, (list, tuple)):
        first = raw_speech[0]
        if isinstance(first, (np.ndarray, list, tuple)) or (is_tensor(first) and first.ndim):
            return list(raw_speech)
    return [raw_speech]


def as_floats(clip: Any) -> Clip:
    """Return samples as float32, of the same values.

    Raises:
        ValueError: They are complex.
    """
    samples = np.asarray(clip)
    if samples.dtype.kind == "c":
        raise ValueError("Complex-valued input waveforms are not currently supported")
    return samples.astype(np.float32, copy=False)


def _mono(clip: Any) -> Clip:
    samples = as_floats(clip)
    if samples.ndim == 1:
        return samples
    if samples.ndim == 0 or samples.size != max(samples.shape):
        raise ValueError(
            "raw_speech must have one channel, (num_samples,) or (1, num_samples) for each clip, "
            f"got {samples.shape}"
        )
    return samples.reshape(-1)


def check_rate(extractor: Any, given: int | None, logger: Any, *, in_full: bool = True) -> None:
    """Raise if a sample rate is not the extractor's; warn if none is given.

    Args:
        extractor: It has the `sampling_rate`.
        given: The caller's, in Hz.
        logger: The library's, for the warning.
        in_full: Whether the error shows the extractor's settings, or its class only.
    """
    own, kind = extractor.sampling_rate, type(extractor).__name__
    if given is None:
        logger.warning(
            f"It is strongly recommended to pass the `sampling_rate` argument to `{kind}()`. "
            "Failing to do so can result in silent errors that might be hard to debug."
        )
    elif given != own:
        raise ValueError(
            f"The model corresponding to this feature extractor: {extractor if in_full else kind} "
            f"was trained using a sampling rate of {own}. Please make sure that the provided "
            f"`raw_speech` input was sampled with {own} and not {given}."
        )
