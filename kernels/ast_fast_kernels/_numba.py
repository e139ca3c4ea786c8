"""How this package compiles with Numba: its flags, and a disk cache that is never an obstacle."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numba.extending
from numba.core.caching import FunctionCache

_logger = logging.getLogger("ast_fast_kernels")
_compile_logger = logging.getLogger("ast_fast_kernels.compile")
"""Says what is being compiled, before; nothing where the disk cache has it."""

_UNREADABLE = (
    OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, IndexError, ValueError,
)  # fmt: skip
"""What reading a damaged or foreign cache file raises (pickle's documentation), and a full disk."""

_SOURCES = ("_numba.py", "simd.py", "fft.py", "fbank/numba_cpu.py")


def jit(label: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile an entry point: no GIL, IEEE arithmetic, cached on disk where that is possible.

    Args:
        label: What to say is being compiled.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        compiled: Any = numba.njit(nogil=True, error_model="numpy")(function)
        try:
            compiled._cache = _KernelCache(compiled.py_func, label)
        except RuntimeError as error:  # no folder of Numba's choice can be written
            _say_uncached(str(error))
        return compiled

    return decorate


def stage(function: Callable[..., Any]) -> Any:
    """Compile a function that only entry points call, and are cached with."""
    return numba.njit(nogil=True, error_model="numpy")(function)


def intrinsic(function: Callable[..., Any]) -> Any:
    """Make an intrinsic that sees the values of literal arguments."""
    return numba.extending.intrinsic(prefer_literal=True)(function)


class _KernelCache(FunctionCache):
    """Numba's disk cache, but a failed read is a miss and a failed write keeps the kernel."""

    def __init__(self, function: Callable[..., Any], label: str) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._label = label

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        loaded = None
        try:
            loaded = super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except _UNREADABLE as error:
            _say_uncached(f"{self.cache_path}: {error}")
        if loaded is None:
            _compile_logger.info("compiling %s, once: a few seconds", self._label)
        return loaded

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except _UNREADABLE as error:
            _say_uncached(f"{self.cache_path}: {error}")


@cache
def _say_uncached(reason: str) -> None:
    """Say, once for each reason, that kernels are compiled anew."""
    _logger.warning("compiled kernels are not cached on disk: %s", reason)


@cache
def source_digest() -> str:
    """Return a digest of every source that kernels are emitted from.

    Numba's cache watches one file a kernel; the vector code comes from several.
    """
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in _SOURCES)).hexdigest()
