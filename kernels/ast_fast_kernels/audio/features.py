"""Files in, waveforms or features out: what callers see."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels._cpu.team import alone, team_size
from ast_fast_kernels.audio.ahead import in_order
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.load import open_waveform, read_waveform
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.audio.streamed import fbank_of_blocks
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.files.text import one_name

Named: TypeAlias = "AudioSource | str | os.PathLike[str]"

ERRORS = ("raise", "skip", "return")
AHEAD = 2
"""Files for each thread that may be done before their features are taken."""

_AST = FbankConfig()


def load(
    path: Named,
    *,
    sample_rate: int | None = 16000,
    start: float = 0.0,
    duration: float | None = None,
    quality: str = "hq",
) -> tuple[NDArray[np.float32], int]:
    """Read an audio file as a mono waveform at one sample rate.

    Unlike `torchaudio.load` and `librosa.load`, it always returns one channel, the mean of all, at
    16 kHz unless asked otherwise. For the channels, `soundfile.read(path, always_2d=True)` has
    (num_samples, num_channels), and `resample` takes its transpose. A file that is cut short, or
    holds NaN or infinity, is an error instead of a shorter or a useless waveform; so is a span that
    begins behind the end. Values beyond ±1, which lossy formats give, stay.

    Args:
        path: Any file that libsndfile reads. WAV needs no soundfile.
        sample_rate: Of the waveform, in Hz; None keeps the file's.
        start: Seconds to skip.
        duration: Seconds to read; None reads to the end. Fewer are returned where the file ends.
        quality: Of resampling: `"hq"` or `"fast"` (`resample`).
    Returns:
        Samples, shape (num_samples,), and their sample rate.
    Raises:
        BadAudioError: There is no usable audio; the message names the file and says why.
        ValueError: `start`, `duration`, `sample_rate` or `quality` does not fit.
        ImportError: The format needs soundfile, which `ast-fast-kernels[audio]` installs.
    """
    source = replace(AudioSource.of(path), start=start, duration=duration)
    try:
        waveform, info = read_waveform(source, sample_rate, quality=quality)
    except BadAudioError as error:
        raise _naming(source, error) from None
    return waveform, info.sample_rate if sample_rate is None else sample_rate


@dataclass(frozen=True)
class FileFeatures:
    """The features of one file, or why it has none."""

    source: AudioSource
    """The file, as `fbank_files` was given it."""
    features: NDArray[np.float32] | None
    """Shape (num_frames, num_mel_bins)."""
    seconds: float
    """Of audio that was read."""
    flaws: tuple[str, ...]
    """Kinds of flaws: clipped, cancelled, silent, unfinished."""
    error: BadAudioError | None
    """Why there are no features; the message follows the file's name."""

    @property
    def path(self) -> str:
        """The file's name."""
        return self.source.path


def fbank_files(
    paths: Iterable[Named],
    config: FbankConfig = _AST,
    *,
    threads: int | None = None,
    errors: str = "raise",
    quality: str = "hq",
) -> Iterator[FileFeatures]:
    """Yield the log-mel filterbank of each file, in order, while threads work on the next ones.

    Each thread decodes, resamples and computes one file at a time, a long one in blocks. So memory
    holds the features of a few files per thread, however many there are, and features do not depend
    on the number of threads. `top_db` and `norm_per_feature` need a file's whole waveform besides.
    Closing the iterator, or leaving it to be collected, waits for the files under way and ends the
    threads.

    Args:
        paths: Names of files, or `AudioSource`; an iterator is read as far as the work has come.
        config: The conventions; audio is resampled to its `sample_frequency`.
        threads: Threads that work, of which one is the caller's own while it asks for a result.
            None is as many as kernels use (`OMP_NUM_THREADS`, or torch's number of threads).
        errors: What a bad file does: `"raise"` raises, `"skip"` leaves it out, `"return"` yields it
            with `error` in place of features.
        quality: Of resampling: `"hq"` or `"fast"` (`resample`).
    Raises:
        BadAudioError: A file has no usable audio, or less than one frame, and `errors` is
            `"raise"`; the message names it.
        ValueError: `threads`, `errors` or `quality` does not fit, or the sample frequency is not a
            whole number of Hz.
        ImportError: A file needs soundfile, which `ast-fast-kernels[audio]` installs.
    """
    if errors not in ERRORS:
        raise ValueError(f"errors must be one of {', '.join(ERRORS)}, got {errors!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if config.sample_frequency % 1:
        rate = config.sample_frequency
        raise ValueError(f"sample_frequency must be a whole number of Hz for files, got {rate}")
    work = partial(_features_of, config=config, quality=quality)
    return _wanted(work, map(AudioSource.of, paths), threads or team_size(), errors)


def _wanted(
    work: Any, sources: Iterable[AudioSource], threads: int, errors: str
) -> Iterator[FileFeatures]:
    for result in in_order(work, sources, threads, AHEAD * threads):
        if result.error is None or errors == "return":
            yield result
        elif errors == "raise":
            raise _naming(result.source, result.error)


def _features_of(source: AudioSource, config: FbankConfig, quality: str) -> FileFeatures:
    with alone():  # files are what threads share
        return _features_alone(source, config, quality)


def _features_alone(source: AudioSource, config: FbankConfig, quality: str) -> FileFeatures:
    try:
        with open_waveform(
            source, int(config.sample_frequency), quality=quality, keep_int16=True
        ) as stream:
            features = fbank_of_blocks(stream, config)
            info = stream.info()
    except BadAudioError as error:
        return FileFeatures(source, None, 0.0, (), error)
    short = None
    if not len(features):
        short = BadAudioError(f"is too short: {info.seconds:.4f} s are less than one frame")
    return FileFeatures(source, None if short else features, info.seconds, info.flaws, short)


def _naming(source: AudioSource, error: BadAudioError) -> BadAudioError:
    """Return an error whose message begins with the file's name."""
    return type(error)(f"{one_name(source.path)} {error}")
