"""What the headers of audio files promise, beside what there is.

libsndfile reads to the end of a file that ends early, and notes it at best. So a file that is cut
short has to be told here from one whose header is merely loose. A promise is kept if less is
missing than one frame, a sample of every channel: a writer that counts bytes can be so far off, and
no whole sample is lost. One byte may be missing where a chunk is padded to an even length, and
seven in W64, which pads to eight: writers count the padding and then leave it out.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ast_fast_kernels.audio.content import Content

if TYPE_CHECKING:
    import soundfile

UNKNOWN_LENGTH = 0x7F000000
"""Bytes of audio from which a header holds a streaming writer's placeholder: sox writes 0x7f000000
into AIFF and 0x7ffff000 into WAV, others 0x7fffffff, 0x80000000 or 0xffffffff."""
LARGEST_OGG_PAGE = 27 + 255 + 255 * 255
"""Bytes of a header, the lengths of 255 segments, and the segments."""

_SAMPLE_BYTES = {
    "PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "DPCM_8": 1, "PCM_16": 2, "DPCM_16": 2,
    "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
"""Encodings whose frames have a size of their own; the others are packed in blocks."""

_BYTES_NOTED = {
    "MAT4": re.compile(r"seems to be truncated\. (?P<found>\d+) <--> (?P<promised>\d+)"),
    "WVE": re.compile(r"^Data length (?P<promised>\d+) should be (?P<found>\d+)", re.M),
}
"""Bytes of audio in libsndfile's notes, by format."""
_FRAMES_NOTED = {
    "AVR": re.compile(r"^\s*Frames\s*: (\d+)", re.M),
    "MPC2K": re.compile(r"^\s*Frames\s*: (\d+)", re.M),
    "MAT5": re.compile(r"Cols\s*: (\d+)"),
}
"""Frames in libsndfile's notes, by format; the last one counts."""
_SDS = re.compile(r"Samples/Block\s*: (\d+)\s+Frames\s*: (\d+)")
"""Frames in a block, and in all blocks that there are."""
_NIST_FRAMES = re.compile(rb"^sample_count -i (\d+)", re.M)
_NIST_HEADER = 1024
_OGG_UNFINISHED = "Last page lacks an end-of-stream bit"


@dataclass(frozen=True)
class Chunks:
    """How a container lays out its chunks: an identifier, a size, then the content."""

    begin: int
    size_at: int
    size_format: str
    padding: int
    data: bytes
    before_audio: int = 0
    """Bytes of the content that precede the audio."""

    @property
    def header(self) -> int:
        """Bytes of a chunk before its content."""
        return self.size_at + struct.calcsize(self.size_format)


RIFF = Chunks(12, 4, "<I", 2, b"data")
_LAYOUTS = {
    b"RIFF": RIFF,
    b"RF64": RIFF,
    b"BW64": RIFF,
    b"RIFX": Chunks(12, 4, ">I", 2, b"data"),
    b"FORM": Chunks(12, 4, ">I", 2, b"SSND", before_audio=8),
    b"caff": Chunks(8, 4, ">q", 1, b"data", before_audio=4),
    b"riff": Chunks(40, 16, "<q", 8, b"data"),
}
"""By the first four bytes. W64, the last one, counts a chunk's header in its size."""

_AU = {b".snd": ">", b"dns.": "<"}
"""Byte order by the first four bytes."""


@dataclass(frozen=True)
class DataChunk:
    """The chunk of a file that holds the audio."""

    promised: int | None
    """Bytes of audio by the header; None if it does not know."""
    begin: int
    """Offset of the audio."""
    found: int
    """Bytes of audio in the file."""
    padding: int
    """Bytes to whose multiple the container pads a chunk."""
    mended: Mapping[int, bytes]
    """What libsndfile must read, by offset, to find the audio if the header does not know."""


def read_data_chunk(content: Content) -> DataChunk | None:
    """Return where the audio of a RIFF, RIFX, RF64, BW64, W64, AIFF, CAF, AU or VOC file is.

    A size of 0 is what writers begin with and correct at the end. It counts as unknown if something
    follows that is not a chunk.

    Returns:
        None if the file is of another format, or has no such chunk.
    Source: Multimedia Programming Interface and Data Specifications 1.0 (RIFF); EBU Tech 3306
        (RF64); Audio Interchange File Format 1.3; Apple Core Audio Format Specification 1.0.
    """
    size = content.size
    magic = content.read_at(0, 4)
    if magic in _AU:
        return _au_data(content, _AU[magic])
    if magic == b"Crea":
        return _voc_data(content)
    layout = _LAYOUTS.get(magic)
    if layout is None:
        return None
    wide: tuple[int, int] | None = None  # offset of ds64's size of the audio, and its value
    for name, at, length in chunks_of(content, layout, layout.begin):
        if name == b"ds64":
            wide = at + 8, *struct.unpack("<q", content.read_at(at + 8, 8).ljust(8, b"\0"))
        if name != layout.data and not (magic == b"FORM" and name == b"BODY"):
            continue
        before = layout.before_audio if name == layout.data else 0
        begin = at + before
        found = max(0, size - begin)
        size_format, size_at = layout.size_format, at - layout.header + layout.size_at
        if wide is not None and length == 0xFFFFFFFF:
            size_format, size_at, length = "<q", *wide
        promised = length - before
        is_open = promised <= 0 and not _is_empty(content, layout, at + max(0, length))
        if is_open or _is_placeholder(promised, found):
            there = found + before + (layout.header if magic == b"riff" else 0)
            if size_format[1] == "I":
                there = min(there, 0xFFFFFFFF)
            mended = {size_at: struct.pack(size_format, there)}
            return DataChunk(None, begin, found, layout.padding, mended)
        return DataChunk(promised, begin, found, layout.padding, {})
    return None


def _au_data(content: Content, order: str) -> DataChunk:
    """Return the audio of an AU file, whose header has its offset and size."""
    begin, promised = struct.unpack(f"{order}II", content.read_at(4, 8).ljust(8, b"\0"))
    found = max(0, content.size - begin)
    if (found and not promised) or _is_placeholder(promised, found):
        return DataChunk(None, begin, found, 1, {8: b"\xff\xff\xff\xff"})
    return DataChunk(promised, begin, found, 1, {})


def _voc_data(content: Content) -> DataChunk | None:
    """Return the audio of a Creative Voice file: its first block with samples."""
    position = int.from_bytes(content.read_at(20, 2), "little")
    while position + 4 <= content.size:
        kind, *length = content.read_at(position, 4)
        before = {1: 2, 9: 12}.get(kind)  # type, and with it the header of the samples
        there = int.from_bytes(bytes(length), "little")
        if before is not None:
            begin = position + 4 + before
            return DataChunk(there - before, begin, max(0, content.size - begin), 1, {})
        position += 4 + there
    return None


def _is_placeholder(promised: int, found: int) -> bool:
    return promised < 0 or (promised >= UNKNOWN_LENGTH and promised > found)


def chunks_of(content: Content, layout: Chunks, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the first four bytes of each chunk's identifier, its content's offset and size."""
    while len(header := content.read_at(position, layout.header)) == layout.header:
        (length,) = struct.unpack_from(layout.size_format, header, layout.size_at)
        if layout.size_at == 16:
            length -= layout.header
        begin = position + layout.header
        yield header[:4], begin, length
        if length < 0:
            return
        position = begin + length + -length % layout.padding


def _is_empty(content: Content, layout: Chunks, position: int) -> bool:
    """Return whether only chunks follow, or nothing."""
    end = position
    for name, begin, length in chunks_of(content, layout, position):
        is_name = name.isascii() and name.decode("ascii").isprintable()
        if not is_name or begin + length > content.size:
            return False
        end = begin + length
    return content.size - end < layout.header


class AudioView:
    """A file as libsndfile is to see it: from an offset, with bytes replaced, of another size.

    Beyond the real end nothing can be read, except zeros where decoders look for a tag.

    Args:
        content: The file. Not closed here.
        start: Offset of the first byte.
        size: Bytes that the file claims to have; None is what there is.
        replaced: Other bytes, by offset in the file.
    """

    TAG = 128
    """Bytes of an ID3v1 tag at the end of MPEG audio."""

    def __init__(
        self,
        content: Content,
        *,
        start: int = 0,
        size: int | None = None,
        replaced: Mapping[int, bytes] | None = None,
    ) -> None:
        self._content = content
        self._start = start
        self._real = content.size - start
        self._size = self._real if size is None else size
        self._replaced = replaced or {}
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the offset."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """Read into a buffer; return the number of bytes."""
        content = bytearray(self._content.read_at(self._start + self._position, len(buffer)))
        for at, other in self._replaced.items():
            begin = at - self._start - self._position
            for index, byte in enumerate(other, begin):
                if 0 <= index < len(content):
                    content[index] = byte
        del content[max(0, self._size - self._position) :]
        if self._real < self._size and self._position >= self._size - self.TAG:
            content = bytearray(min(len(buffer), max(0, self._size - self._position)))
        buffer[: len(content)] = bytes(content)
        self._position += len(content)
        return len(content)


def why_cut_short(file: soundfile.SoundFile, content: Content) -> str | None:
    """Return why a file ends before its header says; None if it keeps the promise."""
    notes: str = file.extra_info
    sample_bytes = _SAMPLE_BYTES.get(file.subtype)
    frame_bytes = 1 if sample_bytes is None else sample_bytes * file.channels
    chunk = read_data_chunk(content)
    if chunk is not None and (reason := why_bytes_missing(chunk, frame_bytes)) is not None:
        return reason
    noted = _BYTES_NOTED[file.format].search(notes) if file.format in _BYTES_NOTED else None
    if noted is not None:
        promised, found = int(noted["promised"]), int(noted["found"])
        if max(1, frame_bytes - 1) < promised - found and promised < UNKNOWN_LENGTH:
            return _bytes_missing(promised, found)
    frames, found = None if chunk is not None else frames_stated(file, content), file.frames
    if file.format == "SDS" and (blocks := _SDS.search(notes)):
        # libsndfile takes the header's word, and repeats the last block
        frames, found = file.frames - int(blocks[1]) + 1, int(blocks[2])
    if frames is not None and found < frames - 1:  # one may have lost a byte
        return f"is cut short: its header promises {frames} frames, it holds {found}"
    if file.format == "OGG" and not _end_of_ogg(content)[1]:
        return "is cut short: its last Ogg page is not whole"
    if file.format == "OGG" and _is_chained(content):
        return "is a chain of Ogg streams, of which libsndfile reads only the first"
    return None


def why_bytes_missing(chunk: DataChunk, frame_bytes: int) -> str | None:
    """Return why a chunk of audio ends before its header says; None if less than a frame lacks."""
    missing = 0 if chunk.promised is None else chunk.promised - chunk.found
    if missing > max(1, frame_bytes - 1, chunk.padding - 1):
        return _bytes_missing(chunk.promised, chunk.found)
    return None


def is_unfinished(file: soundfile.SoundFile) -> bool:
    """Return whether an Ogg stream ends without saying so, as one does that was cut off live."""
    return file.format == "OGG" and _OGG_UNFINISHED in file.extra_info


def _bytes_missing(promised: int | None, found: int) -> str:
    return f"is cut short: its header promises {promised} bytes of audio, it holds {found}"


def frames_stated(file: soundfile.SoundFile, content: Content) -> int | None:
    """Return the frames by the header, in formats for which libsndfile ignores them.

    There, it takes all that follows for audio. None in other formats.
    """
    if file.format in _FRAMES_NOTED:
        counts = _FRAMES_NOTED[file.format].findall(file.extra_info)
        return int(counts[-1]) if counts else None
    if file.format == "NIST":
        count = _NIST_FRAMES.search(content.read_at(0, _NIST_HEADER))
        return int(count[1]) if count else None
    sample_bytes = _SAMPLE_BYTES.get(file.subtype)
    channels: int = file.channels
    if file.format in ("W64", "SVX") and sample_bytes is not None:
        chunk = read_data_chunk(content)
        if chunk is not None and chunk.promised is not None:
            return -(-chunk.promised // (sample_bytes * channels))
    return None


def end_of_ogg(content: Content) -> int | None:
    """Return where an Ogg file's last page ends, if that is whole and something else follows.

    libsndfile takes what follows for a damaged page.
    """
    end, is_whole = _end_of_ogg(content)
    return end if is_whole and end < content.size else None


def _end_of_ogg(content: Content) -> tuple[int, bool]:
    """Return where the last page ends, and whether it is complete: libsndfile drops a partial one.

    Source: RFC 3533, section 6: a page begins with the capture pattern and version; byte 26 is the
        number of segments, and their lengths follow.
    """
    size = content.size
    start = max(0, size - 2 * LARGEST_OGG_PAGE)
    tail = content.read_at(start, size - start)
    begin = tail.rfind(b"OggS\0")
    if begin < 0:
        return size, True  # something else follows the stream
    page = tail[begin:]
    if len(page) <= 26:
        return size, False
    length = 27 + page[26] + sum(page[27 : 27 + page[26]])
    return start + begin + length, len(page) >= length


def _is_chained(content: Content) -> bool:
    """Return whether an Ogg stream begins after another; byte 5 of a page says that one does."""
    has_begun, position = False, 0
    while len(page := content.read_at(position, 27 + 255)) >= 27 and page.startswith(b"OggS"):
        is_first = bool(page[5] & 2)
        if is_first and has_begun:
            return True
        has_begun = has_begun or not is_first
        num_segments = page[26]
        position += 27 + num_segments + sum(page[27 : 27 + num_segments])
    return False
