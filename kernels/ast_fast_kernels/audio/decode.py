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
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.mpeg import LARGEST_FRAME, MOST_JUNK, read_mpeg_stream
from ast_fast_kernels.audio.rates import SAMPLE_RATES

RESAMPLE_MARGIN = 0.1
"""Seconds read beyond a clip's end, so that soxr's filter does not see the signal stop there."""
BLOCK_VALUES = 2**20
"""Samples decoded at once, over all channels: bounds memory whatever a header claims."""
UNKNOWN_FRAMES = 2**62
"""Frames from which libsndfile means that it does not know: its largest number, or near it."""


class BadAudioError(Exception):
    """A file holds no usable audio; the message is a reason that follows the file's name."""


class AbsentAudioError(BadAudioError):
    """There is no file of that name."""


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is only read forwards: soundfile seeks after each read of one that can seek.

    Where libsndfile does not know the length, that seek fails.
    """

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class Source:
    """An open file, and what is known of its length."""

    file: soundfile.SoundFile
    path: Path
    frames: int | None
    """Frames to read at most; None if that is unknown."""
    promise: str | None = "its header promises"
    """Who says so; None if nobody does, and what comes is taken."""
    tolerance: int = 0
    """Frames that may be missing all the same: one incomplete frame of MPEG audio at the end."""
    ends_in_frame: bool = False
    """Whether MPEG audio ends in the middle of a frame."""


@contextmanager
def opened(path: Path, seconds: float | None = None) -> Iterator[Source]:
    """Open a file, and raise BadAudioError for every error of opening or reading it.

    Args:
        path: The file.
        seconds: What is read of it, before the margin; None reads all.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadAudioError("is not a file")
        if status.st_size == 0:
            raise BadAudioError("is empty (0 bytes)")
        with ExitStack() as stack:
            file = _open(path, stack)
            if file.format == "RAW":  # libsndfile guesses by names such as .au, .snd and .gsm
                raise BadAudioError("is not audio that libsndfile can decode (it has no header)")
            lowest, highest = SAMPLE_RATES
            if not lowest <= file.samplerate <= highest:
                raise BadAudioError(f"claims a sample rate of {file.samplerate} Hz")
            if file.format == "MP3" or file.subtype == "MPEG_LAYER_III":
                yield _mpeg_source(file, path, stack, seconds)
            elif file.frames >= UNKNOWN_FRAMES:
                yield Source(file, path, None, promise=None)
            else:
                stated = frames_stated(file, path)
                frames = file.frames if stated is None else min(stated, file.frames)
                yield Source(file, path, frames)
    except FileNotFoundError:
        raise AbsentAudioError("is absent") from None
    except OSError as error:
        raise BadAudioError(f"cannot be read: {error.strerror or error}") from None
    except (soundfile.SoundFileError, TypeError, ValueError) as error:  # TypeError: headerless .raw
        reason = getattr(error, "error_string", str(error)).strip(" .")
        if "possibly a pipe" in reason:  # what libsndfile says of MPEG audio without a whole frame
            reason = "no whole frame"
        raise BadAudioError(f"is not audio that libsndfile can decode ({reason})") from None


def _open(path: Path, stack: ExitStack) -> soundfile.SoundFile:
    """Open a file; where its header does not know the length, with what libsndfile needs there."""
    try:
        file = stack.enter_context(_Stream(os.fsencode(path)))  # a name need not be UTF-8
        failed = None
    except soundfile.SoundFileError as error:
        file, failed = None, error
    if file is not None and file.format == "OGG" and (end := end_of_ogg(path)) is not None:
        content = stack.enter_context(path.open("rb"))
        return stack.enter_context(_Stream(AudioView(content, size=end)))
    if file is None or not file.frames:
        chunk = read_data_chunk(path)
        if chunk is not None and chunk.mended:
            content = stack.enter_context(path.open("rb"))
            return stack.enter_context(_Stream(AudioView(content, replaced=chunk.mended)))
    if failed is not None:
        if read_mpeg_stream(path, at_most=3) is None:
            raise failed
        # libsndfile takes MPEG audio for SD2 if a resource fork is there, such as macOS leaves
        # beside it as ._NAME; a view has no name
        content = stack.enter_context(path.open("rb"))
        return stack.enter_context(_Stream(AudioView(content)))
    return file


def _mpeg_source(
    file: soundfile.SoundFile, path: Path, stack: ExitStack, seconds: float | None
) -> Source:
    """Return MPEG audio such that libsndfile reads all of its frames.

    It reads no more than its estimate. Where the frames are more, it is shown a file so large that
    the estimate is too.
    """
    at_most = None
    if seconds is not None:
        at_most = math.ceil((seconds + RESAMPLE_MARGIN) * file.samplerate / 384) + 2
    begin, end = 0, None
    if file.format != "MP3" and (chunk := read_data_chunk(path)) is not None:  # inside a WAV
        begin = chunk.begin
        end = begin + min(chunk.found, chunk.found if chunk.promised is None else chunk.promised)
    stream = read_mpeg_stream(path, begin=begin, end=end, at_most=at_most)
    if stream is None:
        return Source(file, path, None, promise=None)
    if stream.gap is not None:
        raise BadAudioError(
            f"is damaged: more than {MOST_JUNK} bytes from byte {stream.gap} on are no MPEG audio, "
            "and then more follows"
        )
    if stream.promised_frames and stream.promised_frames >= stream.num_frames - 1:
        return Source(file, path, file.frames, tolerance=stream.samples_per_frame)
    frames = stream.num_frames * stream.samples_per_frame
    if file.frames < frames:
        content = stack.enter_context(path.open("rb"))
        size = stream.num_frames * LARGEST_FRAME
        file = stack.enter_context(_Stream(AudioView(content, start=stream.start, size=size)))
    return Source(
        file,
        path,
        frames if stream.is_counted else None,
        promise="its frames promise" if stream.is_counted else None,
        tolerance=stream.samples_per_frame,
        ends_in_frame=stream.ends_in_frame,
    )


def check_whole(source: Source, survey: Survey) -> None:
    """Raise if a file ends before its header says; note if it only lacks the mark of its end."""
    reason = why_cut_short(source.file, source.path)
    if reason is not None:
        raise BadAudioError(reason)
    survey.is_unfinished = source.ends_in_frame or is_unfinished(source.file)


def mono_blocks(
    source: Source, survey: Survey, wanted: int = sys.maxsize, needed: int = sys.maxsize
) -> Iterator[NDArray[np.float32]]:
    """Yield up to `wanted` frames, as the mean of their channels, in blocks of bounded size.

    Raises:
        BadAudioError: No frames, fewer than promised of those needed, or one that is not finite.
    """
    file = source.file
    block_size = max(1, BLOCK_VALUES // file.channels)
    there = sys.maxsize if source.frames is None else source.frames
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
    if source.promise and count + source.tolerance < min(limit, needed):
        raise BadAudioError(f"is cut short: {source.promise} {there} frames, {count} read")
