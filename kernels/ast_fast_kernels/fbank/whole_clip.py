"""The steps that need a whole clip of log-mel energies, for the backends of torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig


def over_whole_clip(
    log_mel: Tensor, config: FbankConfig, num_frames: Sequence[int] | Tensor
) -> Tensor:
    """Apply `top_db` and `norm_per_feature`, over the frames that count.

    Args:
        log_mel: Shape (batch, num_frames, num_mel_bins).
        config: The conventions.
        num_frames: Frames that count in each clip.
    """
    if config.top_db > 0:  # frames beyond the clip are silence, so never its maximum
        loudest = log_mel.amax(dim=(1, 2), keepdim=True)
        log_mel = torch.maximum(log_mel, loudest - config.top_range)
    if config.norm_per_feature:
        beyond = beyond_counts(num_frames, log_mel)[..., None]
        count = _as_tensor(num_frames, log_mel)[:, None, None].clamp(min=1)
        # In float64: an empty filter's column is one value, which must be its own mean.
        total = log_mel.masked_fill(beyond, 0.0).sum(dim=1, keepdim=True, dtype=torch.float64)
        mean = (total / count).to(log_mel.dtype)
        centred = (log_mel - mean).masked_fill(beyond, 0.0)
        variance = centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
        log_mel = centred / (variance.sqrt() + tables.NORM_EPSILON)
    return log_mel


def beyond_counts(counts: Sequence[int] | Tensor, values: Tensor) -> Tensor:
    """Return where the second dimension is past the row's count, shape values.shape[:2]."""
    ends = _as_tensor(counts, values)
    return torch.arange(values.shape[1], device=values.device) >= ends[:, None]


def _as_tensor(counts: Sequence[int] | Tensor, values: Tensor) -> Tensor:
    return counts if isinstance(counts, Tensor) else torch.tensor(counts, device=values.device)
