"""Training batches: draw the augmentation of many batches at once, then apply it to each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ast_fast.augment import (
    Cuts,
    FeatureChanges,
    Mixtures,
    draw_cuts,
    draw_feature_changes,
    draw_mixtures,
    draw_speeds,
    each_of,
    kept_patches,
    rows_of,
    spliced,
)
from ast_fast.data.dataset import Dataset, sound_levels
from ast_fast.data.speeds import with_speeds
from ast_fast.data.stored import StoredFeatures
from ast_fast.features import Statistics, load_batch, model_input, sent
from ast_fast.machine.distributed import Ranks
from ast_fast.settings.config import Config
from ast_fast_kernels import mix

DRAWN_AHEAD = 512
"""Clips for which random numbers are drawn at once, rounded down to whole batches. Between a step's
large operations a small one finds its data out of the caches, so one batch costs about as much as
many. Changing the value changes the numbers that a seed gives."""


class Drawn(NamedTuple):
    """The augmentation drawn for the clips of one or more batches, on the model's device."""

    mixtures: Mixtures
    changes: FeatureChanges
    cuts: Cuts | None
    keep: Tensor | None
    """Indices of the patches to keep, shape (rows, num_kept); None keeps all."""


class Inputs(NamedTuple):
    """What rows of a training batch are computed from."""

    clips: NDArray[np.int16] | Tensor
    """What the mixtures name: the batch's clips on the model's device, or all clips in place. Of
    stored features the rows, which are never mixed."""
    drawn: Drawn
    """For these rows."""


class Batches:
    """Makes the training batches of a data set.

    Args:
        config: The run's settings.
        dataset: The clips.
        statistics: Of the training clips; None if each clip is normalised by its own.
        device: Where the model trains.
        capturable: Whether a batch's clips are always copied, so that a captured step finds each
            batch's in one place. Else the CPU reads them in place.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        statistics: Statistics | None,
        device: torch.device,
        *,
        capturable: bool = False,
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._statistics = statistics
        self._device = device
        self._in_place = device.type == "cpu" and not capturable
        self._waveforms = dataset.waveforms
        self._levels: NDArray[np.float32] | None = None
        if isinstance(self._waveforms, StoredFeatures):
            return  # their sounds are gone: they have no levels and no other speeds
        augment = config.augment
        if augment.speeds:
            self._waveforms = with_speeds(self._waveforms, augment.speeds, dataset.sample_rate)
        if max(augment.mix_probability, augment.cutmix_probability) > 0:
            self._levels = sound_levels(self._waveforms) if augment.speeds else dataset.sound_levels

    @property
    def ahead(self) -> int:
        """How many clips one `draw` is for: whole batches, at least one."""
        batch_size = self._config.training.batch_size
        return max(1, DRAWN_AHEAD // batch_size) * batch_size

    def of_epoch(
        self,
        order: NDArray[np.int64],
        generator: torch.Generator,
        ranks: Ranks,
        *,
        unmixed: bool = False,
    ) -> Iterator[tuple[int, Inputs]]:
        """Draw and load an epoch's batches, each when it is asked for.

        Args:
            order: Indices of the epoch's clips.
            generator: Source of randomness, on the CPU.
            ranks: The processes among which each batch is divided.
            unmixed: As `draw`.
        Yields:
            The clips of a batch, and what this process's rows of it are computed from.
        """
        size = self._config.training.batch_size
        for begin in range(0, len(order), self.ahead):
            clips = order[begin : begin + self.ahead]
            sources, drawn = self.draw(clips, generator, unmixed=unmixed)
            for first in range(0, len(clips), size):
                batch = sources[first : first + size]
                yield len(batch), self.load(drawn, batch, first, ranks.part(len(batch)))

    def draw(
        self, clips: NDArray[np.int64], generator: torch.Generator, *, unmixed: bool = False
    ) -> tuple[NDArray[np.int64], Drawn]:
        """Draw the augmentation of the clips of one or more batches.

        Args:
            clips: Indices of the clips, batch after batch, shape (rows,).
            generator: Source of randomness, on the CPU.
            unmixed: Whether no clip has a part of another.
        Returns:
            Where the waveform of each row lies, shape (rows,): the clip's index, or that of its
            copy at a speed; and the augmentation.
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
            unmixed=unmixed,
        )
        changes = draw_feature_changes(
            len(clips),
            config.fbank.num_frames(num_samples),
            config.augment,
            config.fbank,
            generator,
        )
        cuts, targets = draw_cuts(
            mixtures.targets,
            levels,
            config.fbank.num_frames(num_samples),
            config.fbank.num_mel_bins,
            config.augment,
            generator,
            batch_size=config.training.batch_size,
            unmixed=unmixed,
        )
        mixtures = mixtures._replace(targets=targets)
        keep = kept_patches(len(clips), config.num_patches, config.augment, generator)
        drawn = Drawn(mixtures, changes, cuts, keep)
        return sources, each_of(drawn, lambda values: sent(values, self._device))

    def load(self, drawn: Drawn, clips: NDArray[np.int64], first: int, rows: slice) -> Inputs:
        """Load what rows of one batch are computed from.

        Args:
            drawn: The result of `draw` for this batch and others.
            clips: Where the waveforms of the whole batch lie, as `draw` gave them.
            first: Row of `drawn` at which the batch begins.
            rows: Which of the batch's rows to load.
        """
        part = slice(first + rows.start, first + rows.stop)
        drawn, heard = _for_part(drawn, part, is_whole=part.stop - part.start == len(clips))
        data = self._waveforms
        if isinstance(data, StoredFeatures):
            taken = clips[rows] if isinstance(heard, slice) else clips[heard.cpu().numpy() - first]
            return Inputs(load_batch(data, taken, self._device), drawn)
        loaded: NDArray[np.int16] | Tensor = data
        terms = drawn.mixtures.clips - first
        if self._in_place:
            terms = torch.from_numpy(clips)[terms]  # read from the memory map, without a copy
        else:
            loaded = load_batch(data, clips, self._device)
        return Inputs(loaded, drawn._replace(mixtures=drawn.mixtures._replace(clips=terms)))

    def features(self, inputs: Inputs) -> Tensor:
        """Return the model's input, shape (rows, target_frames, num_mel_bins)."""
        clips, mixtures = inputs.clips, inputs.drawn.mixtures
        if isinstance(clips, Tensor) and clips.ndim == 3:  # stored features
            waveforms = clips
        else:
            waveforms = mix(clips, mixtures.clips, mixtures.starts, mixtures.factors)
        changes, cuts = inputs.drawn.changes, inputs.drawn.cuts
        features = model_input(waveforms, self._config, self._statistics, changes=changes)
        return features if cuts is None else spliced(features, cuts)


def _for_part(drawn: Drawn, part: slice, *, is_whole: bool) -> tuple[Drawn, slice | Tensor]:
    """Return what is drawn for a part of a batch, and the rows whose features that takes.

    These are the part's own rows and, if it is not the whole batch, the partners of their cuts
    after them.
    """
    own = rows_of(drawn, part)
    if own.cuts is None:
        return own, part
    partners = own.cuts.partners
    if is_whole:
        return own._replace(cuts=own.cuts._replace(partners=partners - part.start)), part
    count = len(partners)
    rows = torch.arange(part.start, part.stop, device=partners.device)
    heard = torch.cat((rows, partners))
    mixtures = rows_of(drawn.mixtures, heard)._replace(targets=own.mixtures.targets)
    cuts = own.cuts._replace(partners=torch.arange(count, 2 * count, device=partners.device))
    return Drawn(mixtures, rows_of(drawn.changes, heard), cuts, own.keep), heard
