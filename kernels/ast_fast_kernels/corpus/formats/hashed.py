"""Files that are hashed as they are written: what is read back must have the same digest."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ast_fast_kernels.files.xxh3 import new_xxh3


class HashedFile:
    """A new file that is written from its beginning to its end.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = new_xxh3()

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
