"""From a file, or a part of one, to a mono waveform at the sample rate asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from ast_fast_kernels.audio.decode import (
    Decoder,
    check_whole,
    content_of,
    decoding,
    mono_blocks,
)
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.source import AudioSource

Length = Literal["exact", "estimated", "unknown"]


@dataclass(frozen=True)
class AudioInfo:
    """What is known of the audio that was read."""

    sample_rate: int
    """Of the file, in Hz."""
    num_channels: int
    """Of the file; their mean is what was read."""
    seconds: float
    """Read, by the file's own sample rate."""
    length: Length
    """How the file's length was known: from its header, from counted frames, or not before."""
    digest: str | None
    """Hexadecimal blake2b of the audio file's bytes, in 128 bits, if asked for."""
    flaws: tuple[str, ...]
    """Kinds of flaws (`flaws.FLAWS`): usable audio, but ruined on its way."""


def read_waveform(
    source: AudioSource,
    sample_rate: int | None = 16000,
    *,
    survey: Survey | None = None,
    digest: bool = False,
    keep_int16: bool = False,
) -> tuple[NDArray[Any], AudioInfo]:
    """Read audio as the mean of its channels, resampled.

    A span is cut at the nearest frame of the file, and resampled with what surrounds it, so it has
    the samples that the whole would have there, up to the rounding of its start.

    Args:
        source: The file, or a part of it.
        sample_rate: Of the waveform, in Hz; None is the file's.
        survey: Measures what was read; None makes one for `AudioInfo.flaws`.
        digest: Whether to hash the audio file's bytes, all of them.
        keep_int16: Whether 16-bit samples of one channel at that rate may stay int16, to be read
            as sample / 32768.
    Returns:
        Samples, float32 or int16, shape (num_samples,), and what is known of them.
    Raises:
        BadAudioError: The file is absent, empty, not audio, cut short, or holds NaN or infinity,
            or the span begins behind its end.
    """
    survey = survey or Survey()
    with content_of(source) as content:
        hashed = content.digest() if digest else None
        with decoding(content) as decoder:
            check_whole(decoder, survey)
            waveform, seconds = _decoded(decoder, source, sample_rate, survey)
            info = AudioInfo(
                decoder.file.samplerate,
                decoder.file.channels,
                seconds,
                _length_of(decoder),
                hashed,
                survey.flaws,
            )
            return waveform, info


def _decoded(
    decoder: Decoder, source: AudioSource, sample_rate: int | None, survey: Survey
) -> tuple[NDArray[np.float32], float]:
    rate: int = decoder.file.samplerate
    first = round(source.start * rate)
    last = None if source.duration is None else first + round(source.duration * rate)
    blocks = list(mono_blocks(decoder, survey))
    whole = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if first >= len(whole) and first:
        raise BadAudioError(
            f"ends before the span: start is {source.start} s, it has {len(whole) / rate:.3f} s"
        )
    num_frames = len(whole[first:last])
    if sample_rate is None or rate == sample_rate:
        return whole[first:last], num_frames / rate
    resampled = _resample(whole, rate, sample_rate)
    begin = round(first * sample_rate / rate)
    return resampled[begin : begin + math.ceil(num_frames * sample_rate / rate)], num_frames / rate


def _resample(waveform: NDArray[np.float32], rate: int, sample_rate: int) -> NDArray[np.float32]:
    resampled: NDArray[np.float32] = soxr.resample(waveform, rate, sample_rate, quality="HQ")
    return resampled


def _length_of(decoder: Decoder) -> Length:
    if decoder.promise is None:
        return "unknown"
    return "estimated" if decoder.promise == "its frames promise" else "exact"
