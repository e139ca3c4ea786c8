"""XXH3, a digest of 128 bits: what `xxh128sum` prints.

It finds damage and tells files apart as SHA-256 does, in a tenth of the time; it does not keep out
who means to deceive. Cryptographic digests take longer than reading a WAV file and its filterbank.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any


def new_xxh3() -> Any:
    """Return a hash of nothing yet, with `update` and `hexdigest`.

    Raises:
        ImportError: xxhash is not installed.
    """
    try:
        import xxhash
    except ModuleNotFoundError as error:
        raise ImportError(
            "digests need xxhash: pip install 'ast-fast-kernels[extract]'", name="xxhash"
        ) from error
    return xxhash.xxh3_128()


def xxh3_of_file(path: Path) -> str:
    """Return the hexadecimal XXH3 of a file's bytes, in 128 bits, as `xxh128sum` prints it.

    Raises:
        OSError: It cannot be read.
    """
    found = new_xxh3()
    with path.open("rb") as file:
        if path.stat().st_size:  # an empty file cannot be mapped
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found.update(content)
    return str(found.hexdigest())


def xxh3_of(data: bytes) -> str:
    """Return the hexadecimal XXH3 of bytes, in 128 bits."""
    found = new_xxh3()
    found.update(data)
    return str(found.hexdigest())
