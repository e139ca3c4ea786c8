"""Every rule of the settings beyond their types, with its message."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ast_fast.machine.device import Placement
from ast_fast.settings.config import (
    AugmentConfig,
    Config,
    ModelConfig,
    TrainingConfig,
)
from ast_fast_kernels.audio.rates import SAMPLE_RATES
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig

MOST_THREADS = 1024
MAX_CLIP_SECONDS = 3600.0


def check_config(config: Config, num_samples: int, placement: Placement) -> None:
    """Raise if these settings cannot train a fold, before any work is done.

    Args:
        config: The run's settings.
        num_samples: Samples of a clip.
        placement: Where the model trains.
    Raises:
        InputError: The message names the setting, its rule and its value.
    """
    check_training(config.training)
    if config.seed < 0:
        raise InputError(f"seed must be at least 0, got {config.seed}")
    check_features(config, num_samples)
    check_model(config.model, config.fbank.num_mel_bins, config.features.target_frames)
    num_frames = config.fbank.num_frames(num_samples)
    check_augment(config.augment, config.fbank, num_frames)
    check_memory(
        config, num_samples=num_samples, num_clips=1, num_classes=2, device=placement.device
    )


def check_threads(config: Config) -> None:
    """Raise if a number of threads is out of range.

    Raises:
        InputError: The message names the setting, its rule and its value.
    """
    for name, value in (("threads", config.threads), ("audio.workers", config.audio.workers)):
        if not 0 <= value <= MOST_THREADS:
            raise InputError(f"{name} must be from 0 to {MOST_THREADS}, got {value}")


def check_audio(config: Config) -> None:
    """Raise if files cannot be decoded to such clips.

    Raises:
        InputError: The sample rate or the length of a clip is out of range.
    """
    rate = config.fbank.sample_frequency
    lowest, highest = SAMPLE_RATES
    if rate != int(rate) or not lowest <= rate <= highest:
        rule = f"a whole number of Hz from {lowest} to {highest}"
        raise InputError(f"fbank.sample-frequency must be {rule}, got {rate:g}")
    seconds = config.audio.clip_seconds
    if not 0.5 < seconds * rate <= MAX_CLIP_SECONDS * rate:
        rule = f"from one sample to {MAX_CLIP_SECONDS:g} seconds"
        raise InputError(f"audio.clip-seconds must be {rule}, got {seconds:g}")


def check_training(config: TrainingConfig) -> None:
    """Raise if a training setting is out of range.

    Raises:
        InputError: The message names the setting, its rule and its value.
    """
    for name in ("epochs", "batch_size"):
        value = getattr(config, name)
        if value < 1:
            raise InputError(f"training.{name} must be at least 1, got {value}")
    if not 0 < config.learning_rate < math.inf:
        raise InputError(
            f"training.learning_rate must be finite and above 0, got {config.learning_rate}"
        )
    for name in ("weight_decay", "warmup_epochs", "final_learning_rate", "clip_grad_norm"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise InputError(f"training.{name} must be finite and at least 0, got {value}")
    for name in ("label_smoothing", "ema_decay"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise InputError(f"training.{name} must be from 0 to below 1, got {value}")
    if config.loss == "presence" and config.label_smoothing:
        raise InputError(
            "training.label_smoothing must be 0 where training.loss is presence, "
            f"got {config.label_smoothing:g}"
        )


def check_memory(
    config: Config,
    *,
    num_samples: int,
    num_clips: int,
    num_classes: int,
    device: torch.device | None = None,
) -> None:
    """Raise if training cannot fit into all of the machine's memory, free or not.

    This counts the minimum: weights with their gradients, moments and average; a batch of
    waveforms, features and tokens; the filters; and the clips' copies at other speeds, which the
    host keeps. Settings that pass can still need too much.

    Args:
        config: The run's settings, in range.
        num_samples: Samples of a clip.
        num_clips: Clips of the data set.
        num_classes: Width of the logits.
        device: Where the model trains; None is the CPU.
    Raises:
        InputError: The message names the settings that need most, and both sizes.
    """
    needs = _memory_needs(config, num_samples, num_clips, num_classes)
    speeds = _speeds_need(config, num_samples, num_clips)
    if device is not None and device.type == "cuda":
        _check_fits([speeds], _physical_memory())
        _check_fits(needs, torch.cuda.get_device_properties(device).total_memory)
    else:
        _check_fits([*needs, speeds], _physical_memory())


def _check_fits(needs: Sequence[_Need], available: int) -> None:
    needed = sum(need.bytes for need in needs)
    if needed > available:
        most = max(needs, key=lambda need: need.bytes)
        raise InputError(
            f"{most.settings} need at least {needed / 2**30:.4g} GiB of memory; this machine has "
            f"{available / 2**30:.4g}"
        )


MOST_BLOCKS = 1000
"""Blocks of a model that is read from a file."""
MOST_PATCHES = 2**16
"""Patches of a clip: attention takes time with their square."""
MOST_SAMPLES = 2**30
"""Samples of a clip."""
MOST_FFT = 2**20
"""Samples of an FFT."""
MOST_FILTER_VALUES = 2**27
"""Values of all mel filters, which are computed when a model is first used."""


def check_prediction(config: Config, num_samples: int, *, num_classes: int) -> None:
    """Raise if no clip can be classified with a model of these settings, before it is built.

    The settings come with the model's file, and the file's size bounds its weights. This bounds
    what settings cost beyond them: clips, features, patches, filters.

    Args:
        config: The settings, of the right types.
        num_samples: Samples of a clip.
        num_classes: Width of the logits.
    Raises:
        InputError: The message names the setting, its rule and its value.
    """
    model, fbank, frames = config.model, config.fbank, config.features.target_frames
    filter_values = fbank.num_mel_bins * (fbank.fft_size // 2 + 1)
    for name, value, most in (
        ("model.depth", model.depth, MOST_BLOCKS),
        ("model.conv_depth", model.conv_depth, MOST_BLOCKS),
        ("an FFT's samples (fbank.frame_length, fbank.n_fft)", fbank.fft_size, MOST_FFT),
        ("the mel filters' values (fbank.num_mel_bins)", filter_values, MOST_FILTER_VALUES),
        ("a clip's samples (audio.clip_seconds)", num_samples, MOST_SAMPLES),
    ):
        if value > most:
            raise InputError(f"{name} must be at most {most}, got {value}")
    check_features(config, num_samples)
    check_model(model, fbank.num_mel_bins, frames)
    if config.num_patches > MOST_PATCHES:
        raise InputError(
            f"model.patch_stride must give at most {MOST_PATCHES} patches, got {config.num_patches}"
        )
    needed = 4 * _least_weights(config, num_classes) + 8 * filter_values
    needed += _bytes_of_clip(config, num_samples)
    available = _physical_memory()
    if needed > available:
        raise InputError(
            f"model.embed_dim {model.embed_dim}, features.target_frames {frames} and "
            f"fbank.num_mel_bins {fbank.num_mel_bins} need at least {needed / 2**30:.4g} GiB of "
            f"memory; this machine has {available / 2**30:.4g}"
        )


def clips_that_fit(config: Config, num_samples: int) -> int:
    """Return how many clips can be classified at once in half of this machine's memory."""
    return max(1, _physical_memory() // 2 // _bytes_of_clip(config, num_samples))


def _bytes_of_clip(config: Config, num_samples: int) -> int:
    """Return the least memory that a clip takes while it is classified."""
    model = config.model
    stem = sum(stage.cells * stage.width for stage in model.stem_stages)
    token = model.patch_values + 5 * model.embed_dim + model.hidden_width + stem
    features = config.features.target_frames * config.fbank.num_mel_bins
    return 8 * num_samples + 8 * features + 4 * config.num_patches * token


def _least_weights(config: Config, num_classes: int) -> int:
    """Return about how many weights a model has, and no more."""
    model, width = config.model, config.model.embed_dim
    weights = model.depth * (4 * width**2 + 2 * width * model.hidden_width)
    weights += model.conv_depth * 2 * width * model.conv_hidden_width
    weights += sum(stage.values * stage.width for stage in model.stem_stages)
    return weights + width * (model.patch_values + num_classes)


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _Need(NamedTuple):
    """Bytes of memory, and the settings that determine them, as a message names them."""

    settings: str
    bytes: int


def _speeds_need(config: Config, num_samples: int, num_clips: int) -> _Need:
    """Return what the clips' copies at other speeds need of the host's memory."""
    speeds = config.augment.speeds
    copies = 1 + len(speeds) if speeds else 0
    return _Need(f"augment.speeds {_numbers(speeds)}", 2 * copies * num_clips * num_samples)


def _memory_needs(
    config: Config, num_samples: int, num_clips: int, num_classes: int
) -> list[_Need]:
    """Return the least memory that training needs, part by part."""
    model, fbank, training = config.model, config.fbank, config.training
    width, target_frames, patches = (
        model.embed_dim,
        config.features.target_frames,
        config.num_patches,
    )
    copies = 3 if training.optimizer == "muon" else 4  # weights, gradients, and 1 or 2 moments
    copies += training.ema_decay > 0
    batch = min(training.batch_size, num_clips)

    block = 4 * width**2 + 2 * width * model.hidden_width
    weights = model.depth * block + width * (patches + num_classes)
    if not model.stem_widths:
        weights += width * model.patch_values
    values = batch * (num_samples + target_frames * fbank.num_mel_bins + patches * width)
    filters = fbank.num_mel_bins * (fbank.fft_size // 2 + 1)  # in float64
    needs = [
        _Need(
            f"model.embed_dim {width}, model.depth {model.depth} and "
            f"model.mlp_ratio {model.mlp_ratio:g}",
            4 * copies * weights,
        ),
        _Need(
            f"training.batch_size {training.batch_size}, features.target_frames {target_frames} "
            f"and fbank.num_mel_bins {fbank.num_mel_bins}",
            4 * values,
        ),
        _Need(
            f"fbank.num_mel_bins {fbank.num_mel_bins} and an FFT of {fbank.fft_size} samples",
            8 * filters,
        ),
    ]
    if model.stem_widths:
        stages = model.stem_stages
        stem_weights = sum(stage.values * stage.width for stage in stages)
        stem_weights += width * model.patch_values
        tokens = batch * patches * sum(stage.cells * stage.width for stage in stages)
        needs.append(
            _Need(
                f"model.stem_widths {_numbers(model.stem_widths)}",
                4 * (copies * stem_weights + tokens),
            )
        )
    if model.conv_depth:
        hidden = model.conv_hidden_width
        needs.append(
            _Need(
                f"model.conv_depth {model.conv_depth} and model.conv_mlp_ratio "
                f"{model.conv_mlp_ratio:g}",
                4 * hidden * (model.conv_depth * copies * 2 * width + batch * patches),
            )
        )
    return needs


def check_features(config: Config, num_samples: int) -> None:
    """Raise if clips of `num_samples` samples cannot give usable features.

    Args:
        config: `config.fbank` and `config.features` are checked.
        num_samples: Samples of a clip.
    Raises:
        InputError: The message names the setting, its rule and its value.
    """
    if config.features.target_frames < 1:
        raise InputError(
            f"features.target_frames must be at least 1, got {config.features.target_frames}"
        )
    if config.features.padding == "zero" and config.features.norm_per_sample:
        raise InputError("features.padding must be silence where features.norm_per_sample is on")
    num_frames = config.fbank.num_frames(num_samples)
    if num_frames < 1:
        raise InputError(
            f"audio.clip_seconds must give at least one frame of {config.fbank.window_size} "
            f"samples (fbank.frame_length {config.fbank.frame_length:g} ms), "
            f"got {num_samples} samples"
        )
    if config.features.target_frames < num_frames:
        raise InputError(
            f"features.target_frames must be at least the {num_frames} frames of a clip "
            f"(audio.clip_seconds {config.audio.clip_seconds:g} at fbank.sample_frequency "
            f"{config.fbank.sample_frequency:g}), got {config.features.target_frames}"
        )
    if not math.isfinite(config.fbank.log_silence):
        raise InputError(
            "fbank.log_floor and fbank.log_offset must not both be 0, or silence becomes -inf; "
            f"got {config.fbank.log_floor:g} and {config.fbank.log_offset:g}"
        )


def check_model(config: ModelConfig, num_mel_bins: int, num_frames: int) -> None:
    """Raise if no model can be built from these sizes.

    Args:
        config: The model's settings.
        num_mel_bins: Mel bins of the features.
        num_frames: Frames of the features, padding included.
    Raises:
        InputError: A size is out of range, or two do not fit; the message names the setting.
    """
    for name in ("embed_dim", "num_heads", "depth"):
        value = getattr(config, name)
        if value < 1:
            raise InputError(f"model.{name} must be at least 1, got {value}")
    if config.embed_dim % config.num_heads:
        raise InputError(
            f"model.embed_dim must be divisible by model.num_heads ({config.num_heads}), "
            f"got {config.embed_dim}"
        )
    if config.position_embedding == "sinusoidal" and config.embed_dim % 4:
        raise InputError(
            "model.embed_dim must be divisible by 4 for model.position_embedding sinusoidal, "
            f"got {config.embed_dim}"
        )
    if config.token_positions and not config.num_class_tokens:
        raise InputError(
            f"model.token_positions must be off where model.pool is {config.pool}: there is no "
            "class token"
        )
    for name in ("norm_eps", "head_norm_eps"):
        value = getattr(config, name)
        if not 0 < value <= 1:
            raise InputError(f"model.{name} must be above 0 and at most 1, got {value:g}")
    for name in ("dropout", "stochastic_depth"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise InputError(f"model.{name} must be from 0 to below 1, got {value}")
    for name in ("mlp_ratio", "conv_mlp_ratio"):
        value = getattr(config, name)
        if not 1 <= config.embed_dim * value < math.inf:
            raise InputError(f"model.{name} must give an MLP at least 1 wide, got {value}")
    for name in ("patch_size", "patch_stride"):
        pair = getattr(config, name)
        if min(pair) < 1:
            raise InputError(
                f"model.{name} must be at least 1 along both axes, got {_numbers(pair)}"
            )
    if config.patch_size[0] > num_mel_bins or config.patch_size[1] > num_frames:
        raise InputError(
            f"model.patch_size must fit into the spectrogram ({num_mel_bins} mel bins by "
            f"{num_frames} frames), got {_numbers(config.patch_size)}"
        )
    if config.conv_depth < 0:
        raise InputError(f"model.conv_depth must be at least 0, got {config.conv_depth}")
    stages = len(config.stem_widths)
    if any(width < 2 for width in config.stem_widths):  # normalising one value leaves nothing
        raise InputError(
            f"model.stem_widths must each be at least 2, got {_numbers(config.stem_widths)}"
        )
    if stages and (
        config.patch_size != config.patch_stride
        or any(side % 2**stages for side in config.patch_size)
    ):
        raise InputError(
            f"model.patch_size must equal model.patch_stride ({_numbers(config.patch_stride)}) and "
            f"be divisible by 2**{stages}, as model.stem_widths has {stages} stages, "
            f"got {_numbers(config.patch_size)}; model.stem_widths none has no such rule"
        )


def _numbers(numbers: tuple[float, ...]) -> str:
    return " ".join(str(n) if isinstance(n, int) else f"{n:g}" for n in numbers)


MOST_GAIN_DB = 100.0
"""A factor of 100,000; int16 audio spans 96 dB."""

MOST_POINTS = 100
"""Points of a filter."""

MOST_MASKS = 100
"""Masks of each kind; all their positions are drawn at once, which takes memory."""


def check_augment(config: AugmentConfig, fbank: FbankConfig, num_frames: int) -> None:
    """Raise if a setting of augmentation is out of range.

    Args:
        config: The settings of augmentation.
        fbank: The settings of the filterbank.
        num_frames: Frames of a clip, before padding.
    Raises:
        InputError: The message names the setting, its rule and its value.
    """
    for name in ("mix_probability", "cutmix_probability", "unmixed_share"):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise InputError(f"augment.{name} must be from 0 to 1, got {value}")
    for speed in config.speeds:
        hertz = speed * fbank.sample_frequency
        if not 0.5 <= speed <= 2 or abs(hertz - round(hertz)) > 1e-6:
            raise InputError(
                "augment.speeds must be from 0.5 to 2 and give whole numbers of Hz times "
                f"fbank.sample_frequency ({fbank.sample_frequency:g}), got {speed:g}"
            )
    if not 0 <= config.patch_drop < 1:
        raise InputError(f"augment.patch_drop must be from 0 to below 1, got {config.patch_drop}")
    for name in ("gain_db", "filter_db"):
        value = getattr(config, name)
        if not 0 <= value <= MOST_GAIN_DB:
            raise InputError(f"augment.{name} must be from 0 to {MOST_GAIN_DB:g}, got {value}")
    if not 2 <= config.filter_points <= MOST_POINTS:
        raise InputError(
            f"augment.filter_points must be from 2 to {MOST_POINTS}, got {config.filter_points}"
        )
    if config.filter_db > 0 and not fbank.use_log_fbank:
        raise InputError(
            "augment.filter_db must be 0 where fbank.use_log_fbank is off, "
            f"got {config.filter_db:g}"
        )
    if not 0 <= config.num_masks <= MOST_MASKS:
        raise InputError(
            f"augment.num_masks must be from 0 to {MOST_MASKS}, got {config.num_masks}"
        )
    for name, largest, unit in (
        ("freq_mask", fbank.num_mel_bins, "mel bins of the features"),
        ("time_mask", num_frames, "frames of a clip"),
    ):
        value = getattr(config, name)
        if value < 0 or (value > largest and config.num_masks > 0):
            raise InputError(f"augment.{name} must be from 0 to the {largest} {unit}, got {value}")
