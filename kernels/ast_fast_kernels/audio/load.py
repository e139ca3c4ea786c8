"""From a file, or a part of one, to a mono waveform at the sample rate asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from numpy.typing import NDArray

from ast_fast_kernels.audio.content import Content
from ast_fast_kernels.audio.decode import as_float, content_of, decoding, mono_blocks
from ast_fast_kernels.audio.decoder import Decoder, Length
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.grown import Grown
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.audio.span import Span, SpanCutter


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
    """Hexadecimal XXH3 of the audio file's bytes, in 128 bits, if asked for."""
    flaws: tuple[str, ...]
    """Kinds of flaws (`flaws.FLAWS`): usable audio, but ruined on its way."""


def read_waveform(
    source: AudioSource,
    sample_rate: int | None = 16000,
    *,
    quality: str = "hq",
    survey: Survey | None = None,
    digest: bool = False,
    keep_int16: bool = False,
) -> tuple[NDArray[Any], AudioInfo]:
    """Read audio as the mean of its channels, resampled.

    A span is cut at the nearest frame of the file, and resampled with what surrounds it, so it has
    the samples that the whole would have there, up to the rounding of its start. Besides the
    result, memory holds a block of what is decoded, however long the file is; where only soxr
    resamples (`resample`), it holds all that is decoded.

    Args:
        source: The file, or a part of it.
        sample_rate: Of the waveform, in Hz; None is the file's.
        quality: Of resampling: `"hq"` or `"fast"` (`resample`).
        survey: Measures what was read; None makes one for `AudioInfo.flaws`.
        digest: Whether to digest the audio file's bytes, all of them; that needs xxhash.
        keep_int16: Whether 16-bit samples of one channel at that rate may stay int16, to be read
            as sample / 32768.
    Returns:
        Samples, float32 or int16, shape (num_samples,), and what is known of them.
    Raises:
        BadAudioError: The file is absent, empty, not audio, cut short, or holds NaN or infinity,
            or the span begins behind its end. The message follows the file's name.
        ImportError: The format needs soundfile, the ratio of rates soxr, or a digest xxhash; it is
            not installed.
    """
    with open_waveform(
        source, sample_rate, quality=quality, survey=survey, digest=digest, keep_int16=keep_int16
    ) as stream:
        return joined(stream), stream.info()


class WaveformStream:
    """A mono waveform in blocks, at the rate asked for: `open_waveform` makes one."""

    def __init__(
        self, content: Content, decoder: Decoder, cutter: SpanCutter, survey: Survey
    ) -> None:
        self._content, self._decoder = content, decoder
        self._cutter, self._survey = cutter, survey
        self._blocks: Iterator[NDArray[Any]] = iter(())

    def start(self, *, keep_int16: bool) -> None:
        """Read the first two blocks, to see whether they are all."""
        span = self._cutter.span
        mix = span.rate == span.sample_rate
        decoded = mono_blocks(
            self._decoder, self._survey, span.wanted, span.last, span.begin, mix=mix
        )
        first = list(islice(decoded, 2))
        self.is_whole = len(first) < 2 or not self._cutter.can_stream(first[0])
        """Whether all comes as one block."""
        if self.is_whole:
            blocks = iter((self._cutter.whole([*first, *decoded]),))
        else:
            blocks = self._cutter.stream(chain(first, decoded))
        self._blocks = blocks if keep_int16 else map(as_float, blocks)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Yield float32 or int16 samples, shape (num_samples,): each stream once.

        Raises:
            BadAudioError: As `read_waveform` says.
        """
        return self._blocks

    def info(self) -> AudioInfo:
        """Return what is known of the audio, once all blocks were taken."""
        decoder = self._decoder
        digest = self._content.digest() if self._content.is_digested else None
        return AudioInfo(
            decoder.sample_rate, decoder.num_channels, self._cutter.seconds, decoder.length,
            digest, self._survey.flaws,
        )  # fmt: skip


@contextmanager
def open_waveform(
    source: AudioSource,
    sample_rate: int | None = 16000,
    *,
    quality: str = "hq",
    survey: Survey | None = None,
    digest: bool = False,
    keep_int16: bool = False,
) -> Iterator[WaveformStream]:
    """Open audio to be read in blocks: together, they are what `read_waveform` returns.

    Args and errors are those of `read_waveform`; errors come here, or from the blocks.
    """
    survey = survey or Survey()
    with content_of(source, digested=digest) as content, decoding(content) as decoder:
        rate = decoder.sample_rate
        span = Span.of(source, rate, sample_rate or rate)
        if decoder.frames is None or decoder.frames <= span.last:
            decoder.check_whole(survey)
        stream = WaveformStream(content, decoder, SpanCutter(span, quality), survey)
        stream.start(keep_int16=keep_int16)
        yield stream


def joined(blocks: WaveformStream) -> NDArray[Any]:
    """Return all blocks of a stream as one array, shape (num_samples,)."""
    if blocks.is_whole:
        (whole,) = blocks
        return whole
    grown = Grown()
    for block in blocks:
        grown.add(block)
    return grown.take()
