"""Augmentation of training clips: of waveforms, of features and of patches.

Every random number is drawn on the CPU from the generator given, so a batch is augmented alike on
every device. Nothing here is used when testing.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ast_fast.config import AugmentConfig
from ast_fast.errors import InputError

SILENT_RMS = 1e-4
"""Level (−80 dB of full scale) below which a clip counts as silent and is mixed with no other."""

MOST_GAIN_DB = 100.0
"""Five decimal powers, as much as int16 audio spans."""
MOST_MASKS = 100
"""Masks of each kind; their places are drawn at once and take memory."""


def augment_waveforms(
    waveforms: Tensor, targets: Tensor, config: AugmentConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return waveforms rotated, scaled, flipped and mixed, with their soft labels.

    Args:
        waveforms: Shape (batch, num_samples), floating; not changed.
        targets: Label shares, shape (batch, num_classes), each row summing to 1; not changed.
        config: What to do, and how much.
        generator: Source of randomness, on the CPU.
    Returns:
        Waveforms and targets, same shapes. Mixed waveforms can leave [-1, 1].
    """
    if config.roll:
        waveforms = roll(waveforms, generator)
    if config.gain_db > 0 or config.polarity:
        waveforms = waveforms * _factors(len(waveforms), config, generator).to(waveforms)
    if config.mix_probability > 0:
        waveforms, targets = mix(waveforms, targets, config.mix_probability, generator)
    return waveforms, targets


def roll(waveforms: Tensor, generator: Generator) -> Tensor:
    """Return each waveform rotated by a number of samples of its own, uniform over its length.

    Args:
        waveforms: Shape (batch, num_samples).
        generator: Source of randomness, on the CPU.
    """
    batch, num_samples = waveforms.shape
    start = torch.randint(num_samples, (batch,), generator=generator).to(waveforms.device)
    rotations = torch.cat((waveforms, waveforms), dim=1).unfold(1, num_samples, 1)  # a view
    return rotations[torch.arange(batch, device=waveforms.device), start]


def mix(
    waveforms: Tensor, targets: Tensor, probability: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return a share of the clips mixed with another clip of the batch, labels mixed alike.

    The ratio r of the first clip is uniform in [0, 1). Amplitudes are chosen so that r is the ratio
    of sound levels (here the RMS of the whole clip), and the sum keeps their energy. A clip is not
    mixed when it or its partner is silent: half a label would then have no sound.

    Args:
        waveforms: Shape (batch, num_samples).
        targets: Label shares, shape (batch, num_classes).
        probability: Chance of a clip to be mixed; a batch of one stays as it is.
        generator: Source of randomness, on the CPU.
    Source: Tokozume, Ushiku, Harada, "Learning from Between-class Examples for Deep Sound
        Recognition" (ICLR 2018), section 3.2.
    """
    batch = len(waveforms)
    if batch < 2:
        return waveforms, targets
    offset = torch.randint(1, batch, (), generator=generator)
    chosen = torch.rand(batch, generator=generator) < probability
    ratio = torch.rand(batch, generator=generator).to(waveforms)
    first = torch.arange(batch)
    second = (first + offset) % batch

    rms = torch.linalg.vector_norm(waveforms, dim=1) / waveforms.shape[1] ** 0.5
    audible = (rms > SILENT_RMS).cpu()
    first = first[chosen & audible & audible[second]]
    if len(first) == 0:
        return waveforms, targets
    second, first = second[first].to(waveforms.device), first.to(waveforms.device)

    ratio = ratio[first].unsqueeze(1)
    amplitude = ratio * rms[second].unsqueeze(1)
    amplitude = amplitude / (amplitude + (1 - ratio) * rms[first].unsqueeze(1))
    energy = (amplitude.square() + (1 - amplitude).square()).sqrt()
    mixed = waveforms[first] * (amplitude / energy)
    mixed.addcmul_(waveforms[second], (1 - amplitude) / energy)
    ratio = ratio.to(targets)
    mixed_targets = ratio * targets[first] + (1 - ratio) * targets[second]
    return waveforms.index_copy(0, first, mixed), targets.index_copy(0, first, mixed_targets)


def spec_augment(features: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Return features with random bands of mel bins and of frames set to 0, each clip its own.

    Meant for normalised features, where 0 is the mean. Widths are uniform from 0 to the largest,
    positions uniform over those where the whole band fits.

    Args:
        features: Shape (batch, num_frames, num_mel_bins); not changed.
        config: Widths and number of the masks.
        generator: Source of randomness, on the CPU.
    Source: Park et al., "SpecAugment" (Interspeech 2019), section 2; no time warping.
    """
    batch, num_frames, num_mel_bins = features.shape
    masked = torch.zeros(1, 1, 1, dtype=torch.bool)
    if config.time_mask > 0 and config.num_masks > 0:
        bands = _bands(batch, num_frames, config.time_mask, config.num_masks, generator)
        masked = masked | bands.unsqueeze(2)
    if config.freq_mask > 0 and config.num_masks > 0:
        bands = _bands(batch, num_mel_bins, config.freq_mask, config.num_masks, generator)
        masked = masked | bands.unsqueeze(1)
    return features.masked_fill(masked.to(features.device), 0.0)


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
    order = torch.rand(batch, num_patches, generator=generator).argsort(dim=1)
    return order[:, :num_kept].sort(dim=1).values


def check_augment(config: AugmentConfig, num_mel_bins: int, num_frames: int) -> None:
    """Raise if a setting is out of range.

    Args:
        config: The settings.
        num_mel_bins: Mel bins of the features.
        num_frames: Frames of a clip, before padding.
    Raises:
        InputError: The message names the setting, its rule and its value.
    """
    if not 0 <= config.mix_probability <= 1:
        raise InputError(
            f"augment.mix_probability must be from 0 to 1, got {config.mix_probability}"
        )
    if not 0 <= config.patch_drop < 1:
        raise InputError(f"augment.patch_drop must be from 0 to below 1, got {config.patch_drop}")
    if not 0 <= config.gain_db <= MOST_GAIN_DB:
        raise InputError(
            f"augment.gain_db must be from 0 to {MOST_GAIN_DB:g}, got {config.gain_db}"
        )
    if not 0 <= config.num_masks <= MOST_MASKS:
        raise InputError(
            f"augment.num_masks must be from 0 to {MOST_MASKS}, got {config.num_masks}"
        )
    for name, largest, unit in (
        ("freq_mask", num_mel_bins, "mel bins of the features"),
        ("time_mask", num_frames, "frames of a clip"),
    ):
        value = getattr(config, name)
        if value < 0 or (value > largest and config.num_masks > 0):
            raise InputError(f"augment.{name} must be from 0 to the {largest} {unit}, got {value}")


def _factors(batch: int, config: AugmentConfig, generator: Generator) -> Tensor:
    """Draw each clip's gain and sign, shape (batch, 1)."""
    factors = torch.ones(batch, 1)
    if config.gain_db > 0:
        decibels = (2 * torch.rand(batch, 1, generator=generator) - 1) * config.gain_db
        factors = 10 ** (decibels / 20)
    if config.polarity:
        factors = factors * (1 - 2 * torch.randint(2, (batch, 1), generator=generator))
    return factors


def _bands(batch: int, size: int, largest: int, count: int, generator: Generator) -> Tensor:
    """Draw `count` bands of at most `largest` out of `size` places, shape (batch, size)."""
    width = torch.randint(largest + 1, (batch, count, 1), generator=generator)
    begin = (torch.rand(batch, count, 1, generator=generator) * (size - width + 1)).long()
    place = torch.arange(size)
    return ((place >= begin) & (place < begin + width)).any(dim=1)
