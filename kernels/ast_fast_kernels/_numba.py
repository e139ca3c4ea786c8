"""How this package compiles with Numba: the flags, and what names a cached kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numba.extending

_SOURCES = ("_numba.py", "simd.py", "fft.py", "fbank/numba_cpu.py")


def jit(function: Callable[..., Any]) -> Any:
    """Compile an entry point: no GIL, cached on disk, IEEE arithmetic, C division."""
    return numba.njit(nogil=True, cache=True, error_model="numpy")(function)


def stage(function: Callable[..., Any]) -> Any:
    """Compile a function that only entry points call, and are cached with."""
    return numba.njit(nogil=True, error_model="numpy")(function)


def intrinsic(function: Callable[..., Any]) -> Any:
    """Make an intrinsic that sees the values of literal arguments."""
    return numba.extending.intrinsic(prefer_literal=True)(function)


@cache
def source_digest() -> str:
    """Return a digest of every source that kernels are emitted from.

    Numba's cache watches one file a kernel; the vector code comes from several.
    """
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in _SOURCES)).hexdigest()
