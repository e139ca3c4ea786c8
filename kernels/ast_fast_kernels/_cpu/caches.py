"""The size of a core's first data cache, as Linux tells it."""

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
    sizes = [_bytes(index) for index in cpus.glob("cpu[0-9]*/cache/index*") if _is_first(index)]
    return min((size for size in sizes if LEAST <= size <= MOST), default=USUAL)


def _is_first(index: Path) -> bool:
    return _read(index / "level") == "1" and _read(index / "type") in ("Data", "Unified")


def _bytes(index: Path) -> int:
    """Return a size such as 48K or 1M in bytes; 0 if it is neither."""
    text = _read(index / "size")
    unit = {"K": 10, "M": 20}.get(text[-1:], 0)
    digits = text[:-1] if unit else text
    return int(digits) << unit if digits.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
