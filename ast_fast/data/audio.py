"""Decode an audio file to clips: mono int16, at one sample rate and length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soxr
from numpy.typing import NDArray

from ast_fast_kernels import OnlineResample, resample
from ast_fast_kernels.audio.decode import (
    RESAMPLE_MARGIN,
    as_float,
    content_of,
    decoding,
    mono_blocks,
)
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.resample.design import QUALITIES


def read_clip(
    path: Path,
    *,
    sample_rate: int,
    num_samples: int,
    resample_quality: str,
    survey: Survey | None = None,
) -> NDArray[np.int16]:
    """Decode the beginning of an audio file to a clip of fixed length.

    Takes any format, sample rate and number of channels that libsndfile reads. Channels are
    averaged; the mean is resampled, then cut or padded with zeros. Values beyond ±1.0, which lossy
    formats give, are clipped. Only what the clip needs is read, so later damage stays unseen.

    Args:
        path: The file.
        sample_rate: Of the clip, in Hz.
        num_samples: Of the clip.
        resample_quality: `hq` or `fast` of `ast_fast_kernels.resample`, or a quality of soxr.
        survey: Measures what was read.
    Returns:
        Samples, shape (num_samples,).
    Raises:
        BadAudioError: The file is absent, empty, not audio, cut short, or holds NaN or infinity.
    """
    survey = survey or Survey()
    seconds = num_samples / sample_rate
    with content_of(AudioSource.of(path)) as content, decoding(content, seconds) as decoder:
        rate = decoder.sample_rate
        needed = math.ceil(num_samples * rate / sample_rate)
        if decoder.frames is not None and decoder.frames < needed:
            decoder.check_whole(survey)
        wanted = needed + math.ceil(RESAMPLE_MARGIN * rate)
        blocks = list(mono_blocks(decoder, survey, wanted, needed))
        return _first_clip(blocks, rate, sample_rate, num_samples, resample_quality)


def _first_clip(
    blocks: list[NDArray[Any]],
    rate: int,
    sample_rate: int,
    num_samples: int,
    resample_quality: str,
    shortest: int | None = None,
) -> NDArray[np.int16]:
    waveform = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if rate != sample_rate:
        if resample_quality in QUALITIES:
            waveform = resample(waveform, rate, sample_rate, quality=resample_quality)
        else:
            waveform = soxr.resample(
                as_float(waveform), rate, sample_rate, quality=resample_quality
            )
    samples = as_int16(waveform[:num_samples])
    least = num_samples if shortest is None else shortest
    clip = np.zeros(max(least, len(samples)), np.int16)
    clip[: len(samples)] = samples
    return clip


def read_windows(
    path: Path,
    *,
    sample_rate: int,
    num_samples: int,
    resample_quality: str,
    survey: Survey | None = None,
    shortest: int | None = None,
) -> Iterator[NDArray[np.int16]]:
    """Yield a whole audio file as clips of fixed length, however long it is.

    Each clip begins where the one before ends. The last clip ends with the file, so it may overlap
    the one before. A file no longer than one clip gives the clip of `read_clip`. Memory holds only
    a few clips at a time.

    Args:
        path: The file.
        sample_rate: Of the clips, in Hz.
        num_samples: Of a clip.
        resample_quality: `hq` or `fast` of `ast_fast_kernels.resample`, or a quality of soxr.
        survey: Measures what was read; complete after the last clip.
        shortest: Samples to which the clip of a shorter file is padded, where a clip need not have
            all of its own; None is `num_samples`.
    Raises:
        BadAudioError: As `read_clip`. Damage late in a file is found after its first clips.
    """
    survey = survey or Survey()
    with content_of(AudioSource.of(path)) as content, decoding(content) as decoder:
        rate = decoder.sample_rate
        decoder.check_whole(survey)
        blocks = mono_blocks(decoder, survey)
        begun: list[NDArray[Any]] = []
        for block in blocks:
            begun.append(block)
            if sum(map(len, begun)) * sample_rate > num_samples * rate:
                every: Iterable[NDArray[Any]] = chain(begun, blocks)
                if rate != sample_rate:
                    every = _resampled(every, rate, sample_rate, resample_quality)
                yield from windows_of(every, num_samples)
                return
        yield _first_clip(begun, rate, sample_rate, num_samples, resample_quality, shortest)


def windows_of(
    blocks: Iterable[NDArray[Any]], size: int, shortest: int | None = None
) -> Iterator[NDArray[np.int16]]:
    """Yield a waveform in windows; the last ends with it, so it may overlap the one before.

    A waveform shorter than `shortest` is padded with zeros.

    Args:
        blocks: The waveform, float in [-1, 1] or int16, in blocks of shape (num_samples,).
        size: Samples of a window.
        shortest: Least samples of a waveform that is shorter than a window; None is `size`.
    """
    window = rest = np.empty(0, np.int16)
    for block in blocks:
        rest = np.concatenate((rest, as_int16(block)))
        while len(rest) >= size:
            window, rest = rest[:size], rest[size:]
            yield window
    if len(rest) or not len(window):
        last = np.concatenate((window, rest))[-size:]
        least = size if shortest is None else shortest
        yield np.pad(last, (0, max(0, least - len(last))))


def _resampled(
    blocks: Iterable[NDArray[Any]], rate: int, sample_rate: int, resample_quality: str
) -> Iterator[NDArray[np.float32]]:
    """Yield what a stream of blocks becomes at another rate."""
    if resample_quality in QUALITIES:
        stream = OnlineResample(rate, sample_rate, quality=resample_quality)
        yield from map(np.asarray, map(stream.accept_waveform, blocks))
        yield np.asarray(stream.finish())
        return
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality=resample_quality)
    for block, is_last in _with_last(blocks):
        yield resampler.resample_chunk(as_float(block), last=is_last)


_T = TypeVar("_T")


def _with_last(items: Iterable[_T]) -> Iterator[tuple[_T, bool]]:
    """Yield each item, and whether it is the last."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def as_int16(waveform: NDArray[Any]) -> NDArray[np.int16]:
    """Return samples in [-1, 1] as int16, rounded; values beyond are clipped. int16 stays."""
    if waveform.dtype == np.int16:
        return waveform
    scaled = np.rint(np.clip(waveform, -1.0, 1.0) * 32768.0)
    samples: NDArray[np.int16] = np.minimum(scaled, 32767.0).astype(np.int16)
    return samples
