"""Decode an audio file to clips: mono int16, at one sample rate and length.

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
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ast_fast.data.containers import (
    AudioView,
    end_of_ogg,
    frames_stated,
    is_unfinished,
    read_data_chunk,
    why_cut_short,
)
from ast_fast.data.flaws import Survey
from ast_fast.data.mpeg import LARGEST_FRAME, MOST_JUNK, read_mpeg_stream
from ast_fast.settings.config import SAMPLE_RATES

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
class _Source:
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
        resample_quality: soxr's quality: QQ, LQ, MQ, HQ or VHQ.
        survey: Measures what was read.
    Returns:
        Samples, shape (num_samples,).
    Raises:
        BadAudioError: The file is absent, empty, not audio, cut short, or holds NaN or infinity.
    """
    survey = survey or Survey()
    with _opened(path, seconds=num_samples / sample_rate) as source:
        file = source.file
        needed = math.ceil(num_samples * file.samplerate / sample_rate)
        if source.frames is not None and source.frames < needed:
            _check_whole(source, survey)
        wanted = needed + math.ceil(RESAMPLE_MARGIN * file.samplerate)
        blocks = list(_mono_blocks(source, survey, wanted, needed))
        return _first_clip(blocks, file.samplerate, sample_rate, num_samples, resample_quality)


def _first_clip(
    blocks: list[NDArray[np.float32]],
    rate: int,
    sample_rate: int,
    num_samples: int,
    resample_quality: str,
) -> NDArray[np.int16]:
    waveform = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate, quality=resample_quality)
    clip = np.zeros(num_samples, np.int16)
    samples = _as_int16(waveform[:num_samples])
    clip[: len(samples)] = samples
    return clip


def read_windows(
    path: Path,
    *,
    sample_rate: int,
    num_samples: int,
    resample_quality: str,
    survey: Survey | None = None,
) -> Iterator[NDArray[np.int16]]:
    """Yield a whole audio file as clips of fixed length, however long it is.

    Each clip begins where the one before ends. The last clip ends with the file, so it may overlap
    the one before. A file no longer than one clip gives the clip of `read_clip`. Memory holds only
    a few clips at a time.

    Args:
        path: The file.
        sample_rate: Of the clips, in Hz.
        num_samples: Of a clip.
        resample_quality: soxr's quality: QQ, LQ, MQ, HQ or VHQ.
        survey: Measures what was read; complete after the last clip.
    Raises:
        BadAudioError: As `read_clip`. Damage late in a file is found after its first clips.
    """
    survey = survey or Survey()
    with _opened(path) as source:
        rate = source.file.samplerate
        _check_whole(source, survey)
        blocks = _mono_blocks(source, survey)
        begun: list[NDArray[np.float32]] = []
        for block in blocks:
            begun.append(block)
            if sum(map(len, begun)) * sample_rate > num_samples * rate:
                every = _with_last(chain(begun, blocks))
                yield from _long_windows(every, rate, sample_rate, num_samples, resample_quality)
                return
        yield _first_clip(begun, rate, sample_rate, num_samples, resample_quality)


def _long_windows(
    blocks: Iterable[tuple[NDArray[np.float32], bool]],
    rate: int,
    sample_rate: int,
    num_samples: int,
    resample_quality: str,
) -> Iterator[NDArray[np.int16]]:
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality=resample_quality)
    window = rest = np.empty(0, np.int16)
    for block, is_last in blocks:
        if rate != sample_rate:
            block = resampler.resample_chunk(block, last=is_last)
        rest = np.concatenate((rest, _as_int16(block)))
        while len(rest) >= num_samples:
            window, rest = rest[:num_samples], rest[num_samples:]
            yield window
    if len(rest):
        last = np.concatenate((window, rest))[-num_samples:]
        yield np.pad(last, (0, num_samples - len(last)))


_T = TypeVar("_T")


def _with_last(items: Iterable[_T]) -> Iterator[tuple[_T, bool]]:
    """Yield each item, and whether it is the last."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def _as_int16(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    scaled = np.rint(np.clip(waveform, -1.0, 1.0) * 32768.0)
    samples: NDArray[np.int16] = np.minimum(scaled, 32767.0).astype(np.int16)
    return samples


@contextmanager
def _opened(path: Path, seconds: float | None = None) -> Iterator[_Source]:
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
                yield _Source(file, path, None, promise=None)
            else:
                stated = frames_stated(file, path)
                frames = file.frames if stated is None else min(stated, file.frames)
                yield _Source(file, path, frames)
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
) -> _Source:
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
        return _Source(file, path, None, promise=None)
    if stream.gap is not None:
        raise BadAudioError(
            f"is damaged: more than {MOST_JUNK} bytes from byte {stream.gap} on are no MPEG audio, "
            "and then more follows"
        )
    if stream.promised_frames and stream.promised_frames >= stream.num_frames - 1:
        return _Source(file, path, file.frames, tolerance=stream.samples_per_frame)
    frames = stream.num_frames * stream.samples_per_frame
    if file.frames < frames:
        content = stack.enter_context(path.open("rb"))
        size = stream.num_frames * LARGEST_FRAME
        file = stack.enter_context(_Stream(AudioView(content, start=stream.start, size=size)))
    return _Source(
        file,
        path,
        frames if stream.is_counted else None,
        promise="its frames promise" if stream.is_counted else None,
        tolerance=stream.samples_per_frame,
        ends_in_frame=stream.ends_in_frame,
    )


def _check_whole(source: _Source, survey: Survey) -> None:
    """Raise if a file ends before its header says; note if it only lacks the mark of its end."""
    reason = why_cut_short(source.file, source.path)
    if reason is not None:
        raise BadAudioError(reason)
    survey.is_unfinished = source.ends_in_frame or is_unfinished(source.file)


def _mono_blocks(
    source: _Source, survey: Survey, wanted: int = sys.maxsize, needed: int = sys.maxsize
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
