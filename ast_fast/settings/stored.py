"""Settings of a run whose clips are the stored features of an extraction."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ast_fast.settings.config import Config
from ast_fast_kernels import FeatureStore
from ast_fast_kernels.corpus.manifest import SETTINGS
from ast_fast_kernels.errors import InputError

OF_WAVEFORMS: dict[str, object] = {
    "augment.roll": False,
    "augment.gain_db": 0.0,
    "augment.speeds": (),
    "augment.polarity": False,
    "augment.mix_probability": 0.0,
}
"""Augmentation of waveforms, which stored features no longer have, and what switches it off."""


def is_store(data: Path | None) -> bool:
    """Return whether a path is the output of a finished extraction."""
    return data is not None and os.path.isfile(data / SETTINGS)  # False if it cannot be named


def open_store(data: Path) -> FeatureStore:
    """Open the store at `data`.

    Raises:
        InputError: It cannot be read, or does not hold log-mel features.
    """
    try:
        store = FeatureStore(data)
        store.config  # noqa: B018 - raises if a model made the features
    except InputError:
        raise
    except (ImportError, TypeError, ValueError) as error:
        raise InputError(f"--data {data}: {error}") from error
    return store


def stored_defaults(data: Path) -> dict[str, Any]:
    """Return the defaults of a run on a store: its filterbank, and no augmentation of waveforms.

    Raises:
        InputError: As `open_store`.
    """
    fields = asdict(open_store(data).config).items()
    fbank = {f"fbank.{name}": value for name, value in fields if value is not None}
    return fbank | OF_WAVEFORMS


def check_stored(config: Config, store: FeatureStore) -> None:
    """Raise if a run's settings are not those of its stored features.

    Raises:
        InputError: The message names the setting, its rule and its value.
    """
    for name, there in asdict(store.config).items():
        here = getattr(config.fbank, name)
        if here != there:
            raise InputError(f"fbank.{name} must be {there}, as in {store.folder}, got {here}")
    for key, off in OF_WAVEFORMS.items():
        value = getattr(config.augment, key.removeprefix("augment."))
        if value != off:
            word = "off" if off is False else "none" if off == () else "0"
            raise InputError(
                f"{key} must be {word} with stored features, whose waveforms are gone, got "
                f"{'on' if value is True else value}; --data with audio can use it"
            )
