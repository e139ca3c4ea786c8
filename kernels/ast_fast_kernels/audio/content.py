"""The bytes of an audio file, wherever they lie in a file of the file system.

They are read, not mapped: a file that shrinks under a memory map kills the process, and reading a
clip into an array that can be written to is as quick (docs/log.md).
"""

from __future__ import annotations

import hashlib
import os
import stat
from types import TracebackType
from typing import Any

from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.source import AudioSource

READ_AHEAD = 2**14
"""Bytes read at once where a header is looked at."""
DIGESTED_AT_ONCE = 2**20
DIGEST_BYTES = 16
"""Of blake2b: enough that no two files of a corpus have one digest by chance."""


class Content:
    """An audio file, open for reading at any offset; close it, or use it in a `with` statement.

    Args:
        source: Names it.
    Raises:
        OSError: It cannot be opened.
        BadAudioError: It is not a file, or holds nothing.
    """

    def __init__(self, source: AudioSource) -> None:
        self.source = source
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
        self._file = open(source.path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`

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
        block = bytearray(count)
        return bytes(block[: self.read_into(offset, block)])

    def read_into(self, offset: int, buffer: Any) -> int:
        """Fill a writable buffer of bytes from an offset on; return how many there were."""
        view = memoryview(buffer).cast("B")[: max(0, self.size - offset)]
        self._file.seek(self._begin + offset)
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        return done

    def digest(self) -> str:
        """Return the hexadecimal blake2b of all bytes, in 128 bits."""
        found = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for at in range(0, self.size, DIGESTED_AT_ONCE):
            found.update(self._read(at, min(DIGESTED_AT_ONCE, self.size - at)))
        return found.hexdigest()

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
