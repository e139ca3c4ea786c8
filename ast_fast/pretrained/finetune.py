"""A model that others trained as the beginning of a run: `--model.pretrained`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ast_fast.pretrained.checkpoint import check_found, find, load_found
from ast_fast.pretrained.found import Found
from ast_fast.pretrained.preprocessor import UNCHANGED
from ast_fast.settings.config import Config
from ast_fast.settings.values import shown
from ast_fast_kernels.errors import InputError

KEY = "model.pretrained"

RECIPE: dict[str, Any] = {
    "training.epochs": 25,
    "training.batch_size": 48,
    "training.optimizer": "adamw",
    "training.learning_rate": 1e-5,
    "training.warmup_epochs": 0.0,
    "training.final_learning_rate": 4e-7,
    "training.weight_decay": 5e-7,
    "training.label_smoothing": 0.0,
    "training.clip_grad_norm": 0.0,
    "training.ema_decay": 0.0,
    "augment.roll": False,
    "augment.gain_db": 0.0,
    "augment.polarity": False,
    "augment.mix_probability": 0.0,
    "augment.freq_mask": 24,
    "augment.time_mask": 96,
    "augment.num_masks": 1,
    "augment.patch_drop": 0.0,
    "features.norm_per_sample": False,
    "features.padding": "zero",
}
"""The original AST's settings for ESC-50 from AudioSet's weights. Its learning rate falls by 0.85
each epoch from the sixth on; the cosine here has the same ends.
Source: YuanGongND/ast, egs/esc50/run_esc50.sh and src/traintest.py."""

FREE = {"pretrained", "dropout"}
"""Settings of the model that fine-tuning may choose."""
FREE_FBANK = {"num_mel_bins", "dither"}
"""Settings of the filterbank that it may choose: positions are interpolated to other bins."""


def finetuning_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a run that fine-tunes a model, by key; none without a model.

    Args:
        given: The settings that the user gives, by key.
    Raises:
        InputError: The model cannot be read.
    """
    if given.get(KEY) is None:
        return {}
    found = _find(given[KEY], given.get("model.patch_stride"))
    sizes = dataclasses.asdict(found.model)
    model = {f"model.{name}": value for name, value in sizes.items() if name != "pretrained"}
    fbank = {
        "fbank.sample_frequency": found.preprocessor.fbank.sample_frequency,
        "fbank.num_mel_bins": found.preprocessor.num_mel_bins,
    }
    return RECIPE | model | fbank


def check_pretrained(config: Config) -> None:
    """Raise if a run's settings contradict the model that it fine-tunes, if any.

    Raises:
        InputError: The model cannot be read; or the message names the setting, its rule and its
            value.
    """
    if config.model.pretrained is not None:
        _find_for(config)


def pretrained_weights(config: Config) -> dict[str, Tensor]:
    """Return the weights that a run begins with, by name: all but those of the head and its norm.

    As in the original, the head begins anew: it is for other classes. Positions are cut or
    interpolated to the run's frames and bins.

    Args:
        config: The run's settings, with `config.model.pretrained`.
    Raises:
        InputError: The model cannot be read, or is not that of the settings.
    """
    model = load_found(
        _find_for(config),
        num_frames=config.features.target_frames,
        num_mel_bins=config.fbank.num_mel_bins,
    ).model
    return {name: t for name, t in model.state_dict().items() if not name.startswith("head")}


def _find_for(config: Config) -> Found:
    """Return what a run's model says of itself; raise if the settings contradict it."""
    path = config.model.pretrained
    assert path is not None
    found = _find(path, config.model.patch_stride)
    check_found(found)
    for table, there, here, free in (
        ("model", found.model, config.model, FREE),
        ("fbank", found.preprocessor.fbank, config.fbank, FREE_FBANK),
    ):
        for name, value in dataclasses.asdict(there).items():
            got = getattr(here, name)
            if name not in free and got != value:
                raise InputError(
                    f"{table}.{name} must be {shown(value)}, as in {path}, got {shown(got)}"
                )
    return found


def _find(path: Path, patch_stride: tuple[int, int] | None) -> Found:
    """Return what a model says of itself; its statistics are not asked for.

    Those of the run's training clips normalise its input.
    """
    if path.suffix != ".pth":
        patch_stride = None  # a folder says it
    try:
        return find(path, statistics=UNCHANGED, patch_stride=patch_stride)
    except OSError as error:  # a name longer than the system takes, or no permission
        raise InputError(f"{KEY} {path} cannot be read: {error.strerror}") from error
