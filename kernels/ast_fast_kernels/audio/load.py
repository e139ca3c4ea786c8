"""From a file, or a part of one, to a mono waveform at the sample rate asked for."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from ast_fast_kernels.audio.decode import (
    RESAMPLE_MARGIN,
    as_float,
    content_of,
    decoding,
    mono_blocks,
)
from ast_fast_kernels.audio.decoder import Length
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.source import AudioSource


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
            rate = decoder.sample_rate
            span = _Span.of(source, rate, sample_rate or rate)
            if decoder.frames is None or decoder.frames <= span.last:
                decoder.check_whole(survey)
            blocks = list(mono_blocks(decoder, survey, span.wanted, span.last, span.begin))
            waveform, seconds = span.cut(blocks)
            if waveform.dtype == np.int16 and not keep_int16:
                waveform = as_float(waveform)
            return waveform, AudioInfo(
                rate, decoder.num_channels, seconds, decoder.length, hashed, survey.flaws
            )


@dataclass(frozen=True)
class _Span:
    """The frames of a file to read, of which some before and behind are for the resampler."""

    rate: int
    sample_rate: int
    start: float
    begin: int
    """First frame to read; its time is a whole number of samples."""
    first: int
    last: int
    wanted: int
    """Frame before which to stop reading."""

    @classmethod
    def of(cls, source: AudioSource, rate: int, sample_rate: int) -> _Span:
        first = round(source.start * rate)
        last = sys.maxsize if source.duration is None else first + round(source.duration * rate)
        if rate == sample_rate:
            return cls(rate, sample_rate, source.start, first, first, last, last)
        margin = math.ceil(RESAMPLE_MARGIN * rate)
        step = rate // math.gcd(rate, sample_rate)
        begin = max(0, first - margin) // step * step
        return cls(rate, sample_rate, source.start, begin, first, last, last + margin)

    def cut(self, blocks: list[NDArray[Any]]) -> tuple[NDArray[Any], float]:
        """Return the span at the new rate, and its seconds, of the blocks that were read."""
        count = sum(map(len, blocks))
        num_frames = min(self.begin + count, self.last) - self.first
        if num_frames <= 0 and self.first:
            raise BadAudioError(
                f"ends before the span, which begins at {self.start} s: it has "
                f"{(self.begin + count) / self.rate:.3f} s"
            )
        waveform = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        if self.rate == self.sample_rate:
            return waveform, num_frames / self.rate
        resampled = _resample(as_float(waveform), self.rate, self.sample_rate)
        at = round((self.first - self.begin) * self.sample_rate / self.rate)
        num_samples = math.ceil(num_frames * self.sample_rate / self.rate)
        return resampled[at : at + num_samples], num_frames / self.rate


def _resample(waveform: NDArray[np.float32], rate: int, sample_rate: int) -> NDArray[np.float32]:
    resampled: NDArray[np.float32] = soxr.resample(waveform, rate, sample_rate, quality="HQ")
    return resampled
