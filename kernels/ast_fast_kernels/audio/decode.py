"""Decode an audio file to blocks of mono float32, within bounds, whatever its header claims.

The length that libsndfile gives is of one of three sorts:

- exact, if the header or the size of the file has it: a file that yields less is cut short;
- estimated, in MPEG audio without a Xing or Info tag, from the first frame's bit rate: the frames
  are counted instead;
- unknown, in FLAC from a pipe: all is taken that the decoder yields.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

from ast_fast_kernels.audio.containers import (
    AudioView,
    end_of_ogg,
    frames_stated,
    is_unfinished,
    read_data_chunk,
    why_cut_short,
)
from ast_fast_kernels.audio.content import Content
from ast_fast_kernels.audio.errors import AbsentAudioError, BadAudioError
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.mpeg import LARGEST_FRAME, MOST_JUNK, read_mpeg_stream
from ast_fast_kernels.audio.rates import SAMPLE_RATES
from ast_fast_kernels.audio.source import AudioSource

RESAMPLE_MARGIN = 0.1
"""Seconds read beyond a clip's end, so that soxr's filter does not see the signal stop there."""
BLOCK_VALUES = 2**20
"""Samples decoded at once, over all channels: bounds memory whatever a header claims."""
UNKNOWN_FRAMES = 2**62
"""Frames from which libsndfile means that it does not know: its largest number, or near it."""


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is only read forwards: soundfile seeks after each read of one that can seek.

    Where libsndfile does not know the length, that seek fails.
    """

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class Decoder:
    """A file that libsndfile has open, and what is known of its length."""

    file: soundfile.SoundFile
    content: Content
    frames: int | None
    """Frames to read at most; None if that is unknown."""
    promise: str | None = "its header promises"
    """Who says so; None if nobody does, and what comes is taken."""
    tolerance: int = 0
    """Frames that may be missing all the same: one incomplete frame of MPEG audio at the end."""
    ends_in_frame: bool = False
    """Whether MPEG audio ends in the middle of a frame."""


@contextmanager
def content_of(source: AudioSource) -> Iterator[Content]:
    """Open a file's bytes, and raise BadAudioError for every error of opening or reading it."""
    try:
        with Content(source) as content:
            yield content
    except FileNotFoundError:
        raise AbsentAudioError("is absent") from None
    except OSError as error:
        raise BadAudioError(f"cannot be read: {error.strerror or error}") from None


@contextmanager
def decoding(content: Content, seconds: float | None = None) -> Iterator[Decoder]:
    """Have libsndfile open a file, and raise BadAudioError for every error of its own.

    Args:
        content: The file.
        seconds: What is read of it, before the margin; None reads all.
    """
    try:
        with ExitStack() as stack:
            file = _open(content, stack)
            if file.format == "RAW":  # libsndfile guesses by names such as .au, .snd and .gsm
                raise BadAudioError("is not audio that libsndfile can decode (it has no header)")
            check_rate(file.samplerate)
            if file.format == "MP3" or file.subtype == "MPEG_LAYER_III":
                yield _mpeg_decoder(file, content, stack, seconds)
            elif file.frames >= UNKNOWN_FRAMES:
                yield Decoder(file, content, None, promise=None)
            else:
                stated = frames_stated(file, content)
                frames = file.frames if stated is None else min(stated, file.frames)
                yield Decoder(file, content, frames)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:  # TypeError: headerless .raw
        reason = getattr(error, "error_string", str(error)).strip(" .")
        if "possibly a pipe" in reason:  # what libsndfile says of MPEG audio without a whole frame
            reason = "no whole frame"
        raise BadAudioError(f"is not audio that libsndfile can decode ({reason})") from None


def check_rate(sample_rate: int) -> None:
    """Raise BadAudioError for a sample rate that only a damaged header claims."""
    lowest, highest = SAMPLE_RATES
    if not lowest <= sample_rate <= highest:
        raise BadAudioError(f"claims a sample rate of {sample_rate} Hz")


def _open(content: Content, stack: ExitStack) -> soundfile.SoundFile:
    """Open a file; where its header does not know the length, with what libsndfile needs there."""
    file = failed = None
    try:
        file = stack.enter_context(_Stream(_named(content)))
    except soundfile.SoundFileError as error:
        failed = error
    if file is not None and file.format == "OGG" and (end := end_of_ogg(content)) is not None:
        return stack.enter_context(_Stream(AudioView(content, size=end)))
    if file is None or not file.frames:
        chunk = read_data_chunk(content)
        if chunk is not None and chunk.mended:
            return stack.enter_context(_Stream(AudioView(content, replaced=chunk.mended)))
    if failed is not None:
        if read_mpeg_stream(content, at_most=3) is None:
            raise failed
        # libsndfile takes MPEG audio for SD2 if a resource fork is there, such as macOS leaves
        # beside it as ._NAME; a view has no name
        return stack.enter_context(_Stream(AudioView(content)))
    return file


def _named(content: Content) -> bytes | AudioView:
    """Return what libsndfile opens: a name, which need not be UTF-8, or a part of a file."""
    source = content.source
    return os.fsencode(source.path) if source.is_whole_file else AudioView(content)


def _mpeg_decoder(
    file: soundfile.SoundFile, content: Content, stack: ExitStack, seconds: float | None
) -> Decoder:
    """Return MPEG audio such that libsndfile reads all of its frames.

    It reads no more than its estimate. Where the frames are more, it is shown a file so large that
    the estimate is too.
    """
    at_most = None
    if seconds is not None:
        at_most = math.ceil((seconds + RESAMPLE_MARGIN) * file.samplerate / 384) + 2
    begin, end = 0, None
    if file.format != "MP3" and (chunk := read_data_chunk(content)) is not None:  # inside a WAV
        begin = chunk.begin
        end = begin + min(chunk.found, chunk.found if chunk.promised is None else chunk.promised)
    stream = read_mpeg_stream(content, begin=begin, end=end, at_most=at_most)
    if stream is None:
        return Decoder(file, content, None, promise=None)
    if stream.gap is not None:
        raise BadAudioError(
            f"is damaged: more than {MOST_JUNK} bytes from byte {stream.gap} on are no MPEG audio, "
            "and then more follows"
        )
    if stream.promised_frames and stream.promised_frames >= stream.num_frames - 1:
        return Decoder(file, content, file.frames, tolerance=stream.samples_per_frame)
    frames = stream.num_frames * stream.samples_per_frame
    if file.frames < frames:
        size = stream.num_frames * LARGEST_FRAME
        file = stack.enter_context(_Stream(AudioView(content, start=stream.start, size=size)))
    return Decoder(
        file,
        content,
        frames if stream.is_counted else None,
        promise="its frames promise" if stream.is_counted else None,
        tolerance=stream.samples_per_frame,
        ends_in_frame=stream.ends_in_frame,
    )


def check_whole(decoder: Decoder, survey: Survey) -> None:
    """Raise if a file ends before its header says; note if it only lacks the mark of its end."""
    reason = why_cut_short(decoder.file, decoder.content)
    if reason is not None:
        raise BadAudioError(reason)
    survey.is_unfinished = decoder.ends_in_frame or is_unfinished(decoder.file)


def mono_blocks(
    decoder: Decoder, survey: Survey, wanted: int = sys.maxsize, needed: int = sys.maxsize
) -> Iterator[NDArray[np.float32]]:
    """Yield up to `wanted` frames, as the mean of their channels, in blocks of bounded size.

    Raises:
        BadAudioError: No frames, fewer than promised of those needed, or one that is not finite.
    """
    file = decoder.file
    block_size = max(1, BLOCK_VALUES // file.channels)
    there = sys.maxsize if decoder.frames is None else decoder.frames
    limit = min(wanted, there)
    count = 0
    while count < limit:
        channels = file.read(min(block_size, limit - count), dtype="float32", always_2d=True)
        if not len(channels):
            break
        block: NDArray[np.float32] = channels[:, 0]
        if file.channels > 1:
            with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are found below
                block = channels.mean(axis=1, dtype=np.float32)
                survey.add_channels(channels, block)
        used = max(0, needed - count)
        if not (survey.add_block(block[:used]) and np.isfinite(block[used:]).all()):
            first = count + int(np.flatnonzero(~np.isfinite(block))[0])
            raise BadAudioError(f"holds NaN or infinity (first at frame {first})")
        count += len(block)
        yield block
    if not count:
        raise BadAudioError("holds no samples")
    if decoder.promise and count + decoder.tolerance < min(limit, needed):
        raise BadAudioError(f"is cut short: {decoder.promise} {there} frames, {count} read")
