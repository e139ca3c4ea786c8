"""The log energy of each frame, which Kaldi puts beside its features."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ast_fast_kernels._torch import checks
from ast_fast_kernels.fbank import eager, reference
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
    """Return the natural logarithm of each frame's energy, shape (num_frames,).

    Compiled where the filterbank is; differentiable.

    Args:
        samples: One clip, shape (num_samples,), checked; int16 is taken as sample / 32768.
        config: Kaldi's conventions, and at least one frame's worth of samples.
        is_raw: Whether it is taken before pre-emphasis and window.
        floor: Least energy; 0 is float32's epsilon, which is the least in any case.
        noise: Of variance 1, shape (num_frames, window_size); None is none.
    """
    if _is_compiled(samples, config):
        # Imported late: it loads Numba.
        from ast_fast_kernels.fbank import numba_energy

        values = checks.dense(samples.detach().resolve_neg()).numpy()
        if samples.dtype == torch.int16:
            values = values.astype(np.float32) * np.float32(2.0**-15)
        noises = None if noise is None else noise.numpy()
        energy = numba_energy.energies(values, config, is_raw, noises)
        return torch.from_numpy(np.log(np.maximum(energy, np.float32(_least(floor)))))
    frames = _frames(samples, config, is_raw, noise)
    return frames.square().sum(dim=-1).clamp(min=_least(floor)).log()


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
    slope = 2.0 * grad / energy.masked_fill(energy < _least(floor), math.inf)
    slopes = slope[:, None] * frames
    if not is_raw:
        slopes = before_preemphasis(reference.apply_window(slopes, config), config)
    slopes = reference.remove_dc_offset(slopes, config)
    return before_frames(slopes[None], samples.shape[0], config)[0]


def _is_compiled(samples: Tensor, config: FbankConfig) -> bool:
    needs_gradient = samples.requires_grad and torch.is_grad_enabled()
    return not needs_gradient and eager.chosen_backend(samples, config, "auto") == "numba"


def _frames(samples: Tensor, config: FbankConfig, is_raw: bool, noise: Tensor | None) -> Tensor:
    frames = reference.prepare_frames(reference.as_floating(samples), config, noise)
    if is_raw:
        return frames
    return reference.apply_window(reference.preemphasise(frames, config), config)


def _least(floor: float) -> float:
    return max(floor, FLOAT32_EPS)
