"""The sizes of a core's data caches, as Linux tells them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

USUAL = 32 << 10
"""Bytes of the first cache where none is told: the smallest of today's servers and laptops."""

LEAST, MOST = 8 << 10, 1 << 20
"""Sizes beyond these are no first cache's: a virtual machine may tell anything."""

_CPUS = Path("/sys/devices/system/cpu")


@cache
def first_cache(cpus: Path = _CPUS) -> int:
    """Return the bytes of the smallest first data cache of any core; USUAL if none is told."""
    sizes = [data_caches(core).get(1, 0) for core in cpus.glob("cpu[0-9]*")]
    return min((size for size in sizes if LEAST <= size <= MOST), default=USUAL)


def data_caches(core: Path = _CPUS / "cpu0") -> dict[int, int]:
    """Return the bytes of each data cache that a core uses, by level; none that is not told."""
    found = {}
    for index in core.glob("cache/index*"):
        level, size = _read(index / "level"), _bytes(_read(index / "size"))
        if level.isdecimal() and size and _read(index / "type") in ("Data", "Unified"):
            found[int(level)] = size
    return found


def _bytes(text: str) -> int:
    """Return a size such as 48K or 1M in bytes; 0 if it is neither."""
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
    digits = text[:-1] if unit else text
    return int(digits) << unit if digits.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
