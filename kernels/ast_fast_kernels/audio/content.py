"""The bytes of an audio file, wherever they lie in a file of the file system.

They are read, not mapped: a file that shrinks under a memory map kills the process, and reading a
clip into an array that can be written to is as quick (docs/log.md).
"""

from __future__ import annotations

import io
import os
import stat
from types import TracebackType
from typing import Any

from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.files.xxh3 import new_xxh3

READ_AHEAD = 2**14
"""Bytes read at once where a header is looked at."""
DIGESTED_AT_ONCE = 2**20


class Content:
    """An audio file, open for reading at any offset; close it, or use it in a `with` statement.

    Args:
        source: Names it.
        digested: Whether to digest what is read, for `digest`.
    Raises:
        OSError: It cannot be opened.
        BadAudioError: It is not a file, or holds nothing.
        ImportError: A digest is asked for, and xxhash is not installed.
    """

    def __init__(self, source: AudioSource, *, digested: bool = False) -> None:
        self.source = source
        self._hash = new_xxh3() if digested else None
        self._hashed = 0
        self._begin = source.begin
        self._ahead_from, self._ahead = 0, b""
        status = os.stat(source.path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise BadAudioError("is not a file")
        there = max(0, status.st_size - source.begin)
        self.size = there if source.size is None else min(there, source.size)
        """Bytes of the audio file."""
        if not self.size:
            raise BadAudioError("is empty (0 bytes)")
        self._file = io.FileIO(source.path)  # a third of the time of `open`

    def read_at(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from an offset on; fewer only at the end."""
        count = min(count, self.size - offset)
        if offset < 0 or count <= 0:
            return b""
        at = offset - self._ahead_from
        if at < 0 or at + count > len(self._ahead):
            self._ahead = self._read(offset, min(max(count, READ_AHEAD), self.size - offset))
            self._ahead_from, at = offset, 0
        return self._ahead[at : at + count]

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(self._begin + offset)
        block = self._file.read(count)
        while len(block) < count and (more := self._file.read(count - len(block))):
            block += more
        self._add(offset, memoryview(block))
        return block

    def read_into(self, offset: int, buffer: Any) -> int:
        """Fill a writable buffer of bytes from an offset on; return how many there were."""
        view = memoryview(buffer).cast("B")
        if offset + len(view) > self.size:
            view = view[: max(0, self.size - offset)]
        self._file.seek(self._begin + offset)
        done = self._file.readinto(view) or 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        self._add(offset, view[:done])
        return done

    @property
    def is_digested(self) -> bool:
        """Whether `digest` can be asked for."""
        return self._hash is not None

    def _add(self, offset: int, block: memoryview) -> None:
        """Digest what of a block follows on what is digested already."""
        new = self._hashed - offset
        if self._hash is not None and 0 <= new < len(block):
            self._hash.update(block[new:])
            self._hashed = offset + len(block)

    def digest(self) -> str:
        """Return the hexadecimal XXH3 of all bytes, in 128 bits.

        Bytes that were read in order, as those of WAV are, are not read again.
        """
        assert self._hash is not None, "digested=True opens a file for its digest"
        buffer = bytearray(min(DIGESTED_AT_ONCE, max(0, self.size - self._hashed)))
        while self._hashed < self.size and self.read_into(self._hashed, buffer):
            pass  # a file that has shrunk ends sooner
        found: str = self._hash.hexdigest()
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Content:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
