"""WAV as it lies: samples are read from the file into an array, by a header that has no surprise.

A header that is out of the ordinary in any way, or another encoding, is left to libsndfile, and so
are its rules. Lengths follow the rules of `containers.py` in both.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.audio.containers import (
    RIFF,
    DataChunk,
    chunks_of,
    read_data_chunk,
    why_bytes_missing,
)
from ast_fast_kernels.audio.content import Content
from ast_fast_kernels.audio.decoder import Decoder
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.flaws import Survey

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FORMATS = {
    (_PCM, 8): "u1", (_PCM, 16): "<i2", (_PCM, 24): "", (_PCM, 32): "<i4",
    (_FLOAT, 32): "<f4", (_FLOAT, 64): "<f8",
}  # fmt: skip
"""What samples are stored as, by format and bits; 24 bits have no dtype."""
_SUBFORMAT_TAIL = bytes.fromhex("0000 00001000800000aa00389b71")
"""Of the GUID of every subformat that is a format's number."""
_WITHOUT_MEANING = {b"fact": 4, b"LIST": 4, b"JUNK": 0, b"junk": 0, b"FLLR": 0, b"PAD ": 0}
"""Chunks that change nothing, and the fewest bytes in which libsndfile has no fault to find."""
MOST_CHANNELS = 1024
"""That libsndfile takes."""
MOST_CHUNKS = 64
"""That are looked at."""


@dataclass(frozen=True)
class _Format:
    """What the chunk `fmt ` says."""

    kind: tuple[int, int]
    sample_rate: int
    num_channels: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.num_channels * self.kind[1] // 8


def open_wav(content: Content) -> WavDecoder | None:
    """Return a decoder of a WAV, RF64 or BW64 file; None if libsndfile has to look at it.

    Raises:
        BadAudioError: It claims an impossible sample rate.
    Source: Multimedia Programming Interface and Data Specifications 1.0; Microsoft's mmreg.h;
        EBU Tech 3306 and ITU-R BS.2088 (RF64, BW64).
    """
    magic = content.read_at(0, 12)
    if magic[:4] not in (b"RIFF", b"RF64", b"BW64") or magic[8:] != b"WAVE":
        return None
    chunk = read_data_chunk(content)
    if chunk is None or not chunk.found or chunk.promised == 0:
        return None
    end = content.size if chunk.promised is None else chunk.begin + chunk.promised
    found = _format_of(content, chunk.begin, end, is_wide=magic[:4] != b"RIFF")
    return None if found is None else WavDecoder(content, found, chunk)


def _format_of(content: Content, begin: int, end: int, *, is_wide: bool) -> _Format | None:
    """Return the format by the one chunk that says it, if no chunk is out of the ordinary.

    Args:
        content: The file.
        begin: Where the audio begins.
        end: Where it ends.
        is_wide: Whether the chunk ds64 has the sizes.
    """
    found = None
    for count, (name, at, length) in enumerate(chunks_of(content, RIFF, RIFF.begin)):
        if count == MOST_CHUNKS or (is_wide and (name == b"ds64") != (count == 0)):
            return None
        if name == b"fmt " and found is None and at < begin:
            found = _read_format(content.read_at(at, min(length, 40)), length)
            if found is None:
                return None
        elif name == b"data" and at == begin and found is not None:
            if is_wide and length != 0xFFFFFFFF:
                return None
            if is_wide or end >= content.size:
                break  # nothing follows, or is looked at
        elif name == b"ds64" and is_wide:
            if length < 28:
                return None
        elif length < _WITHOUT_MEANING.get(name, sys.maxsize):
            return None
    return found


def _read_format(chunk: bytes, length: int) -> _Format | None:
    if length not in (16, 18, 40) or len(chunk) < length:
        return None
    number, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if number == _EXTENSIBLE:
        if length != 40 or chunk[26:] != _SUBFORMAT_TAIL:
            return None
        valid_bits, number = struct.unpack_from("<H4xH", chunk, 18)
        if valid_bits not in (0, bits):
            return None
    is_known = (number, bits) in _FORMATS and 1 <= channels <= MOST_CHANNELS
    found = _Format((number, bits), rate, channels)
    return found if is_known and frame_bytes == found.frame_bytes else None


class WavDecoder(Decoder):
    """The frames of a WAV file: read where they lie."""

    def __init__(self, content: Content, found: _Format, chunk: DataChunk) -> None:
        self._content, self._format, self._chunk = content, found, chunk
        self._end = chunk.found if chunk.promised is None else min(chunk.promised, chunk.found)
        self._position = 0
        super().__init__(found.sample_rate, found.num_channels, self._end // found.frame_bytes)

    def check_whole(self, survey: Survey) -> None:
        """Raise if the file ends before its header says."""
        reason = why_bytes_missing(self._chunk, self._format.frame_bytes)
        if reason is not None:
            raise BadAudioError(reason)

    def skip(self, count: int) -> int:
        """Move forward; nothing is read."""
        assert self.frames is not None
        moved = min(count, self.frames - self._position)
        self._position += moved
        return moved

    def read(self, count: int) -> NDArray[Any]:
        """Return up to `count` frames: int16 of 8 or 16 bits, else float32."""
        assert self.frames is not None
        frame_bytes = self._format.frame_bytes
        at = self._chunk.begin + self._position * frame_bytes
        count = min(count, self.frames - self._position)
        samples, there = self._samples(at, count * self.num_channels)
        frames = there // frame_bytes  # fewer where the file has shrunk
        self._position += frames
        return samples[: frames * self.num_channels].reshape(frames, self.num_channels)

    def _samples(self, at: int, count: int) -> tuple[NDArray[Any], int]:
        """Return so many samples from an offset on, and how many bytes there were."""
        stored = _FORMATS[self._format.kind]
        if not stored:
            return self._samples_of_24_bits(at, count)
        samples: NDArray[Any] = np.empty(count, stored)
        there = self._content.read_into(at, samples)
        if stored == "u1":
            samples = (samples.astype(np.int16) - 128) << 8
        elif stored == "<i4":
            samples = np.multiply(samples.astype(np.float32), np.float32(2**-31))
        elif stored == "<f8":
            with np.errstate(over="ignore", invalid="ignore"):  # infinity is found when surveyed
                samples = samples.astype(np.float32)
        return samples, there

    def _samples_of_24_bits(self, at: int, count: int) -> tuple[NDArray[np.float32], int]:
        """Each sample is the upper three of the four bytes that begin one before it."""
        packed = np.empty(3 * count + 1, np.uint8)
        there = self._content.read_into(at, packed[1:])
        packed[0] = 0
        wide = np.ndarray((count,), "<i4", packed.data, strides=(3,))
        upper = np.bitwise_and(wide, -256).astype(np.float32)
        return np.multiply(upper, np.float32(2**-31), out=upper), there
