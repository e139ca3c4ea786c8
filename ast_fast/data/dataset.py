"""Data sets in ESC-50's layout, decoded once into a memory-mapped cache.

`meta/esc50.csv` lists the clips of `audio/`, in any format, sample rate, length and number of
channels. A `Dataset` holds each as one row of int16 samples, at one rate and of one length.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console

from ast_fast.data.cache import (
    CachedAudio,
    DamagedCacheError,
    DecodeSettings,
    build_cache,
    cache_errors,
    cache_folder,
    content_key,
    decode_settings,
    read_cache,
)
from ast_fast.data.download import download_esc50
from ast_fast.data.metadata import (
    METADATA,
    BadFile,
    Clip,
    bad_files_of,
    check_bad_files,
    class_names_of,
    list_some,
    read_metadata,
)
from ast_fast.data.stored import StoredFeatures, stored_clips
from ast_fast.data.synth import synthesise
from ast_fast.settings.config import Config
from ast_fast.settings.stored import check_stored, is_store, open_store
from ast_fast.settings.values import shown
from ast_fast_kernels.audio.flaws import Flaws
from ast_fast_kernels.console import RunConsole
from ast_fast_kernels.cores import available_cores
from ast_fast_kernels.corpus.manifest import MANIFEST
from ast_fast_kernels.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Decoded clips with their labels and folds, all in the same order."""

    waveforms: NDArray[np.int16] | StoredFeatures
    """Memory-mapped and read-only, shape (num_clips, num_samples); or, if the data set is the
    output of an extraction, its features, shape (num_clips, num_frames, num_mel_bins)."""
    clips: tuple[Clip, ...]
    class_names: tuple[str, ...]
    """Categories, ordered by their target in the csv."""
    labels: NDArray[np.int64]
    """Index into `class_names`, shape (num_clips,)."""
    folds: NDArray[np.int64]
    """Fold as numbered in the csv, shape (num_clips,)."""
    sample_rate: int
    bad_files: tuple[BadFile, ...]
    """Files left out by skip_bad_files."""
    root: Path
    key: str
    """Hash of the files' content, of the settings that shape the waveforms, and of the table's rows
    in use: two data sets with the same key train and test the same."""
    decode_seconds: float
    """Time spent decoding; 0.0 if the cache existed."""
    synthesised: bool
    flaws: Flaws = field(default_factory=dict)
    """Names of the files whose audio is ruined on its way in, by kind."""

    @property
    def num_samples(self) -> int:
        """Of a clip; for stored features, of the audio that a clip's features stand for."""
        if isinstance(self.waveforms, StoredFeatures):
            return self.waveforms.num_samples
        num_samples: int = self.waveforms.shape[1]
        return num_samples

    @property
    def is_stored(self) -> bool:
        """Whether the clips are stored features."""
        return isinstance(self.waveforms, StoredFeatures)

    @property
    def table(self) -> Path:
        """The table that lists the clips."""
        return self.root / (MANIFEST if self.is_stored else METADATA)

    @cached_property
    def sound_levels(self) -> NDArray[np.float32]:
        """RMS of every clip, 1 at full scale, shape (num_clips,). Reads every clip once."""
        if isinstance(self.waveforms, StoredFeatures):
            raise ValueError("stored features have no sound levels: their waveforms are gone")
        return sound_levels(self.waveforms)


def sound_levels(waveforms: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return the RMS of every clip, 1 at full scale, shape (num_clips,)."""
    norms = [np.linalg.norm(clip.astype(np.float32)) for clip in waveforms]
    return np.array(norms, np.float32) / np.float32(32768 * waveforms.shape[1] ** 0.5)


def open_dataset(config: Config, *, console: Console | None = None) -> Dataset:
    """Return the data set that `config` names: decoded audio, or an extraction's features.

    Downloads ESC-50 if `config.download` is set, synthesises a data set if `config.paths.data` is
    None, and decodes audio only if no cache holds these files at these settings. Any number of
    processes may call it at once: one decodes, the others wait.

    Args:
        config: The run's settings.
        console: Where progress goes; None is standard error.
    Raises:
        InputError: The data set, the settings or the cache folder cannot be used.
    """
    if config.paths.data is not None and not config.download and is_store(config.paths.data):
        return _open_stored(config, config.paths.data)
    console = console or RunConsole(stderr=True)
    settings = decode_settings(config)
    cache = cache_folder(config)
    with cache_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    root = _find_root(config, cache, console)
    clips = read_metadata(root, subset=config.subset)
    workers = config.audio.workers or available_cores()
    audio_key = content_key(root, clips, settings, workers=workers)
    folder = cache / f"audio-{audio_key[:32]}"
    decode_seconds = 0.0
    with cache_errors(cache):
        cached, _ = _try_cache(folder, clips, settings, workers)
        if cached is None:
            with FileLock(cache / f"{folder.name}.lock"):
                cached, damage = _try_cache(folder, clips, settings, workers)
                if damage is not None:
                    console.print(
                        f"cache {folder} is damaged ({damage}); the audio is decoded again",
                        highlight=False,
                        markup=False,
                        soft_wrap=True,
                    )
                if cached is None:
                    started = time.perf_counter()
                    cached = build_cache(
                        folder, root, clips, settings, workers, config.skip_bad_files, console
                    )
                    decode_seconds = time.perf_counter() - started
    reasons = cached.reasons
    bad_files = bad_files_of(clips, reasons)
    check_bad_files(root, clips, bad_files, skip=config.skip_bad_files)
    good = tuple(clip for clip in clips if clip.filename not in reasons)
    class_names = class_names_of(clips)
    return Dataset(
        waveforms=cached.waveforms,
        clips=good,
        class_names=class_names,
        labels=_labels(good, class_names),
        folds=np.array([clip.fold for clip in good], dtype=np.int64),
        sample_rate=settings.sample_rate,
        bad_files=bad_files,
        root=root,
        key=_dataset_key(audio_key, clips),
        decode_seconds=decode_seconds,
        synthesised=config.paths.data is None and not config.download,
        flaws=cached.flaws,
    )


def _open_stored(config: Config, root: Path) -> Dataset:
    """Return the data set whose clips are an extraction's features."""
    settings = decode_settings(config)
    store = open_store(root)
    check_stored(config, store)
    clips, rows = stored_clips(store, subset=config.subset)
    class_names = class_names_of(clips)
    return Dataset(
        waveforms=StoredFeatures(store, rows, settings.num_samples),
        clips=tuple(clips),
        class_names=class_names,
        labels=_labels(clips, class_names),
        folds=np.array([clip.fold for clip in clips], dtype=np.int64),
        sample_rate=settings.sample_rate,
        bad_files=(),
        root=root,
        key=_dataset_key(store.digest, clips),
        decode_seconds=0.0,
        synthesised=False,
    )


def _labels(clips: Sequence[Clip], class_names: Sequence[str]) -> NDArray[np.int64]:
    labels = {name: label for label, name in enumerate(class_names)}
    return np.array([labels[clip.category] for clip in clips], dtype=np.int64)


def _try_cache(
    folder: Path, clips: Sequence[Clip], settings: DecodeSettings, workers: int
) -> tuple[CachedAudio | None, str | None]:
    """Return what a cache holds, if it is there and whole, and what is damaged if it is not."""
    try:
        return read_cache(folder, len(clips), settings.num_samples, workers=workers), None
    except DamagedCacheError as error:
        return None, str(error)


def check_folds(dataset: Dataset, folds: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the folds to test on, after checking that each can be trained and tested.

    Args:
        dataset: The data set.
        folds: Folds as numbered in the csv; empty takes all.
    Raises:
        InputError: A fold does not exist, is named twice, has no clip left to test, or leaves a
            class without a training clip; or the data set has only one fold or one class.
    """
    table = dataset.table
    used = sorted({*dataset.folds.tolist()} | {bad.fold for bad in dataset.bad_files})
    named = ", ".join(map(str, used))
    if len(used) < 2:
        raise InputError(
            f"{table} must have at least 2 folds to cross-validate, got only fold {named}"
        )
    if len(dataset.class_names) < 2:
        raise InputError(
            f"{table} must have at least 2 classes, got only {shown(dataset.class_names[0])}"
        )
    check_fold_names(folds, used, table)
    for fold in folds:
        if list(folds).count(fold) > 1:
            raise InputError(f"--folds must name each fold once, got {fold} twice")
    chosen = tuple(folds) or tuple(used)
    problems = []
    for fold in chosen:
        tested = dataset.folds == fold
        if not tested.any():
            skipped = sum(bad.fold == fold for bad in dataset.bad_files)
            problems.append(f"fold {fold} has no test clip (bad files skipped: {skipped})")
            continue
        problems += [
            f"class {shown(name)} has no training clip when fold {fold} is tested"
            for name in untrained_classes(dataset, fold)
        ]
    if problems:
        raise InputError(f"{table}: {list_some(problems)}; name other folds with --folds")
    return chosen


def untrained_classes(dataset: Dataset, fold: int) -> list[str]:
    """Return the names of the classes that have no clip outside a fold."""
    labels = dataset.labels[dataset.folds != fold]
    counts = np.bincount(labels, minlength=len(dataset.class_names))
    return [name for name, count in zip(dataset.class_names, counts, strict=True) if not count]


def check_fold_names(folds: Sequence[int], known: Sequence[int], table: Path) -> None:
    """Raise if `--folds` names a fold that the table does not have."""
    for fold in folds:
        if fold not in known:
            named = ", ".join(map(str, known))
            raise InputError(f"--folds must name folds of {table} ({named}), got {fold}")


def without_fold(dataset: Dataset, fold: int) -> Dataset:
    """Return the data set without the clips of one fold.

    Raises:
        InputError: It has no such fold, or no other.
    """
    check_fold_names((fold,), sorted({*dataset.folds.tolist()}), dataset.table)
    kept = np.flatnonzero(dataset.folds != fold)
    if len(kept) == 0:
        raise InputError(f"{dataset.table} must have another fold than {fold}, got only that")
    waveforms = dataset.waveforms
    return replace(
        dataset,
        waveforms=waveforms.part(kept)
        if isinstance(waveforms, StoredFeatures)
        else _rows(waveforms, kept),
        clips=tuple(dataset.clips[index] for index in kept),
        labels=dataset.labels[kept],
        folds=dataset.folds[kept],
        bad_files=tuple(bad for bad in dataset.bad_files if bad.fold != fold),
        key=hashlib.sha256(f"{dataset.key} without fold {fold}".encode()).hexdigest(),
    )


def _rows(waveforms: NDArray[np.int16], rows: NDArray[np.int64]) -> NDArray[np.int16]:
    """Return some rows, in order: a view of the memory map if they follow one another."""
    first, last = int(rows[0]), int(rows[-1])
    return waveforms[first : last + 1] if last - first + 1 == len(rows) else waveforms[rows]


def _dataset_key(audio_key: str, clips: Sequence[Clip]) -> str:
    """Hash what determines a training: the audio, and each clip's fold, target and category."""
    rows = json.dumps([audio_key, *(asdict(clip) for clip in clips)])
    return hashlib.sha256(rows.encode()).hexdigest()


def _find_root(config: Config, cache: Path, console: Console) -> Path:
    if config.download:
        return download_esc50(config, config.paths.data or cache / "ESC-50", console=console)
    if config.paths.data is not None:
        return config.paths.data
    with cache_errors(cache):
        return synthesise(cache, console=console)
