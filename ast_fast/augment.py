"""Augmentation of training clips: of waveforms, of features and of patches.

Every random number is drawn on the CPU from the generator given, so a batch is augmented alike on
every device. Nothing here is used when testing.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from ast_fast.settings.config import AugmentConfig
from ast_fast_kernels.fbank.config import FbankConfig

SILENT_RMS = 1e-4
"""Level (−80 dB of full scale) below which a clip counts as silent and is mixed with no other."""


class FeatureChanges(NamedTuple):
    """What training does to features, drawn for each clip, for `model_input`."""

    offsets: Tensor | None
    """Added to the log-mel features, shape (rows, num_mel_bins); None adds nothing."""
    masked_frames: Tensor | None
    """Shape (rows, num_frames), bool; None masks none."""
    masked_bins: Tensor | None
    """Shape (rows, num_mel_bins), bool; None masks none."""


class Mixtures(NamedTuple):
    """What becomes of the waveforms and labels of clips, drawn for each row of them."""

    clips: Tensor
    """Which of them are summed, as rows of what was drawn for, shape (rows, num_terms), int64."""
    starts: Tensor
    """The sample that comes first, the same shape."""
    factors: Tensor
    """What they are multiplied by, the same shape."""
    targets: Tensor
    """Label shares of the sums, shape (rows, num_classes)."""


_Drawn = TypeVar("_Drawn", Mixtures, FeatureChanges)


def rows_of(drawn: _Drawn, rows: slice) -> _Drawn:
    """Return what was drawn for some of the rows."""
    return type(drawn)(*(None if values is None else values[rows] for values in drawn))


def draw_mixtures(
    num_samples: int,
    levels: Tensor | None,
    targets: Tensor,
    config: AugmentConfig,
    generator: Generator,
    *,
    batch_size: int | None = None,
) -> Mixtures:
    """Draw how clips are rotated, scaled, flipped and mixed.

    Args:
        num_samples: Of a clip.
        levels: The clips' `Dataset.sound_levels`, shape (rows,), on the CPU; for mixing.
        targets: Their label shares, shape (rows, num_classes), each row summing to 1, on the CPU;
            not changed.
        config: What to do, and how much.
        generator: Source of randomness, on the CPU.
        batch_size: Rows of a batch, where they are of several: a clip is mixed with one of its own
            batch. The last may be shorter; None is one batch.
    Returns:
        For each row, in order: sums of one clip, or of two where clips are mixed at all.
    Raises:
        ValueError: Clips are to be mixed, and there are no levels.
    """
    count = len(targets)
    starts = torch.zeros(count, dtype=torch.int64)
    if config.roll:
        starts = torch.randint(num_samples, (count,), generator=generator)
    factors = _factors(count, config, generator)
    if config.mix_probability == 0:
        return Mixtures(
            torch.arange(count).unsqueeze(1), starts.unsqueeze(1), factors.unsqueeze(1), targets
        )
    if levels is None:
        raise ValueError(
            f"levels must be given where clips are mixed (mix_probability "
            f"{config.mix_probability:g}), got None"
        )
    partners, shares, amplitudes = draw_mixing(
        levels * factors.abs(), config, generator, batch_size or max(1, count)
    )
    pairs = torch.stack((torch.arange(count), partners), dim=1)
    shares = shares.unsqueeze(1)
    return Mixtures(
        pairs,
        starts[pairs],
        factors[pairs] * amplitudes,
        shares * targets + (1 - shares) * targets[partners],
    )


def draw_mixing(
    levels: Tensor, config: AugmentConfig, generator: Generator, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw which clips of each batch are mixed, with which others, and how.

    The ratio r of the first clip is uniform in [0, 1). Amplitudes are chosen so that r is the ratio
    of sound levels (here the RMS of the whole clip), and the sum keeps their energy. A clip is not
    mixed when it or its partner is silent (half a label would then have no sound), or when it is
    alone in its batch.

    Args:
        levels: RMS of each clip, shape (rows,), batch after batch.
        config: `mix_probability` is the chance of a clip to be mixed.
        generator: Source of randomness, on the CPU.
        batch_size: Rows of a batch; the last may be shorter.
    Returns:
        Each clip's partner, shape (rows,); the clip's own share of the label, shape (rows,), 1
        where it is not mixed; and both clips' amplitudes, shape (rows, 2), 1 and 0 there.
    Source: Tokozume, Ushiku, Harada, "Learning from Between-class Examples for Deep Sound
        Recognition" (ICLR 2018), section 3.2.
    """
    rows = torch.arange(len(levels))
    batches = rows // batch_size
    first = batches * batch_size
    sizes = (len(levels) - first).clamp(max=batch_size)
    steps = torch.rand(-(-len(levels) // batch_size), generator=generator)[batches]
    partners = first + (rows - first + 1 + (steps * (sizes - 1)).long()) % sizes
    chosen = torch.rand(len(levels), generator=generator) < config.mix_probability
    ratio = torch.rand(len(levels), generator=generator)
    audible = levels > SILENT_RMS
    mixed = chosen & audible & audible[partners] & (sizes > 1)

    amplitude = ratio * levels[partners]
    amplitude = amplitude / (amplitude + (1 - ratio) * levels)
    energy = (amplitude.square() + (1 - amplitude).square()).sqrt()
    amplitudes = torch.stack((amplitude, 1 - amplitude), dim=1) / energy.unsqueeze(1)
    amplitudes = torch.where(mixed.unsqueeze(1), amplitudes, torch.tensor([1.0, 0.0]))
    return partners, torch.where(mixed, ratio, 1.0), amplitudes


def draw_feature_changes(
    batch: int,
    num_frames: int,
    config: AugmentConfig,
    fbank: FbankConfig,
    generator: Generator,
) -> FeatureChanges:
    """Draw a random filter, and the bands of frames and mel bins that are masked, for each clip.

    A mask's width is uniform from 0 to the largest, its position over those where it fits whole.
    The filter's gains are normal at evenly spaced mel bins, the lowest and the highest among them.

    Args:
        batch: How many clips.
        num_frames: Frames of a clip, before padding.
        config: Widths and number of the masks, deviation and points of the filter.
        fbank: What the features are.
        generator: Source of randomness, on the CPU.
    Source: Park et al., "SpecAugment" (Interspeech 2019), section 2, without time warping; Nam,
        Kim, Park, "FilterAugment" (ICASSP 2022), section 2.2, with normal gains at fixed places.
    """

    def bands(size: int, largest: int) -> Tensor | None:
        if largest == 0 or config.num_masks == 0:
            return None
        return _bands(batch, size, largest, config.num_masks, generator)

    masked_frames = bands(num_frames, config.time_mask)
    masked_bins = bands(fbank.num_mel_bins, config.freq_mask)
    offsets = None
    if config.filter_db > 0:
        decibels = config.filter_db * torch.randn(batch, config.filter_points, generator=generator)
        offsets = fbank.log_per_decibel * _through(decibels, fbank.num_mel_bins)
    return FeatureChanges(offsets, masked_frames, masked_bins)


def kept_patches(
    batch: int, num_patches: int, config: AugmentConfig, generator: Generator
) -> Tensor | None:
    """Return the patches that a training step looks at, drawn for each clip; None when all.

    Returns:
        Indices in ascending order, shape (batch, num_kept), at least one patch a clip.
    Source: Koutini et al., "Efficient Training of Audio Transformers with Patchout" (Interspeech
        2022), section 2.2, unstructured.
    """
    num_kept = max(1, round(num_patches * (1 - config.patch_drop)))
    if num_kept == num_patches:
        return None
    draws = torch.rand(batch, num_patches, generator=generator).numpy()
    kept = draws.argpartition(num_kept - 1, axis=1)[:, :num_kept]  # in half of torch's time
    return torch.from_numpy(np.sort(kept, axis=1))


def _factors(batch: int, config: AugmentConfig, generator: Generator) -> Tensor:
    """Draw each clip's gain and sign, shape (batch,)."""
    factors = torch.ones(batch)
    if config.gain_db > 0:
        decibels = (2 * torch.rand(batch, generator=generator) - 1) * config.gain_db
        factors = 10 ** (decibels / 20)
    if config.polarity:
        factors = factors * (1 - 2 * torch.randint(2, (batch,), generator=generator))
    return factors


def _through(values: Tensor, size: int) -> Tensor:
    """Return straight lines through values evenly apart, shape (batch, size)."""
    lines = functional.interpolate(
        values.unsqueeze(1), size=size, mode="linear", align_corners=True
    )
    return lines.squeeze(1)


def _bands(batch: int, size: int, largest: int, count: int, generator: Generator) -> Tensor:
    """Draw `count` bands of at most `largest` out of `size` places, shape (batch, size)."""
    width = torch.randint(largest + 1, (batch, count, 1), generator=generator)
    begin = (torch.rand(batch, count, 1, generator=generator) * (size - width + 1)).long()
    end = begin + width
    place = torch.arange(size)
    within = torch.zeros(batch, size, dtype=torch.bool)
    for band in range(count):  # all at once would take that many times the memory
        within |= (place >= begin[:, band]) & (place < end[:, band])
    return within
