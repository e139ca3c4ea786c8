"""Files that are hashed as they are written: what is read back must have the same digest.

XXH3 finds damage as SHA-256 does and takes a tenth of the time; it does not keep out who means to
deceive.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class HashedFile:
    """A new file that is written from its beginning to its end.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = _xxh3()

    def write(self, data: Any) -> int:
        """Append bytes: any object that has a buffer."""
        self._hash.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Return the number of bytes so far."""
        return self._file.tell()

    def flush(self) -> None:
        """Hand all bytes to the system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._file.closed

    @property
    def digest(self) -> str:
        """Hexadecimal XXH3 of the bytes so far, in 128 bits."""
        return str(self._hash.hexdigest())

    def readable(self) -> bool:
        """Return that nothing can be read."""
        return False

    def writable(self) -> bool:
        """Return that it can be written."""
        return True

    def seekable(self) -> bool:
        """Return that it is written in order only."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def xxh3_of_file(path: Path) -> str:
    """Return the hexadecimal XXH3 of a file's bytes, in 128 bits, as `xxh128sum` prints it.

    Raises:
        OSError: It cannot be read.
    """
    found = _xxh3()
    with path.open("rb") as file:
        if path.stat().st_size:  # an empty file cannot be mapped
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found.update(content)
    return str(found.hexdigest())


def xxh3_of(data: bytes) -> str:
    """Return the hexadecimal XXH3 of bytes, in 128 bits."""
    found = _xxh3()
    found.update(data)
    return str(found.hexdigest())


def _xxh3() -> Any:
    import xxhash  # of the extra `extract`: a store is read without it

    return xxhash.xxh3_128()
