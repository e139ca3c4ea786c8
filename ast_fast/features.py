"""From waveforms to the model's input: log-mel features, normalised and padded to one length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ast_fast.augment import FeatureChanges
from ast_fast.data.stored import StoredFeatures
from ast_fast.settings.config import Config
from ast_fast_kernels import fbank, normalise
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig

STD_FLOOR = 1e-2
"""Standard deviation of a clip's log-mel values below which it is not scaled up further: the
rounding noise of a silent clip stays near 0 instead of becoming a sound."""

BATCH_SIZE = 64
"""Clips at a time when statistics are computed."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of the log-mel values of a set of clips."""

    mean: float
    std: float


def load_batch(
    waveforms: NDArray[np.int16] | StoredFeatures,
    indices: NDArray[np.int64],
    device: torch.device,
) -> Tensor:
    """Return clips of the memory-mapped data set, as `log_mel` takes them."""
    return sent(torch.from_numpy(waveforms[indices]), device)  # indexing by an array copies


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return the host's values on a device; a GPU gets them while the host goes on."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def log_mel(waveforms: Tensor, config: Config, *, dither: bool = False) -> Tensor:
    """Return log-mel features, not normalised.

    Args:
        waveforms: Shape (batch, num_samples), floating in [-1, 1] or int16. Stored features, shape
            (batch, num_frames, num_mel_bins), are returned as they are.
        config: `config.fbank` is used.
        dither: Whether to apply `config.fbank.dither`. Only training does: tests, statistics and
            figures are the same each time.
    Returns:
        Features, shape (batch, num_frames, num_mel_bins).
    """
    if waveforms.ndim == 3:
        return waveforms
    features: Tensor = fbank(waveforms, config.fbank if dither else undithered(config.fbank))
    return features


def undithered(config: FbankConfig) -> FbankConfig:
    """Return the filterbank's settings without dither."""
    return config.replace(dither=0.0) if config.dither else config


def model_input(
    waveforms: Tensor,
    config: Config,
    statistics: Statistics | None,
    *,
    changes: FeatureChanges | None = None,
) -> Tensor:
    """Return the model's input for clips: log-mel features, normalised and of one length.

    With `norm_per_sample`, (x − mean) / sqrt(std² + STD_FLOOR²) over all values of the clip, so
    that digital silence becomes 0. Otherwise, (x − mean) / (2 · std) of the statistics, as the AST
    does. Shorter clips are padded with the value of silence, or with 0 before they are normalised
    (`config.features.padding`).

    Args:
        waveforms: As `log_mel` takes them.
        config: The run's settings; `config.features.norm_per_sample` chooses.
        statistics: Of the training clips; needed unless `norm_per_sample`.
        changes: Augmentation to apply; with it, `config.fbank.dither` applies too. None: neither.
    Returns:
        Features, shape (batch, target_frames, num_mel_bins).
    Raises:
        ValueError: Statistics are needed and missing.
    Source: YuanGongND/ast, src/dataloader.py (the factor 2).
    """
    shift_and_scale = None
    if not config.features.norm_per_sample:
        if statistics is None:
            raise ValueError(
                "statistics must be given when features.norm_per_sample is off, got None"
            )
        shift_and_scale = statistics.mean, 0.5 / statistics.std
    offsets, masked_frames, masked_bins = changes or (None, None, None)
    features: Tensor = normalise(
        log_mel(waveforms, config, dither=changes is not None),
        config.features.target_frames,
        log_silence=0.0 if config.features.padding == "zero" else config.fbank.log_silence,
        statistics=shift_and_scale,
        std_floor=STD_FLOOR,
        offsets=offsets,
        masked_frames=masked_frames,
        masked_bins=masked_bins,
    )
    return features


def compute_statistics(
    waveforms: NDArray[np.int16] | StoredFeatures,
    indices: NDArray[np.int64],
    config: Config,
    *,
    device: torch.device | None = None,
) -> Statistics:
    """Return mean and standard deviation of the log-mel values of the clips in `indices`.

    Sums accumulate in float64, around the first batch's mean.

    Args:
        waveforms: All clips, as a `Dataset` has them.
        indices: The clips to take: those of the training folds.
        config: `config.fbank` is used.
        device: Where to compute; None is the CPU.
    Raises:
        InputError: The values are too alike to scale by their standard deviation: it is below
            `STD_FLOOR` with a logarithm, 0 without.
    """
    count, total, total_squared, centre = 0, 0.0, 0.0, 0.0
    for begin in range(0, len(indices), BATCH_SIZE):
        batch = load_batch(
            waveforms, indices[begin : begin + BATCH_SIZE], device or torch.device("cpu")
        )
        values = log_mel(batch, config).double()
        if begin == 0:
            centre = values.mean().item()
        values -= centre
        count += values.numel()
        total += values.sum().item()
        total_squared += values.square().sum().item()
    mean = total / count
    std = math.sqrt(max(0.0, total_squared / count - mean**2))
    if std == 0 or (config.fbank.use_log_fbank and std < STD_FLOOR):
        raise InputError(
            f"the {len(indices)} training clips hold only silence, or are all alike: the standard "
            f"deviation of their log-mel values must be at least {STD_FLOOR:g}, got {std:.3g}"
        )
    return Statistics(centre + mean, std)
