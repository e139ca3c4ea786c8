"""The log energy of each frame, which Kaldi puts beside its features."""

from __future__ import annotations

import math

from torch import Tensor

from ast_fast_kernels.fbank import reference
from ast_fast_kernels.fbank.config import FLOAT32_EPS, FbankConfig
from ast_fast_kernels.fbank.gradient import before_frames, before_preemphasis


def log_energy(
    samples: Tensor,
    config: FbankConfig,
    *,
    is_raw: bool,
    floor: float,
    noise: Tensor | None = None,
) -> Tensor:
    """Return the natural logarithm of each frame's energy, shape (num_frames,); differentiable.

    Args:
        samples: One clip, shape (num_samples,), checked; int16 is taken as sample / 32768.
        config: Kaldi's conventions, and at least one frame's worth of samples.
        is_raw: Whether it is taken before pre-emphasis and window.
        floor: Least energy; 0 is float32's epsilon, which is the least in any case.
        noise: Of variance 1, shape (num_frames, window_size); None is none.
    """
    frames = _frames(samples, config, is_raw, noise)
    return frames.square().sum(dim=-1).clamp(min=least_energy(floor)).log()


def log_energy_gradient(
    grad: Tensor,
    samples: Tensor,
    config: FbankConfig,
    *,
    is_raw: bool,
    floor: float,
    noise: Tensor | None = None,
) -> Tensor:
    """Return the samples' gradient from that of `log_energy`, (num_frames,), without autograd."""
    frames = _frames(samples, config, is_raw, noise)
    energy = frames.square().sum(dim=-1)
    slope = 2.0 * grad / energy.masked_fill(energy < least_energy(floor), math.inf)
    slopes = slope[:, None] * frames
    if not is_raw:
        slopes = before_preemphasis(reference.apply_window(slopes, config), config)
    slopes = reference.remove_dc_offset(slopes, config)
    return before_frames(slopes[None], samples.shape[0], config)[0]


def _frames(samples: Tensor, config: FbankConfig, is_raw: bool, noise: Tensor | None) -> Tensor:
    frames = reference.prepare_frames(reference.as_floating(samples), config, noise)
    if is_raw:
        return frames
    return reference.apply_window(reference.preemphasise(frames, config), config)


def least_energy(floor: float) -> float:
    """Return what smaller energies are raised to."""
    return max(floor, FLOAT32_EPS)
