"""A span of seconds of a file: which frames to read, and how it is cut out of them, resampled."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.audio.decode import RESAMPLE_MARGIN
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.resample.api import chosen_backend, resample
from ast_fast_kernels.resample.channels import mean_of
from ast_fast_kernels.resample.online import OnlineResample


@dataclass(frozen=True)
class Span:
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
    def of(cls, source: AudioSource, rate: int, sample_rate: int) -> Span:
        """Return the span of a source whose file has a rate, to be resampled to another."""
        first = round(source.start * rate)
        last = sys.maxsize if source.duration is None else first + round(source.duration * rate)
        if rate == sample_rate:
            return cls(rate, sample_rate, source.start, first, first, last, last)
        margin = math.ceil(RESAMPLE_MARGIN * rate)
        step = rate // math.gcd(rate, sample_rate)
        begin = max(0, first - margin) // step * step
        return cls(rate, sample_rate, source.start, begin, first, last, last + margin)

    def num_frames(self, count: int) -> int:
        """Return how many frames the span has, if so many were read.

        Raises:
            BadAudioError: It begins behind them.
        """
        num_frames = min(self.begin + count, self.last) - self.first
        if num_frames <= 0 and self.first:
            raise BadAudioError(
                f"ends before the span, which begins at {self.start} s: it has "
                f"{(self.begin + count) / self.rate:.3f} s"
            )
        return num_frames

    def num_samples(self, num_frames: int) -> int:
        """Return how many samples so many frames become."""
        return -(-num_frames * self.sample_rate // self.rate)

    @property
    def margin(self) -> int:
        """Resampled samples before the span."""
        return round((self.first - self.begin) * self.sample_rate / self.rate)


class SpanCutter:
    """Cuts a span out of blocks of frames, at the new rate; `seconds` is known at the end."""

    def __init__(self, span: Span, quality: str) -> None:
        self.span, self._quality = span, quality
        self.seconds = 0.0

    def can_stream(self, block: NDArray[Any]) -> bool:
        """Return whether blocks can be resampled one after the other: soxr takes the whole."""
        span = self.span
        if span.rate == span.sample_rate:
            return True
        mono = block[:, 0] if block.ndim == 2 else block
        chosen = chosen_backend(mono, span.rate, span.sample_rate, quality=self._quality)
        return chosen != "soxr"

    def whole(self, blocks: list[NDArray[Any]]) -> NDArray[Any]:
        """Return the span at the new rate."""
        span = self.span
        num_frames = span.num_frames(sum(map(len, blocks)))
        self.seconds = num_frames / span.rate
        waveform = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        if span.rate == span.sample_rate:
            return waveform
        resampled = resample(
            waveform,
            span.rate,
            span.sample_rate,
            quality=self._quality,
            channel_axis=-1 if waveform.ndim == 2 else None,
        )
        return resampled[span.margin : span.margin + span.num_samples(num_frames)]

    def stream(self, blocks: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Yield the span at the new rate in blocks: the samples of `whole`, bit for bit."""
        span = self.span
        online = OnlineResample(span.rate, span.sample_rate, quality=self._quality)
        is_same = span.rate == span.sample_rate
        count, at = 0, -span.margin  # of frames, and of samples in the span
        end = sys.maxsize if span.last == sys.maxsize else span.num_samples(span.last - span.first)
        for block in blocks:
            count += len(block)
            mono = mean_of(block.T) if block.ndim == 2 else block
            samples = mono if is_same else np.asarray(online.accept_waveform(mono))
            yield samples[max(0, -at) : max(0, end - at)]
            at += len(samples)
        num_frames = span.num_frames(count)
        self.seconds = num_frames / span.rate
        if not is_same:
            rest = np.asarray(online.finish())
            yield rest[max(0, -at) : max(0, span.num_samples(num_frames) - at)]
