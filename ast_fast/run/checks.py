"""Checks of a run before any work, beyond the rules of its settings."""

from __future__ import annotations

from pathlib import Path

from ast_fast.data.cache import decode_settings
from ast_fast.data.dataset import check_fold_names
from ast_fast.data.metadata import METADATA, Clip, read_metadata
from ast_fast.data.stored import stored_clips
from ast_fast.machine.device import Placement
from ast_fast.pretrained.finetune import check_pretrained
from ast_fast.run.folder import check_out
from ast_fast.run.kernels import check_backend
from ast_fast.settings.config import Config
from ast_fast.settings.rules import check_config, check_threads
from ast_fast.settings.stored import check_stored, is_store, open_store
from ast_fast.settings.values import is_utf8
from ast_fast.training.tensorboard import load_writer
from ast_fast_kernels.corpus.manifest import MANIFEST
from ast_fast_kernels.errors import InputError


def check_run(config: Config, out: Path, placement: Placement) -> None:
    """Check settings, folder, backend and folds before any work.

    Raises:
        InputError: The message names what cannot be used.
    """
    check_threads(config)
    if config.tensorboard:
        load_writer()
    check_paths(config, out)
    check_pretrained(config)
    check_config(config, decode_settings(config).num_samples, placement)
    if not config.resume:
        check_out(out)
    check_backend(config, placement)
    if config.paths.data is not None and not config.download:
        _check_data(config, config.paths.data)


def _check_data(config: Config, data: Path) -> None:
    """Check what can be known of the data set before it is opened."""
    clips: list[Clip] = []
    table = data / (MANIFEST if is_store(data) else METADATA)
    if is_store(data):
        store = open_store(data)
        check_stored(config, store)
        clips = stored_clips(store, subset=config.subset)[0]
    elif config.folds:
        clips = read_metadata(data, subset=config.subset)
    check_fold_names(config.folds, sorted({clip.fold for clip in clips}), table)


def check_paths(config: Config, out: Path) -> None:
    """Check that every path can be recorded in config.toml and the report.

    Raises:
        InputError: The current folder is gone, or a path is not UTF-8.
    """
    try:
        here = Path.cwd()
    except OSError as error:
        raise InputError(f"the current folder cannot be used: {error.strerror}") from error
    for flag, path in (
        *(("out", out), ("data", config.paths.data), ("cache", config.paths.cache)),
        ("model.pretrained", config.model.pretrained),
    ):
        if path is not None and not is_utf8(str(here / path)):
            raise InputError(f"--{flag} must be a path in UTF-8, got {str(here / path)!r}")
