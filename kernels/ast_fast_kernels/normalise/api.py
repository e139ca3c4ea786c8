"""Normalisation of features as callers see it: every check, the choice of a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks


def normalise(
    features: Tensor,
    target_frames: int,
    *,
    log_silence: float,
    statistics: tuple[float, float] | None = None,
    std_floor: float = 0.0,
    offsets: Tensor | None = None,
    masked_frames: Tensor | None = None,
    masked_bins: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Centre and scale log-mel features, mask some and bring them to one length, in one pass.

    Each clip is normalised by its own values, over all frames and bins: (x − mean) / sqrt(std² +
    std_floor²). With `statistics` it is (x − mean) · scale. Masked frames and bins become 0, the
    mean. Missing frames get the value of silence, in masked bins too. Extra frames are cut, but
    count in mean and deviation. Offsets and masks may lie on another device. Not differentiable.

    Args:
        features: Log-mel, shape (batch, num_frames, num_bins), floating.
        target_frames: Frames to return, at least 1.
        log_silence: The features' value for silence (`FbankConfig.log_silence`).
        statistics: Mean and scale to use for every clip.
        std_floor: Deviation below which a clip is not stretched further.
        offsets: Added to the features first, floating, shape (batch, num_bins): for logarithms, the
            gains of a filter.
        masked_frames: Which frames to mask, bool, shape (batch, num_frames).
        masked_bins: Which bins to mask, bool, shape (batch, num_bins).
        backend: `"auto"`, `"reference"` (torch's operators) or `"numba"` (CPU, float32).
    Returns:
        Features, shape (batch, target_frames, num_bins), of their dtype and device.
    Raises:
        TypeError: An argument's type is none of the above.
        ValueError: A shape does not fit, or `backend` is none of the above.
        RuntimeError: The backend asked for cannot run this input.
    """
    _check_features(features)
    if target_frames < 1:
        raise ValueError(f"target_frames must be at least 1, got {target_frames}")
    batch, num_frames, num_bins = features.shape
    if offsets is not None:
        checks.check_floating("offsets", offsets)
        _check_shape("offsets", offsets, (batch, num_bins))
    for name, masked, size in (
        ("masked_frames", masked_frames, num_frames),
        ("masked_bins", masked_bins, num_bins),
    ):
        if masked is not None:
            if not isinstance(masked, Tensor) or masked.dtype != torch.bool:
                raise TypeError(f"{name} must be a tensor of bool")
            _check_shape(name, masked, (batch, size))
    run = _dispatch.load_backend("normalise", chosen_backend(features, backend=backend))
    with torch.no_grad():
        normalised: Tensor = run(
            features.detach(),
            target_frames,
            log_silence,
            statistics,
            std_floor,
            offsets,
            masked_frames,
            masked_bins,
        )
    return normalised


def chosen_backend(features: Tensor, *, backend: str = "auto") -> str:
    """Return the backend that `normalise` runs for these features; raise the same errors."""
    _check_features(features)
    return choose_backend(_dispatch.requested_backend("normalise", backend), features)


def choose_backend(requested: str, features: Tensor) -> str:
    """Return the backend that runs; auto takes numba for float32 on the CPU."""
    return _dispatch.choose_kernel(
        "normalise",
        requested,
        features.device.type,
        {"numba": lambda: _obstacle(features)},
        "reference",
    )


def _obstacle(features: Tensor) -> str | None:
    """Say why numba cannot run this input; None when it can."""
    obstacle = checks.numba_obstacle("features", features)
    return obstacle or checks.trace_obstacle("numba", features)


def _check_features(features: Tensor) -> None:
    checks.check_floating("features", features)
    if features.dim() != 3 or 0 in features.shape[1:]:
        raise ValueError(
            f"features must be (batch, num_frames, num_bins), got {tuple(features.shape)}"
        )


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, int]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {shape} for these features, got {tuple(tensor.shape)}")
