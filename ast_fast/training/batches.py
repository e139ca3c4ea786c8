"""Training batches: draw the augmentation of many batches at once, then apply it to each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ast_fast.augment import (
    FeatureChanges,
    Mixtures,
    draw_feature_changes,
    draw_mixtures,
    draw_speeds,
    kept_patches,
    rows_of,
)
from ast_fast.data.dataset import Dataset, sound_levels
from ast_fast.data.speeds import with_speeds
from ast_fast.data.stored import StoredFeatures
from ast_fast.features import Statistics, load_batch, model_input
from ast_fast.settings.config import Config
from ast_fast_kernels import mix

DRAWN_AHEAD = 512
"""Clips for which random numbers are drawn at once, rounded down to whole batches. Between a step's
large operations a small one finds its data out of the caches, so one batch costs about as much as
many. Changing the value changes the numbers that a seed gives."""


class Drawn(NamedTuple):
    """The augmentation drawn for the clips of one or more batches."""

    mixtures: Mixtures
    changes: FeatureChanges
    keep: Tensor | None
    """Indices of the patches to keep, shape (rows, num_kept); None keeps all."""
    sources: NDArray[np.int64]
    """Where the waveform of each row lies: the clip's index, or that of its copy at a speed."""


class Batch(NamedTuple):
    """Rows of a training batch, on the model's device."""

    features: Tensor
    """Shape (rows, target_frames, num_mel_bins)."""
    targets: Tensor
    """Label shares, shape (rows, num_classes)."""
    keep: Tensor | None
    """Indices of the patches to keep, shape (rows, num_kept); None keeps all."""


class Batches:
    """Makes the training batches of a data set.

    Args:
        config: The run's settings.
        dataset: The clips.
        statistics: Of the training clips; None if each clip is normalised by its own.
        device: Where the model trains.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        statistics: Statistics | None,
        device: torch.device,
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._statistics = statistics
        self._device = device
        self._waveforms = dataset.waveforms
        self._levels: NDArray[np.float32] | None = None
        if config.augment.mix_probability > 0:
            self._levels = dataset.sound_levels
        if config.augment.speeds and not isinstance(self._waveforms, StoredFeatures):
            self._waveforms = with_speeds(
                self._waveforms, config.augment.speeds, dataset.sample_rate
            )
            if self._levels is not None:
                self._levels = sound_levels(self._waveforms)

    @property
    def ahead(self) -> int:
        """How many clips one `draw` is for: whole batches, at least one."""
        batch_size = self._config.training.batch_size
        return max(1, DRAWN_AHEAD // batch_size) * batch_size

    def draw(self, clips: NDArray[np.int64], generator: torch.Generator) -> Drawn:
        """Draw the augmentation of the clips of one or more batches.

        Args:
            clips: Indices of the clips, batch after batch, shape (rows,).
            generator: Source of randomness, on the CPU.
        """
        config, dataset = self._config, self._dataset
        num_samples = dataset.num_samples
        sources = clips
        if config.augment.speeds:
            speeds = draw_speeds(len(clips), config.augment, generator)
            sources = clips + len(dataset.clips) * speeds.numpy()
        levels = None if self._levels is None else torch.from_numpy(self._levels[sources])
        labels = torch.from_numpy(dataset.labels[clips])
        mixtures = draw_mixtures(
            num_samples,
            levels,
            functional.one_hot(labels, len(dataset.class_names)).float(),
            config.augment,
            generator,
            batch_size=config.training.batch_size,
        )
        changes = draw_feature_changes(
            len(clips),
            config.fbank.num_frames(num_samples),
            config.augment,
            config.fbank,
            generator,
        )
        keep = kept_patches(len(clips), config.num_patches, config.augment, generator)
        return Drawn(mixtures, changes, keep, sources)

    def make(self, drawn: Drawn, clips: NDArray[np.int64], first: int, rows: slice) -> Batch:
        """Make rows of one batch.

        Args:
            drawn: The result of `draw` for this batch and others.
            clips: Indices of the whole batch's clips.
            first: Row of `drawn` at which the batch begins.
            rows: Which of the batch's rows to make.
        """
        among = slice(first + rows.start, first + rows.stop)
        mixtures, keep = rows_of(drawn.mixtures, among), drawn.keep
        sources = drawn.sources[first : first + len(clips)]
        inputs = self._mixed(mixtures, sources, first, rows)
        features = model_input(
            inputs, self._config, self._statistics, changes=rows_of(drawn.changes, among)
        )
        if keep is not None:
            keep = keep[among].to(self._device)
        return Batch(features, mixtures.targets.to(self._device), keep)

    def _mixed(
        self, mixtures: Mixtures, sources: NDArray[np.int64], first: int, rows: slice
    ) -> Tensor:
        """Return rows of a batch as `model_input` takes them; stored features are never mixed."""
        clip_data = self._waveforms
        if isinstance(clip_data, StoredFeatures):
            return load_batch(clip_data, sources[rows], self._device)
        waveforms: Tensor | NDArray[np.int16] = clip_data
        terms = mixtures.clips - first
        if self._device.type == "cpu":
            terms = torch.from_numpy(sources)[terms]  # read from the memory map, without a copy
        else:
            waveforms = load_batch(clip_data, sources, self._device)
        return mix(waveforms, terms, mixtures.starts, mixtures.factors)
