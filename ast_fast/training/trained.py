"""The model of a finished fold, read from a file that anyone may have written.

Everything is checked before it costs anything: the header against the file's size, the facts by
type and rule, the tensors' names and shapes against the settings. Only then are tensors read and
the model built, from them alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ast_fast.data.cache import decode_settings
from ast_fast.features import Statistics
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import Config
from ast_fast.settings.rules import check_prediction
from ast_fast.settings.toml import config_from_settings
from ast_fast.settings.values import checked_names, shown
from ast_fast.training import checkpoint
from ast_fast.training.calibration import TEMPERATURE
from ast_fast.training.manifest import check_files, read_manifest
from ast_fast.training.results import MODEL
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name

LARGEST_TEMPERATURE = 1e9
"""Its reciprocal is the least."""


@dataclass(frozen=True)
class TrainedModel:
    """A model on the CPU, with the facts that it is used with."""

    model: AudioSpectrogramTransformer
    config: Config
    class_names: list[str]
    statistics: Statistics | None
    temperature: float | None
    """What logits are divided by before the softmax; None if the file has none."""


def check_is_file(path: Path) -> None:
    """Raise if a checkpoint is no file.

    Raises:
        InputError: It is not; the message says what a checkpoint can be.
    """
    try:
        found = path.is_file()
    except OSError as error:  # no permission, or a name longer than the system takes
        raise InputError(f"CHECKPOINT {path} cannot be read: {error.strerror}") from error
    if not found:
        raise InputError(
            "CHECKPOINT must be a run's fold-N/model.safetensors, a folder with transformers' "
            f"config.json or a .pth of the original AST, got {path}"
        )


def load_trained(path: Path) -> TrainedModel:
    """Return the model of a finished fold.

    Raises:
        InputError: The file is missing or damaged, is no model of this program, or would need more
            than this machine has. One line says what must hold.
    """
    check_is_file(path)
    in_fold = path.name == MODEL and path.absolute().parent.name.startswith("fold-")
    files = read_manifest(path.parent) if in_fold else None
    if files is not None:
        check_files(path.parent, files, (MODEL,))
    stored = checkpoint.read_header(path)
    facts = stored.facts
    if "class_names" not in facts or any(name.startswith("optimizer.") for name in stored.shapes):
        raise InputError(f"CHECKPOINT must be a finished fold's model.safetensors, got {path}")
    class_names = _class_names(facts["class_names"], path)
    config = _config(facts.get("run"), len(class_names), path)
    statistics = _statistics(facts.get("statistics"), config, path)
    temperature = _temperature(facts.get(TEMPERATURE), path)
    shapes = AudioSpectrogramTransformer.weight_shapes(config, len(class_names))
    checkpoint.check_shapes(path, stored, shapes)
    tensors = checkpoint.load_tensors(path, stored)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: tensor {name} must be finite, and holds NaN or infinity")
    model = AudioSpectrogramTransformer.from_weights(config, len(class_names), tensors)
    return TrainedModel(model, config, class_names, statistics, temperature)


def _class_names(names: Any, path: Path) -> list[str]:
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: class_names must be a list of names, got {shown(names)}")
    return checked_names(names, f"{path}: class_names")


def _config(run: Any, num_classes: int, path: Path) -> Config:
    """Return the settings, checked for use with a model that is to be built."""
    if not isinstance(run, dict):
        raise InputError(f"{path}: run must be the settings of a run, got {shown(run)}")
    settings = {key: value for key, value in run.items() if key not in ("fold", "data_key")}
    try:
        config = config_from_settings(settings, path)
        check_prediction(config, decode_settings(config).num_samples, num_classes=num_classes)
    except InputError as error:
        first, *others = error.problems
        first = first if first.startswith(f"{path}: ") else f"{path}: {first}"
        more = f"; and {len(others)} more such problems" if others else ""
        raise InputError(f"{first}{more}") from error
    except RecursionError:
        raise InputError(f"{path}: run must be settings, and is nested too deeply") from None
    return config


def _statistics(stored: Any, config: Config, path: Path) -> Statistics | None:
    if stored is None and config.features.norm_per_sample:
        return None
    if not isinstance(stored, Mapping) or stored.keys() != {"mean", "std"}:
        raise InputError(f"{path}: statistics must have mean and std, got {shown(stored)}")
    for name, value in stored.items():
        if type(value) not in (int, float) or abs(value) > 1e30 or not math.isfinite(value):
            raise InputError(f"{path}: statistics.{name} must be a number, got {shown(value)}")
    if stored["std"] <= 0:
        raise InputError(f"{path}: statistics.std must be above 0, got {one_name(stored['std'])}")
    return Statistics(float(stored["mean"]), float(stored["std"]))


def _temperature(stored: Any, path: Path) -> float | None:
    if stored is None:
        return None
    if type(stored) not in (int, float) or not (
        1 / LARGEST_TEMPERATURE <= stored <= LARGEST_TEMPERATURE
    ):
        raise InputError(
            f"{path}: {TEMPERATURE} must be a number from {1 / LARGEST_TEMPERATURE:g} to "
            f"{LARGEST_TEMPERATURE:g}, got {shown(stored)}"
        )
    return float(stored)
