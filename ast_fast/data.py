"""Data sets in ESC-50's layout, decoded once into a memory-mapped cache.

`meta/esc50.csv` lists the clips of `audio/`. Whatever format, sample rate, channels and length they
have, a `Dataset` holds each as one row of int16 samples at one rate and one length.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Literal

import numpy as np
import platformdirs
import soundfile
import soxr
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console

from ast_fast.atomic import atomic_folder
from ast_fast.audio import SAMPLE_RATES, BadAudioError, read_clip
from ast_fast.config import Config
from ast_fast.download import download_esc50
from ast_fast.errors import InputError
from ast_fast.layout import AUDIO, METADATA, REQUIRED_COLUMNS
from ast_fast.progress import show_progress
from ast_fast.synth import synthesise

FORMAT_VERSION = 1
"""Raised when the same files and settings give other samples, or are stored otherwise."""
HASHED_BYTES = 64 * 2**20
"""Files are hashed up to here: far beyond any clip, and a ten-hour file costs no more."""
MAX_CLIP_SECONDS = 3600.0
LISTED = 20
"""Things that an error names before it counts the rest."""
BATCH = 64
"""Clips per worker between two writes: bounds the memory that decoded clips wait in."""

Subset = Literal["all", "esc10"]


@dataclass(frozen=True)
class Clip:
    """One row of esc50.csv."""

    filename: str
    fold: int
    target: int
    category: str


@dataclass(frozen=True)
class DecodeSettings:
    """What else the waveforms of a file follow from; part of a cache's key."""

    sample_rate: int
    num_samples: int
    resample_quality: str
    libsndfile: str = soundfile.__libsndfile_version__
    soxr: str = soxr.__version__
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class BadFile:
    """A listed file that cannot be used, and why."""

    filename: str
    fold: int
    category: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Decoded clips with their labels and folds, all in the same order."""

    waveforms: NDArray[np.int16]
    """Memory-mapped and read-only, shape (num_clips, num_samples)."""
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
    """Hash of the files' content, of the settings that shape the waveforms, and of every row of the
    table that is used: two data sets with the same key train and test the same."""
    decode_seconds: float
    """Time spent decoding; 0.0 when the cache was there."""
    synthesised: bool

    @cached_property
    def sound_levels(self) -> NDArray[np.float32]:
        """RMS of every clip, full scale being 1, shape (num_clips,); clips are read once for it."""
        norms = [np.linalg.norm(clip.astype(np.float32)) for clip in self.waveforms]
        return np.array(norms, np.float32) / np.float32(32768 * self.waveforms.shape[1] ** 0.5)


def open_dataset(config: Config, *, console: Console | None = None) -> Dataset:
    """Return the data set that `config` names, decoded.

    Downloads ESC-50 when `config.download` is set, synthesises a data set when there is no
    `config.paths.data`, and decodes audio only when no cache holds just these files at just these
    settings. Any number of processes may call it at once: one decodes, the others wait.

    Args:
        config: The run's settings.
        console: Where progress goes; none: standard error.
    Raises:
        InputError: The data set, the settings or the cache folder cannot be used.
    """
    console = console or Console(stderr=True)
    settings = decode_settings(config)
    cache = cache_folder(config)
    with _cache_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    root = _find_root(config, cache, console)
    clips = read_metadata(root, subset=config.subset)
    workers = config.audio.workers or available_cores()
    audio_key = content_key(root, clips, settings, workers=workers)
    folder = cache / f"audio-{audio_key[:32]}"
    decode_seconds = 0.0
    with _cache_errors(cache):
        cached = _read_cache(folder, len(clips), settings.num_samples)
        if cached is None:
            with FileLock(cache / f"{folder.name}.lock"):
                cached = _read_cache(folder, len(clips), settings.num_samples)
                if cached is None:
                    started = time.perf_counter()
                    cached = _build_cache(
                        folder, root, clips, settings, workers, config.skip_bad_files, console
                    )
                    decode_seconds = time.perf_counter() - started
    waveforms, reasons = cached
    bad_files = _bad_files(clips, reasons)
    _check_bad_files(root, clips, bad_files, skip=config.skip_bad_files)
    good = tuple(clip for clip in clips if clip.filename not in reasons)
    class_names = _class_names(clips)
    labels = {name: label for label, name in enumerate(class_names)}
    return Dataset(
        waveforms=waveforms,
        clips=good,
        class_names=class_names,
        labels=np.array([labels[clip.category] for clip in good], dtype=np.int64),
        folds=np.array([clip.fold for clip in good], dtype=np.int64),
        sample_rate=settings.sample_rate,
        bad_files=bad_files,
        root=root,
        key=_dataset_key(audio_key, clips),
        decode_seconds=decode_seconds,
        synthesised=config.paths.data is None and not config.download,
    )


def check_folds(dataset: Dataset, folds: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the folds to test on, once it is sure that each can be trained for and tested.

    Args:
        dataset: The data set.
        folds: Folds as numbered in the csv; none named: all of them.
    Raises:
        InputError: A fold does not exist, is named twice or has no clip left to test, or leaves a
            class without a training clip; or the data set has one fold or one class only.
    """
    table = dataset.root / METADATA
    used = sorted({*dataset.folds.tolist()} | {bad.fold for bad in dataset.bad_files})
    named = ", ".join(map(str, used))
    if len(used) < 2:
        raise InputError(
            f"{table} must have at least 2 folds to cross-validate, it has fold {named}"
        )
    if len(dataset.class_names) < 2:
        raise InputError(f"{table} must have at least 2 classes, it has {dataset.class_names[0]!r}")
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
            f"class {name!r} has no training clip when fold {fold} is tested"
            for name in untrained_classes(dataset, fold)
        ]
    if problems:
        raise InputError(f"{table}: {_list_some(problems)}; name other folds with --folds")
    return chosen


def untrained_classes(dataset: Dataset, fold: int) -> list[str]:
    """Return the names of the classes that have no clip outside a fold."""
    labels = dataset.labels[dataset.folds != fold]
    counts = np.bincount(labels, minlength=len(dataset.class_names))
    return [name for name, count in zip(dataset.class_names, counts, strict=True) if not count]


def check_fold_names(folds: Sequence[int], known: Sequence[int], table: Path) -> None:
    """Raise if `--folds` names one that the table at `table` does not have."""
    for fold in folds:
        if fold not in known:
            named = ", ".join(map(str, known))
            raise InputError(f"--folds must name folds of {table} ({named}), got {fold}")


def read_metadata(root: Path, *, subset: Subset = "all") -> list[Clip]:
    """Read `meta/esc50.csv`, every row of it checked.

    Columns may stand in any order and others may be there; src_file and take are not read.

    Args:
        root: Folder that holds audio/ and meta/.
        subset: `"esc10"` keeps the rows whose column esc10 says True.
    Returns:
        The clips, in the csv's order.
    Raises:
        InputError: The folder or the csv is missing or malformed: which line, which column, why.
    """
    table = root / METADATA
    _check_layout(root, table)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            return _read_rows(table, csv.reader(file, strict=True), subset)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{table} must be text in UTF-8, got byte 0x{error.object[error.start]:02x}"
        ) from None
    except OSError as error:
        raise InputError(f"{table} cannot be read: {error.strerror}") from None


def cache_folder(config: Config) -> Path:
    """Return the folder of caches: `config.paths.cache`, or the user's own."""
    return config.paths.cache or Path(platformdirs.user_cache_dir("ast-fast", appauthor=False))


def content_key(
    root: Path, clips: Sequence[Clip], settings: DecodeSettings, *, workers: int
) -> str:
    """Hash what decoded waveforms follow from: the files' content, their order, the settings.

    Names of folders and times of change do not count, so a copied or touched data set keeps its
    cache; beyond HASHED_BYTES a file counts by its size and time of change.
    """
    with ThreadPoolExecutor(workers) as pool:
        digests = list(pool.map(lambda clip: _file_digest(root / AUDIO / clip.filename), clips))
    lines = [json.dumps(asdict(settings), sort_keys=True)]
    lines += [f"{clip.filename}\t{digest}" for clip, digest in zip(clips, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def decode_settings(config: Config) -> DecodeSettings:
    """Return what files are decoded to.

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
    return DecodeSettings(int(rate), round(seconds * rate), config.audio.resample_quality)


def available_cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _dataset_key(audio_key: str, clips: Sequence[Clip]) -> str:
    """Hash what a training follows from: the audio, and each clip's fold, target and category."""
    rows = json.dumps([audio_key, *(asdict(clip) for clip in clips)])
    return hashlib.sha256(rows.encode()).hexdigest()


def _find_root(config: Config, cache: Path, console: Console) -> Path:
    if config.download:
        return download_esc50(config, config.paths.data or cache / "ESC-50", console=console)
    if config.paths.data is not None:
        return config.paths.data
    with _cache_errors(cache):
        return synthesise(cache, console=console)


def _check_layout(root: Path, table: Path) -> None:
    try:
        if not root.is_dir():
            state = "is not a folder" if root.exists() else "does not exist"
            raise InputError(f"--data {root} {state}; --download fetches ESC-50")
        if not table.is_file():
            inside = sorted(path.parent.parent for path in root.glob(f"*/{METADATA.as_posix()}"))
            hint = f"; did you mean --data {inside[0]}?" if inside else ""
            raise InputError(f"--data {root} must hold {METADATA.as_posix()}, there is none{hint}")
        if not (root / AUDIO).is_dir():
            raise InputError(f"--data {root} must hold the folder {AUDIO}/, there is none")
    except OSError as error:  # no permission, or a name longer than the system takes
        raise InputError(f"--data {root} cannot be read: {error.strerror}") from error


def _read_rows(table: Path, reader: Iterator[list[str]], subset: Subset) -> list[Clip]:
    required = (*REQUIRED_COLUMNS, "esc10") if subset == "esc10" else REQUIRED_COLUMNS
    rows = _numbered_rows(table, reader)
    header_line, header = next(rows, (1, []))
    if not header:
        raise InputError(f"{table} must begin with the columns {', '.join(required)}, it is empty")
    for column in required:
        if header.count(column) != 1:
            found = ", ".join(repr(name) for name in header[:LISTED])
            times = "twice" if header.count(column) else "not"
            raise InputError(
                f"{table}, line {header_line}: column {column} must be there once, it is {times} "
                f"among {found}"
            )
    clips: list[Clip] = []
    checker = _RowChecker(table)
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{table}, line {line}: must have {len(header)} values as the header has, "
                f"got {len(row)}"
            )
        values = dict(zip(header, row, strict=True))
        clip = checker.check(line, values)
        if subset == "all" or checker.check_esc10(line, values["esc10"]):
            clips.append(clip)
    if not clips:
        what = "no row with esc10 True" if checker.lines else "no row below its header"
        raise InputError(f"{table} must list at least one clip, it has {what}")
    return clips


def _numbered_rows(table: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank with the 1-based line that it ends on."""
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            line = reader.line_num  # type: ignore[attr-defined]
            raise InputError(f"{table}, line {line}: is no valid csv ({error})") from None
        if row:
            yield reader.line_num, row  # type: ignore[attr-defined]


class _RowChecker:
    """Checks rows one by one, and each against those before it."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.lines: dict[str, int] = {}
        self.categories: dict[int, tuple[str, int]] = {}
        self.targets: dict[str, tuple[int, int]] = {}

    def check(self, line: int, values: dict[str, str]) -> Clip:
        filename = self._filename(line, values["filename"])
        fold = self._number(line, "fold", values["fold"], lowest=1)
        target = self._number(line, "target", values["target"], lowest=0)
        category = values["category"]
        if not category.strip() or not category.isprintable():
            self._fail(line, "category", "must be a name", category)
        known, first = self.categories.setdefault(target, (category, line))
        if known != category:
            rule = f"must be {known!r} as on line {first}, which has target {target} too"
            self._fail(line, "category", rule, category)
        known_target, first = self.targets.setdefault(category, (target, line))
        if known_target != target:
            rule = f"must be {known_target} as on line {first}, which is {category!r} too"
            self._fail(line, "target", rule, values["target"])
        return Clip(filename, fold, target, category)

    def check_esc10(self, line: int, value: str) -> bool:
        if value.lower() not in ("true", "false"):
            self._fail(line, "esc10", "must be True or False", value)
        return value.lower() == "true"

    def _filename(self, line: int, value: str) -> str:
        if not value or "\0" in value:
            self._fail(line, "filename", "must name a file", value)
        for named in (PurePosixPath(value), PureWindowsPath(value)):
            if named.is_absolute() or named.drive or ".." in named.parts:
                self._fail(line, "filename", f"must stay inside {AUDIO}/", value)
        path = str(PurePosixPath(value))  # ./a.wav is a.wav
        if path in self.lines:
            rule = f"must be listed once, line {self.lines[path]} has it too"
            self._fail(line, "filename", rule, value)
        self.lines[path] = line
        return value

    def _number(self, line: int, column: str, value: str, *, lowest: int) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < lowest:
            self._fail(line, column, f"must be a whole number of at least {lowest}", value)
        return int(value)

    def _fail(self, line: int, column: str, rule: str, value: str) -> None:
        raise InputError(f"{self.table}, line {line}, column {column}: {rule}, got {value!r}")


def _file_digest(path: Path) -> str:
    """Hash a file's content, or say why there is none."""
    try:
        status = path.stat()
        if not path.is_file():
            return "not a file"
        # blake2b takes a third of sha256's time where the CPU has no SHA instructions
        digest = hashlib.blake2b(digest_size=32)
        left = HASHED_BYTES
        with path.open("rb", buffering=0) as file:
            while left > 0 and (block := file.read(min(left, 2**20))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        return f"unreadable: {errno.errorcode.get(error.errno or 0, 'unknown')}"
    if status.st_size > HASHED_BYTES:
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _read_cache(
    folder: Path, num_clips: int, num_samples: int
) -> tuple[NDArray[np.int16], dict[str, str]] | None:
    """Open a finished cache; None when it is absent or not what its name promises."""
    try:
        about = json.loads((folder / "about.json").read_text("utf-8"))
        reasons: dict[str, str] = dict(about["bad_files"])
        waveforms = _map(folder / "waveforms.npy")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    if waveforms.dtype != np.int16 or waveforms.shape != (num_clips - len(reasons), num_samples):
        return None
    return waveforms, reasons


def _build_cache(
    folder: Path,
    root: Path,
    clips: Sequence[Clip],
    settings: DecodeSettings,
    workers: int,
    skip_bad_files: bool,
    console: Console,
) -> tuple[NDArray[np.int16], dict[str, str]]:
    """Decode every clip into a folder that appears under its name once it is whole.

    Nothing is published when there are bad files that must not be skipped. Rows are written to a
    file, not through a memory map, where a full disk would be a crash instead of an error.
    """

    def decode(clip: Clip) -> NDArray[np.int16] | str:
        try:
            return read_clip(
                root / AUDIO / clip.filename,
                sample_rate=settings.sample_rate,
                num_samples=settings.num_samples,
                resample_quality=settings.resample_quality,
            )
        except BadAudioError as error:
            return str(error)

    for left_behind in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left_behind, ignore_errors=True)  # of a killed process: the lock is ours now
    reasons: dict[str, str] = {}
    with atomic_folder(folder) as temporary:
        with (
            (temporary / "waveforms.npy").open("wb") as file,
            ThreadPoolExecutor(workers) as pool,
            show_progress(console, "Decoding audio", len(clips)) as advance,
        ):
            _write_header(file, len(clips), settings.num_samples)
            for start in range(0, len(clips), BATCH * workers):
                batch = clips[start : start + BATCH * workers]
                for clip, decoded in zip(batch, pool.map(decode, batch), strict=True):
                    if isinstance(decoded, str):
                        reasons[clip.filename] = decoded
                    else:
                        file.write(decoded.tobytes())
                    advance(1)
            file.seek(0)
            _write_header(file, len(clips) - len(reasons), settings.num_samples)
        _check_bad_files(root, clips, _bad_files(clips, reasons), skip=skip_bad_files)
        about = {"settings": asdict(settings), "source": str(root), "bad_files": reasons}
        (temporary / "about.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return _map(folder / "waveforms.npy"), reasons


def _map(path: Path) -> NDArray[np.int16]:
    mapped: NDArray[np.int16] = np.lib.format.open_memmap(path, mode="r")
    return mapped


def _write_header(file: IO[bytes], num_clips: int, num_samples: int) -> None:
    """Write the .npy header; NumPy pads it so that any number of clips takes the same space."""
    header = {"descr": "<i2", "fortran_order": False, "shape": (num_clips, num_samples)}
    np.lib.format.write_array_header_1_0(file, header)


def _bad_files(clips: Sequence[Clip], reasons: dict[str, str]) -> tuple[BadFile, ...]:
    return tuple(
        BadFile(clip.filename, clip.fold, clip.category, reasons[clip.filename])
        for clip in clips
        if clip.filename in reasons
    )


def _check_bad_files(
    root: Path, clips: Sequence[Clip], bad_files: Sequence[BadFile], *, skip: bool
) -> None:
    """Raise when bad files are not to be skipped, or leave a class without a clip."""
    if bad_files and not skip:
        listed = _list_some([f"{bad.filename} {bad.reason}" for bad in bad_files])
        raise InputError(
            f"{len(bad_files)} of {len(clips)} files in {root / AUDIO} cannot be used: {listed}; "
            "--skip-bad-files goes on without them"
        )
    bad = {file.filename for file in bad_files}
    left = {clip.category for clip in clips if clip.filename not in bad}
    lost = [repr(name) for name in _class_names(clips) if name not in left]
    if lost:
        listed = _list_some([f"{file.filename} {file.reason}" for file in bad_files])
        names = _list_some(lost, ", ")
        raise InputError(f"{root / METADATA}: no usable file is left for class {names}: {listed}")


def _class_names(clips: Sequence[Clip]) -> tuple[str, ...]:
    names = {clip.target: clip.category for clip in clips}
    return tuple(names[target] for target in sorted(names))


def _list_some(items: Sequence[str], separator: str = "; ") -> str:
    """Join the first items; count the rest."""
    listed = separator.join(items[:LISTED])
    rest = len(items) - LISTED
    return f"{listed}{separator}and {rest} more" if rest > 0 else listed


@contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    """Turn what the system says of the cache folder into a message with a next step."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"{reason}; free some space or"
        else:
            reason = f"{reason};"
        raise InputError(
            f"cache folder {cache} cannot be written: {reason} name another with --cache DIR"
        ) from error
