"""Mixing by torch's own operators, on any device: the oracle, and what a GPU runs."""

from __future__ import annotations

import torch
from torch import Tensor


def mix_reference(waveforms: Tensor, sources: Tensor, starts: Tensor, factors: Tensor) -> Tensor:
    """Return the sums of rotated, scaled clips.

    Args:
        waveforms: Shape (num_clips, num_samples), int16 or float32.
        sources: Clip of each term, shape (batch, num_terms).
        starts: First sample of each term, the same shape.
        factors: Factor of each term, the same shape.
    """
    num_samples = waveforms.shape[1]
    factors = factors.to(waveforms.device, torch.float32)
    if waveforms.dtype == torch.int16:
        factors = factors / 32768
    sources, starts = sources.to(waveforms.device), starts.to(waveforms.device)
    places = torch.arange(num_samples, device=waveforms.device)
    mixed = factors.new_zeros(len(factors), num_samples)
    for clip, start, factor in zip(
        sources.unbind(1), starts.unbind(1), factors.unsqueeze(2).unbind(1), strict=True
    ):
        rotated = waveforms[clip.unsqueeze(1), (start.unsqueeze(1) + places) % num_samples]
        mixed += (rotated * factor).masked_fill(factor == 0, 0.0)  # whatever the clip holds
    return mixed
