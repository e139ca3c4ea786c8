"""Augmentation of training clips: of waveforms, of features and of patches.

Every random number is drawn on the CPU from a given generator, so a batch is augmented alike on
every device. Tests use nothing from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from ast_fast.settings.config import AugmentConfig
from ast_fast_kernels.fbank.config import FbankConfig

SILENT_RMS = 1e-4
"""Level (−80 dB of full scale) below which a clip counts as silent and is not mixed."""


class FeatureChanges(NamedTuple):
    """Augmentation of features, drawn for each clip; `model_input` applies it."""

    offsets: Tensor | None
    """Added to the log-mel features, shape (rows, num_mel_bins); None adds nothing."""
    masked_frames: Tensor | None
    """Shape (rows, num_frames), bool; None masks none."""
    masked_bins: Tensor | None
    """Shape (rows, num_mel_bins), bool; None masks none."""


class Mixtures(NamedTuple):
    """Augmentation of waveforms and labels, drawn for each row."""

    clips: Tensor
    """The clips to sum, each named by its row, shape (rows, num_terms), int64."""
    starts: Tensor
    """The sample at which each begins, same shape."""
    factors: Tensor
    """The factor of each, same shape."""
    targets: Tensor
    """Label shares of the sums, shape (rows, num_classes)."""


class Cuts(NamedTuple):
    """Parts of features that are another clip's, drawn for each row; `spliced` applies them."""

    partners: Tensor
    """The rows that they come from, shape (rows,), int64."""
    frames: Tensor
    """Which frames do, shape (rows, num_frames), bool."""
    bins: Tensor
    """Which mel bins do, in every frame, shape (rows, num_mel_bins), bool."""


_Drawn = TypeVar("_Drawn", bound=tuple[Any, ...])


def each_of(drawn: _Drawn, change: Callable[[Tensor], Tensor]) -> _Drawn:
    """Return what was drawn with every tensor changed, those of tuples in it too; None stays."""

    def changed(values: Any) -> Any:
        if isinstance(values, tuple):
            return each_of(values, change)
        return None if values is None else change(values)

    return type(drawn)(*map(changed, drawn))


def rows_of(drawn: _Drawn, rows: slice | Tensor) -> _Drawn:
    """Return what was drawn for some of the rows, a range or those that an index names."""
    return each_of(drawn, lambda values: values[rows])


def draw_speeds(count: int, config: AugmentConfig, generator: Generator) -> Tensor:
    """Draw the speed of each clip: none for half of them, else one of `config.speeds`.

    Returns:
        0 for its own speed, or the number of a speed from 1, shape (count,), int64.
    """
    speeds = torch.randint(1, 1 + len(config.speeds), (count,), generator=generator)
    return speeds * torch.randint(2, (count,), generator=generator)


def draw_mixtures(
    num_samples: int,
    levels: Tensor | None,
    targets: Tensor,
    config: AugmentConfig,
    generator: Generator,
    *,
    batch_size: int | None = None,
    unmixed: bool = False,
) -> Mixtures:
    """Draw how clips are rotated, scaled, flipped and mixed.

    Args:
        num_samples: Of a clip.
        levels: The clips' `Dataset.sound_levels`, shape (rows,), on the CPU; needed for mixing.
        targets: Their label shares, shape (rows, num_classes), each row summing to 1, on the CPU;
            not changed.
        config: What to do, and how much.
        generator: Source of randomness, on the CPU.
        batch_size: Rows of each batch; a clip is mixed with one of its own batch. The last batch
            may be shorter. None: all rows are one batch.
        unmixed: Whether no clip is mixed; the shapes are those of other epochs all the same.
    Returns:
        Sums of one clip for each row, in order; of two if `mix_probability` is above 0.
    Raises:
        ValueError: `mix_probability` is above 0 and `levels` is None.
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
            f"levels must be given if clips are mixed (mix_probability "
            f"{config.mix_probability:g}), got None"
        )
    partners, shares, amplitudes = draw_mixing(
        levels * factors.abs(),
        0.0 if unmixed else config.mix_probability,
        generator,
        batch_size or max(1, count),
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
    levels: Tensor, probability: float, generator: Generator, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw which clips of each batch are mixed, with which others, and how.

    The share r of the first clip is uniform in [0, 1). Amplitudes are chosen so that the clips'
    sound levels (here the RMS of the whole clip) have the ratio r : 1 − r and the sum keeps the
    energy. A clip is not mixed if it or its partner is silent (a part of the label would have no
    sound), or if it is alone in its batch.

    Args:
        levels: RMS of each clip, shape (rows,), batch after batch.
        probability: That a clip is mixed.
        generator: Source of randomness, on the CPU.
        batch_size: Rows of each batch; the last may be shorter.
    Returns:
        Each clip's partner, shape (rows,); the clip's own share of the label, shape (rows,); and
        the amplitudes of both clips, shape (rows, 2). A clip that is not mixed has share 1 and
        amplitudes 1 and 0.
    Source: Tokozume, Ushiku, Harada, "Learning from Between-class Examples for Deep Sound
        Recognition" (ICLR 2018), section 3.2.
    """
    partners = _partners(len(levels), generator, batch_size)
    chosen = torch.rand(len(levels), generator=generator) < probability
    ratio = torch.rand(len(levels), generator=generator)
    mixed = chosen & _are_pairs(partners, levels)

    amplitude = ratio * levels[partners]
    amplitude = amplitude / (amplitude + (1 - ratio) * levels)
    energy = (amplitude.square() + (1 - amplitude).square()).sqrt()
    amplitudes = torch.stack((amplitude, 1 - amplitude), dim=1) / energy.unsqueeze(1)
    amplitudes = torch.where(mixed.unsqueeze(1), amplitudes, torch.tensor([1.0, 0.0]))
    return partners, torch.where(mixed, ratio, 1.0), amplitudes


def draw_cuts(
    targets: Tensor,
    levels: Tensor | None,
    num_frames: int,
    num_mel_bins: int,
    config: AugmentConfig,
    generator: Generator,
    *,
    batch_size: int | None = None,
    unmixed: bool = False,
) -> tuple[Cuts | None, Tensor]:
    """Draw whose features take frames or mel bins from another clip's, and the labels then.

    Half of them take a stretch of frames at a uniform place, the others the mel bins below or above
    a cut. The share that is taken is uniform in [0, 1), and so is the partner's of the label. A
    clip keeps its own if it or its partner is silent, or if it is alone in its batch.

    Args:
        targets: Label shares, shape (rows, num_classes), on the CPU; not changed.
        levels: The clips' `Dataset.sound_levels`, shape (rows,), on the CPU; None if unknown: then
            none counts as silent.
        num_frames: Frames of a clip, before padding.
        num_mel_bins: Mel bins of the features.
        config: `cutmix_probability` is the probability of a cut.
        generator: Source of randomness, on the CPU.
        batch_size: As `draw_mixtures`.
        unmixed: Whether all clips keep their own features; the cuts are then empty, not None.
    Returns:
        The cuts, None if they are off; and the label shares, shape (rows, num_classes).
    Source: Yun et al., "CutMix" (ICCV 2019), section 3.1, here along one axis at a time.
    """
    if config.cutmix_probability == 0:
        return None, targets
    count = len(targets)
    partners = _partners(count, generator, batch_size or max(1, count))
    probability = 0.0 if unmixed else config.cutmix_probability
    chosen = torch.rand(count, generator=generator) < probability
    chosen &= _are_pairs(partners, levels)
    along_time = torch.rand(count, generator=generator) < 0.5
    share, place = torch.rand(2, count, 1, generator=generator)

    frames = _stretch((share * num_frames).long(), place, num_frames)
    frames &= (chosen & along_time).unsqueeze(1)
    cut = (share * num_mel_bins).long()
    bin_ = torch.arange(num_mel_bins)
    bins = torch.where(place < 0.5, bin_ < cut, bin_ >= num_mel_bins - cut)
    bins &= (chosen & ~along_time).unsqueeze(1)

    taken = frames.float().mean(dim=1, keepdim=True) + bins.float().mean(dim=1, keepdim=True)
    return Cuts(partners, frames, bins), (1 - taken) * targets + taken * targets[partners]


def spliced(features: Tensor, cuts: Cuts) -> Tensor:
    """Return features with parts from others, as the cuts say.

    Args:
        features: Shape (batch, target_frames, num_mel_bins), normalised; the rows of the cuts come
            first. Frames beyond those of the cuts are padding, or are cut off.
        cuts: `partners` are rows of the features.
    Returns:
        The rows of the cuts, shape (rows, target_frames, num_mel_bins).
    """
    own, others = features[: len(cuts.partners)], features[cuts.partners]
    size = features.shape[1]
    frames = cuts.frames[:, :size]
    frames = functional.pad(frames, (0, size - frames.shape[1]))
    return torch.where(frames.unsqueeze(2) | cuts.bins.unsqueeze(1), others, own)


def draw_feature_changes(
    batch: int,
    num_frames: int,
    config: AugmentConfig,
    fbank: FbankConfig,
    generator: Generator,
) -> FeatureChanges:
    """Draw for each clip a random filter, and the bands of frames and mel bins to mask.

    A mask's width is uniform from 0 to the largest; its position is uniform over those where it
    fits. The filter's gains are normal at evenly spaced mel bins, from the lowest to the highest.

    Args:
        batch: Number of clips.
        num_frames: Frames of a clip, before padding.
        config: Widths and number of the masks; standard deviation and points of the filter.
        fbank: The features' settings.
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
    """Draw the patches that a training step keeps of each clip; None keeps all.

    Returns:
        Indices in ascending order, shape (batch, num_kept), at least one patch a clip.
    Source: Koutini et al., "Efficient Training of Audio Transformers with Patchout" (Interspeech
        2022), section 2.2, unstructured.
    """
    num_kept = max(1, round(num_patches * (1 - config.patch_drop)))
    if num_kept == num_patches:
        return None
    draws = torch.rand(batch, num_patches, generator=generator).numpy()
    kept = draws.argpartition(num_kept - 1, axis=1)[:, :num_kept]  # takes half of torch's time
    return torch.from_numpy(np.sort(kept, axis=1))


def _partners(count: int, generator: Generator, batch_size: int) -> Tensor:
    """Draw for each row another of its batch, shape (count,); one that is alone has itself."""
    rows = torch.arange(count)
    batches = rows // batch_size
    first = batches * batch_size
    sizes = (count - first).clamp(max=batch_size)
    steps = torch.rand(-(-count // batch_size), generator=generator)[batches]
    return first + (rows - first + 1 + (steps * (sizes - 1)).long()) % sizes


def _are_pairs(partners: Tensor, levels: Tensor | None) -> Tensor:
    """Return which rows have a partner and can be heard, as it can, shape (rows,)."""
    paired = partners != torch.arange(len(partners))
    if levels is None:
        return paired
    audible = levels > SILENT_RMS
    return paired & audible & audible[partners]


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
    """Interpolate linearly between evenly spaced values, shape (batch, size)."""
    lines = functional.interpolate(
        values.unsqueeze(1), size=size, mode="linear", align_corners=True
    )
    return lines.squeeze(1)


def _bands(batch: int, size: int, largest: int, count: int, generator: Generator) -> Tensor:
    """Draw `count` bands of up to `largest` of `size` places; return a mask, (batch, size)."""
    width = torch.randint(largest + 1, (batch, count, 1), generator=generator)
    place = torch.rand(batch, count, 1, generator=generator)
    within = torch.zeros(batch, size, dtype=torch.bool)
    for band in range(count):  # all at once would take `count` times the memory
        within |= _stretch(width[:, band], place[:, band], size)
    return within


def _stretch(width: Tensor, place: Tensor, size: int) -> Tensor:
    """Return which of `size` indices lie in a stretch, one for each row.

    Args:
        width: Indices in it, from 0 to `size`, shape (rows, 1), int64.
        place: Where it lies among the places where it fits, in [0, 1), shape (rows, 1).
        size: Of the whole.
    """
    begin = (place * (size - width + 1)).long()
    index = torch.arange(size)
    return (index >= begin) & (index < begin + width)
