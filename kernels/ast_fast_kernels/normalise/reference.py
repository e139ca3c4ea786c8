"""Normalisation by torch's own operators, on any device: the oracle, and what a GPU runs."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise_reference(
    features: Tensor,
    target_frames: int,
    log_silence: float,
    statistics: tuple[float, float] | None,
    std_floor: float,
    offsets: Tensor | None,
    masked_frames: Tensor | None,
    masked_bins: Tensor | None,
) -> Tensor:
    """Return the features, normalised and masked.

    Args:
        features: Shape (batch, num_frames, num_bins), floating.
        target_frames: Frames to return.
        log_silence: The features' value for silence.
        statistics: Mean and scale; None takes each clip's own.
        std_floor: Floor of a clip's own deviation.
        offsets: Shape (batch, num_bins), floating; or None.
        masked_frames: Shape (batch, num_frames), bool; or None.
        masked_bins: Shape (batch, num_bins), bool; or None.
    """
    batch, num_frames, num_bins = features.shape
    if offsets is not None:
        features = features + offsets.unsqueeze(1).to(features)
    if statistics is None:
        mean = features.mean(dim=(1, 2), keepdim=True)
        variance = (features - mean).square().mean(dim=(1, 2), keepdim=True)
        scale = (variance + std_floor**2).rsqrt()
    else:
        mean, scale = (features.new_full((batch, 1, 1), value) for value in statistics)
    normalised = (features - mean) * scale
    if masked_frames is not None:
        normalised = normalised.masked_fill(masked_frames.to(features.device).unsqueeze(2), 0.0)
    if masked_bins is not None:
        normalised = normalised.masked_fill(masked_bins.to(features.device).unsqueeze(1), 0.0)
    padding = ((log_silence - mean) * scale).expand(
        -1, max(target_frames - num_frames, 0), num_bins
    )
    return torch.cat((normalised[:, :target_frames], padding), dim=1)
