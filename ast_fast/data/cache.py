"""The cache of decoded audio: one memory-mapped folder for each content, written whole.

A folder holds waveforms.npy and about.json. The latter has a checksum of the former, and one of
itself; both are verified whenever a cache is opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import platformdirs
import soundfile
import soxr
from numpy.typing import NDArray
from rich.console import Console

from ast_fast.data.audio import read_clip
from ast_fast.data.metadata import AUDIO, Clip, bad_files_of, check_bad_files, found_as
from ast_fast.settings.config import Config
from ast_fast.settings.rules import check_audio
from ast_fast_kernels.audio.errors import AbsentAudioError, BadAudioError
from ast_fast_kernels.audio.flaws import FLAWS, Flaws, Survey
from ast_fast_kernels.console import show_progress
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_folder
from ast_fast_kernels.files.sealed import is_intact, sealed
from ast_fast_kernels.files.text import open_document, read_document

FORMAT_VERSION = 2
"""Increased when the samples of a file, or the way they are stored, change."""
HASHED_BYTES = 64 * 2**20
"""Bytes of a file that are hashed: more than any clip has, and little for a ten-hour file."""
BATCH = 64
"""Clips per worker between two writes: bounds the memory of decoded clips."""


@dataclass(frozen=True)
class DecodeSettings:
    """What determines the samples of a clip, besides its file; part of a cache's key."""

    sample_rate: int
    num_samples: int
    resample_quality: str
    libsndfile: str = soundfile.__libsndfile_version__
    soxr: str = soxr.__version__
    format_version: int = FORMAT_VERSION


def decode_settings(config: Config) -> DecodeSettings:
    """Return how files are decoded.

    Raises:
        InputError: The sample rate or the length of a clip is out of range.
    """
    check_audio(config)
    rate, seconds = config.fbank.sample_frequency, config.audio.clip_seconds
    return DecodeSettings(int(rate), round(seconds * rate), config.audio.resample_quality)


def cache_folder(config: Config) -> Path:
    """Return the folder of caches: `config.paths.cache`, or the user's default."""
    return config.paths.cache or Path(platformdirs.user_cache_dir("ast-fast", appauthor=False))


def content_key(
    root: Path, clips: Sequence[Clip], settings: DecodeSettings, *, workers: int
) -> str:
    """Hash what determines the decoded waveforms: the files' content, their order, the settings.

    Names of folders and modification times do not count, so a copied or touched data set keeps its
    cache. A file longer than HASHED_BYTES also counts by its size and modification time.
    """
    with ThreadPoolExecutor(workers) as pool:
        digests = list(pool.map(lambda clip: _file_digest(root / AUDIO / clip.filename), clips))
    lines = [json.dumps(asdict(settings), sort_keys=True)]
    lines += [f"{clip.filename}\t{digest}" for clip, digest in zip(clips, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _file_digest(path: Path) -> str:
    """Hash a file's content, or say why it has none."""
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


@dataclass(frozen=True)
class CachedAudio:
    """What a cache holds."""

    waveforms: NDArray[np.int16]
    """Memory-mapped and read-only, shape (num_clips, num_samples)."""
    reasons: dict[str, str]
    """Why a file cannot be used, by file name."""
    flaws: Flaws
    """Names of the files whose audio is ruined, by kind."""


class DamagedCacheError(Exception):
    """A cache does not hold what was written; the message says which file."""


def read_cache(
    folder: Path, num_clips: int, num_samples: int, *, workers: int
) -> CachedAudio | None:
    """Open a finished cache, and verify it as it will be read, through its memory map.

    Returns:
        None if there is no cache.
    Raises:
        DamagedCacheError: A file is missing, or is not as it was written.
    """
    if not folder.is_dir():
        return None
    try:
        about = json.loads(read_document(folder / "about.json"))
        if not is_intact(about):
            raise DamagedCacheError("about.json")
        open_document(folder / "waveforms.npy", sys.maxsize).close()  # NumPy would wait for a pipe
        cached = CachedAudio(
            _map(folder / "waveforms.npy"), dict(about["bad_files"]), dict(about["flaws"])
        )
        expected = about["waveforms"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedCacheError(f"{Path(error.filename).name} is missing") from None
    except OSError as error:
        name = Path(error.filename or folder).name
        raise DamagedCacheError(f"{name} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCacheError(f"a file is not readable: {error!r}") from None
    rows = cached.waveforms
    shape = (num_clips - len(cached.reasons), num_samples)
    if rows.dtype != np.int16 or rows.shape != shape or not rows.flags.c_contiguous:
        raise DamagedCacheError("waveforms.npy")
    with ThreadPoolExecutor(workers) as pool:
        if _combined(pool.map(_row_digest, rows, chunksize=1)) != expected:
            raise DamagedCacheError("waveforms.npy")
    return cached


def _row_digest(row: NDArray[np.int16]) -> bytes:
    return hashlib.blake2b(row.data, digest_size=32).digest()


def _combined(digests: Iterable[bytes]) -> str:
    """Hash the digests of all rows, which threads compute side by side."""
    return hashlib.blake2b(b"".join(digests), digest_size=32).hexdigest()


def build_cache(
    folder: Path,
    root: Path,
    clips: Sequence[Clip],
    settings: DecodeSettings,
    workers: int,
    skip_bad_files: bool,
    console: Console,
) -> CachedAudio:
    """Decode every clip into a folder, which appears under its name once it is complete.

    Publishes nothing if there are bad files and `skip_bad_files` is off. Rows are written to a
    file, not through a memory map: there, a full disk would crash the process.
    """

    def decode(clip: Clip) -> tuple[NDArray[np.int16], bytes, tuple[str, ...]] | str:
        survey = Survey()
        try:
            samples = read_clip(
                root / AUDIO / clip.filename,
                sample_rate=settings.sample_rate,
                num_samples=settings.num_samples,
                resample_quality=settings.resample_quality,
                survey=survey,
            )
        except AbsentAudioError as error:
            other = found_as(root / AUDIO / clip.filename, root / AUDIO)
            return f"{error}, but is there as {other!r}" if other else str(error)
        except BadAudioError as error:
            return str(error)
        return samples, _row_digest(samples), survey.flaws

    for left_behind in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left_behind, ignore_errors=True)  # by a killed process: we hold the lock now
    reasons: dict[str, str] = {}
    flaws: dict[str, list[str]] = {kind: [] for kind in FLAWS}
    digests: list[bytes] = []
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
                        samples, digest, kinds = decoded
                        file.write(samples.tobytes())
                        digests.append(digest)
                        for kind in kinds:
                            flaws[kind].append(clip.filename)
                    advance(1)
            file.seek(0)
            _write_header(file, len(clips) - len(reasons), settings.num_samples)
        check_bad_files(root, clips, bad_files_of(clips, reasons), skip=skip_bad_files)
        about: dict[str, Any] = {
            "settings": asdict(settings),
            "source": str(root),
            "bad_files": reasons,
            "flaws": {kind: names for kind, names in flaws.items() if names},
            "waveforms": _combined(digests),
        }
        text = json.dumps(sealed(about), indent=1) + "\n"
        (temporary / "about.json").write_text(text, "utf-8")
    return CachedAudio(_map(folder / "waveforms.npy"), reasons, about["flaws"])


def _map(path: Path) -> NDArray[np.int16]:
    mapped: NDArray[np.int16] = np.lib.format.open_memmap(path, mode="r")
    return mapped


def _write_header(file: IO[bytes], num_clips: int, num_samples: int) -> None:
    """Write the .npy header, which NumPy pads to the same size for any number of clips."""
    header = {"descr": "<i2", "fortran_order": False, "shape": (num_clips, num_samples)}
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """Turn an OSError of the cache folder into a message with a next step."""
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
