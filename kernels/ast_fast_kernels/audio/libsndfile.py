"""Every format that libsndfile reads, with what it leaves out: lengths, and files cut short."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

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
from ast_fast_kernels.audio.decoder import COUNTED, HEADER, Decoder
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.mpeg import LARGEST_FRAME, MOST_JUNK, read_mpeg_stream

MOST_MARGIN = 0.25
"""Seconds that are read at most beyond what was asked for, to resample it."""
UNKNOWN_FRAMES = 2**62
"""Frames from which libsndfile means that it does not know: its largest number, or near it."""
BLOCK_SKIPPED = 2**16
"""Frames decoded at once where a format cannot be moved about in."""

_EXACT_IN_INT16 = {"PCM_16", "PCM_S8", "PCM_U8", "ALAC_16"}
"""Encodings of at most 16 bits: as int16 they are decoded more quickly, and whole."""
_SEEKS = {"FLAC", "WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "NIST"}
"""Formats in which libsndfile moves to the very frame, if samples are not packed in blocks."""


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is only read forwards: soundfile seeks after each read of one that can seek.

    Where libsndfile does not know the length, that seek fails.
    """

    def seekable(self) -> bool:
        return False


class LibsndfileDecoder(Decoder):
    """A file that libsndfile has open."""

    def __init__(
        self,
        file: soundfile.SoundFile,
        content: Content,
        frames: int | None,
        *,
        promise: str | None = HEADER,
        tolerance: int = 0,
        ends_in_frame: bool = False,
    ) -> None:
        super().__init__(file.samplerate, file.channels, frames)
        self.promise, self.tolerance = promise, tolerance
        self._file, self._content = file, content
        self._ends_in_frame = ends_in_frame
        self._dtype = "int16" if file.subtype in _EXACT_IN_INT16 else "float32"

    def check_whole(self, survey: Survey) -> None:
        """Raise if the file ends before its header says; note if its end lacks the mark."""
        reason = why_cut_short(self._file, self._content)
        if reason is not None:
            raise BadAudioError(reason)
        survey.is_unfinished = self._ends_in_frame or is_unfinished(self._file)

    def read(self, count: int) -> NDArray[Any]:
        """Return up to `count` frames: int16 of an encoding of at most 16 bits, else float32."""
        channels: NDArray[Any] = self._file.read(count, dtype=self._dtype, always_2d=True)
        return channels

    def skip(self, count: int) -> int:
        """Move forward; decode what is passed, unless the format can be moved about in."""
        if self._file.format in _SEEKS and self._dtype == "int16" and self.frames is not None:
            self._file.seek(count)
            return count
        moved = 0
        while moved < count and (block := len(self.read(min(BLOCK_SKIPPED, count - moved)))):
            moved += block
        return moved


@contextmanager
def open_by_libsndfile(content: Content, seconds: float | None) -> Iterator[LibsndfileDecoder]:
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
            if file.format == "MP3" or file.subtype == "MPEG_LAYER_III":
                yield _mpeg_decoder(file, content, stack, seconds)
            elif file.frames >= UNKNOWN_FRAMES:
                yield LibsndfileDecoder(file, content, None, promise=None)
            else:
                stated = frames_stated(file, content)
                frames = file.frames if stated is None else min(stated, file.frames)
                yield LibsndfileDecoder(file, content, frames)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:  # TypeError: headerless .raw
        reason = getattr(error, "error_string", str(error)).strip(" .")
        if "possibly a pipe" in reason:  # what libsndfile says of MPEG audio without a whole frame
            reason = "no whole frame"
        raise BadAudioError(f"is not audio that libsndfile can decode ({reason})") from None


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
) -> LibsndfileDecoder:
    """Return MPEG audio such that libsndfile reads all of its frames.

    It reads no more than its estimate. Where the frames are more, it is shown a file so large that
    the estimate is too.
    """
    at_most = None
    if seconds is not None:
        at_most = math.ceil((seconds + MOST_MARGIN) * file.samplerate / 384) + 2
    begin, end = 0, None
    if file.format != "MP3" and (chunk := read_data_chunk(content)) is not None:  # inside a WAV
        begin = chunk.begin
        end = begin + min(chunk.found, chunk.found if chunk.promised is None else chunk.promised)
    stream = read_mpeg_stream(content, begin=begin, end=end, at_most=at_most)
    if stream is None:
        return LibsndfileDecoder(file, content, None, promise=None)
    if stream.gap is not None:
        raise BadAudioError(
            f"is damaged: more than {MOST_JUNK} bytes from byte {stream.gap} on are no MPEG audio, "
            "and then more follows"
        )
    if stream.promised_frames and stream.promised_frames >= stream.num_frames - 1:
        return LibsndfileDecoder(file, content, file.frames, tolerance=stream.samples_per_frame)
    frames = stream.num_frames * stream.samples_per_frame
    if file.frames < frames:
        size = stream.num_frames * LARGEST_FRAME
        file = stack.enter_context(_Stream(AudioView(content, start=stream.start, size=size)))
    return LibsndfileDecoder(
        file,
        content,
        frames if stream.is_counted else None,
        promise=COUNTED if stream.is_counted else None,
        tolerance=stream.samples_per_frame,
        ends_in_frame=stream.ends_in_frame,
    )
