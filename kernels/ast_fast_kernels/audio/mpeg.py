"""Count the frames of MPEG audio (MP3, MP2, MP1), which need not say how many they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ast_fast_kernels.audio.content import Content

LARGEST_FRAME = 2048
"""Bytes that no frame exceeds: layer II at 384 kbit/s and 32 kHz has 1729."""
MOST_JUNK = 1024
"""Bytes without a frame after which libsndfile's decoder gives up as well."""
MOST_AHEAD = 2**16
"""Bytes without a frame, behind the tags, at the beginning of a file."""
MOST_SEARCHED = 2**22
"""Bytes that are searched for frames behind too much that is none."""
RUN = 8
"""Frames in a row that are no accident."""

_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)
_SHIFT_OF_VERSION = {3: 0, 2: 1, 0: 2}
"""Version bits to the halvings of the sample rate: MPEG-1, MPEG-2, MPEG-2.5."""


@dataclass(frozen=True)
class MpegStream:
    """The frames of a file, as their headers say."""

    start: int
    """Offset of the first frame with audio, in bytes."""
    num_frames: int
    """Whole frames with audio, as far as they were counted."""
    samples_per_frame: int
    promised_frames: int | None
    """Frames by the Xing or Info tag of the first frame, if there is one."""
    is_counted: bool
    """Whether the count reached the end of the stream."""
    ends_in_frame: bool
    """Whether the file ends in the middle of a frame."""
    gap: int | None
    """Offset at which counting stopped because too much is no frame, though frames follow."""


@dataclass(frozen=True)
class _Header:
    kind: tuple[int, int, int]
    """Version bits, layer and sample rate, the same in every frame of a stream."""
    size: int
    samples: int
    side_info: int


def read_mpeg_stream(
    content: Content, *, begin: int = 0, end: int | None = None, at_most: int | None = None
) -> MpegStream | None:
    """Count the frames of MPEG audio by their headers; decode nothing.

    Skips ID3v2 tags and up to MOST_JUNK bytes between frames, as decoders do.

    Args:
        content: The file.
        begin: Offset of the stream, in bytes.
        end: Offset of its end; None is the file's.
        at_most: Frames after which counting stops; None counts all.
    Returns:
        None if there is no frame, or if its size is not in its header ("free format").
    Source: ISO/IEC 11172-3, section 2.4.1.3; 13818-3 for the lower rates. The tag of the first
        frame: Xing's, of which LAME's begins with the same fields.
    """
    size = content.size if end is None else min(content.size, end)
    start = _find_frame(content, begin, size, None, MOST_AHEAD)
    if start is None:
        return None
    position, first = start
    promised = _promised_frames(content, position, first)
    if promised is not None:
        position += first.size
    start_of_audio = position
    count = 0
    ends_in_frame, gap = False, None
    while at_most is None or count < at_most:
        header = _header(content.read_at(position, 4))
        if header is None or header.kind != first.kind:
            found = _find_frame(content, position, size, first.kind, MOST_JUNK)
            if found is None:
                gap = position if _frames_follow(content, position, size, first.kind) else None
                break
            position, header = found
        if position + header.size > size:
            ends_in_frame = True
            break
        count += 1
        position += header.size
    else:
        return MpegStream(start_of_audio, count, first.samples, promised, False, False, None)
    return MpegStream(start_of_audio, count, first.samples, promised, True, ends_in_frame, gap)


@lru_cache(maxsize=4096)  # a stream has few different ones
def _header(head: bytes) -> _Header | None:
    """Read the four bytes of a frame's header; None if they are none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate_index, rate_of_bits = head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or layer == 4 or rate_index == 3 or not 0 < rate_of_bits < 15:
        return None
    shift = _SHIFT_OF_VERSION[version]
    rate = _RATES[rate_index] >> shift
    bits = 1000 * _KBITS[1 if shift == 0 else 2, layer][rate_of_bits - 1]
    padding = head[2] >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and shift else 1152
    size = (
        4 * (12 * bits // rate + padding) if layer == 1 else samples // 8 * bits // rate + padding
    )
    is_mono = head[3] >> 6 == 3
    side_info = (9 if is_mono else 17) if shift else (17 if is_mono else 32)
    return _Header((version, layer, rate_index), size, samples, side_info)


def _find_frame(
    content: Content, position: int, size: int, kind: tuple[int, int, int] | None, most_junk: int
) -> tuple[int, _Header] | None:
    """Return the next frame that another follows, or that ends the file, and its offset."""
    position = _after_tags(content, position)
    end = min(size, position + most_junk)
    while position < end:
        block = content.read_at(position, min(2**16, end - position) + 3)
        at = block.find(b"\xff")
        while at >= 0:
            header = _header(block[at : at + 4])
            if header is not None and kind in (None, header.kind):
                after = position + at + header.size
                following = _header(content.read_at(after, 4))
                if after >= size or (following is not None and following.kind == header.kind):
                    return position + at, header
                if content.read_at(after, 3) in (b"ID3", b"TAG", b"APE"):
                    return position + at, header
            at = block.find(b"\xff", at + 1)
        position += max(1, len(block) - 3)
    return None


def _frames_follow(content: Content, position: int, size: int, kind: tuple[int, int, int]) -> bool:
    """Return whether a run of frames follows anywhere: a picture in a tag may look like two."""
    end = min(size, position + MOST_SEARCHED)
    found = _find_frame(content, position, size, kind, end - position)
    while found is not None:
        at, header = found
        for _ in range(RUN):
            at += header.size
            following = _header(content.read_at(at, 4))
            if following is None or following.kind != kind:
                break
            header = following
        else:
            return True
        found = _find_frame(content, found[0] + 1, size, kind, end - found[0] - 1)
    return False


def _after_tags(content: Content, position: int) -> int:
    """Return the offset behind the ID3v2 tags at an offset."""
    while len(head := content.read_at(position, 10)) == 10 and head[:3] == b"ID3":
        a, b, c, d = head[6:]
        length = a << 21 | b << 14 | c << 7 | d  # seven bits each
        position += 10 + length + (10 if head[5] & 0x10 else 0)
    return position


def _promised_frames(content: Content, position: int, header: _Header) -> int | None:
    """Return the number of frames by the tag of the first frame."""
    if header.kind[1] != 3:
        return None
    frame = content.read_at(position, min(header.size, LARGEST_FRAME))
    for offset in (4 + header.side_info, 6 + header.side_info):  # a checksum moves it
        if frame[offset : offset + 4] in (b"Xing", b"Info"):
            has_count = frame[offset + 7] & 1 if len(frame) >= offset + 12 else 0
            return int.from_bytes(frame[offset + 8 : offset + 12], "big") if has_count else 0
    return None
