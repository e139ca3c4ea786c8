"""How this package compiles with Numba: flags, and a disk cache that may fail without harm."""

from __future__ import annotations

import hashlib
import inspect
import logging
import pickle
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numba.extending
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.ccallback import CFunc

_logger = logging.getLogger("ast_fast_kernels")

compile_logger = logging.getLogger("ast_fast_kernels.compile")
"""Logs, at level INFO, the begin and the end of each compilation: two records. A kernel that comes
from the disk has none."""

_UNREADABLE = (
    OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, IndexError, ValueError,
)  # fmt: skip
"""What a damaged or foreign cache file raises (pickle's documentation), or a full disk."""

_OPTIONS: dict[str, Any] = {"error_model": "numpy"}
_UNWRAPPED: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

_PACKAGE = Path(__file__).parents[1]


def callback(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile an entry point that C code calls by its `address`, and Python by its `ctypes`.

    Arithmetic is IEEE's. The code is cached on disk if possible.
    """
    _tell_apart(function)
    compiled: Any = CFunc(function, (signature.args, signature.return_type), {}, _OPTIONS)
    compiled._cache = _KernelCache(function)
    compiled.compile()
    return compiled


def stage(function: Callable[..., Any]) -> Any:
    """Compile a function for compiled code only; it is cached with the entry points that call it.

    Python cannot call it: a wrapper for that would take a sixth of the compilation time.
    """
    compiled: Any = numba.njit(nogil=True, **_UNWRAPPED, **_OPTIONS)(function)
    compiled._compile_for_args = _refuse_call
    return compiled


def _refuse_call(*args: object, **kwargs: object) -> None:
    raise TypeError("a function compiled by `stage` can be called by compiled code only")


def intrinsic(function: Callable[..., Any]) -> Any:
    """Make an intrinsic that sees the values of literal arguments."""
    return numba.extending.intrinsic(prefer_literal=True)(function)


class _KernelCache(NullCache):
    """Numba's disk cache, but a failed read is a miss and a failed write keeps the kernel."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._disk: Any = None
        self._kernel = _describe(function)
        self._begin = 0.0
        try:
            self._disk = FunctionCache(function)
        except RuntimeError as error:  # Numba can write to none of its cache folders
            _say_uncached(str(error))
            return
        self._disk._cache_file.__class__ = _KeyedFiles

    @property
    def cache_path(self) -> str | None:
        path: str | None = self._disk and self._disk.cache_path
        return path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        loaded = None
        try:
            loaded = self._disk and self._disk.load_overload(sig, target_context)
        except _UNREADABLE as error:
            _say_uncached(f"{self.cache_path}: {error}")
        if loaded is None:
            compile_logger.info("compiling %s", self._kernel)
            self._begin = time.perf_counter()
        return loaded

    def save_overload(self, sig: Any, data: Any) -> None:
        seconds = time.perf_counter() - self._begin
        compile_logger.info("compiled %s in %.1f s", self._kernel, seconds)
        try:
            if self._disk is not None:
                self._disk.save_overload(sig, data)
        except _UNREADABLE as error:
            _say_uncached(f"{self.cache_path}: {error}")


class _KeyedFiles(IndexDataCacheFile):
    """Cache files named by what they hold, without an index.

    Numba numbers its files. Two processes that compile at once, for two FFT lengths for example,
    can take the same number, and a later reader then runs the wrong kernel.
    """

    def load(self, key: Any) -> Any:
        try:
            return self._load_data(self._name(key))  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            return None

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._name(key), data)  # type: ignore[no-untyped-call]

    def _name(self, key: Any) -> str:
        holds = repr((self._version, self._source_stamp, key))
        digest = hashlib.sha256(holds.encode()).hexdigest()[:16]
        return self._index_name.removesuffix(".nbi") + f".{digest}.nbc"


def _built_for(function: Callable[..., Any]) -> dict[str, int]:
    """Return the numbers that a kernel is built for: those in its closure.

    The closure may hold only numbers and strings: Numba finds a kernel on the disk by them, and
    anything compiled differs in every process.
    """
    built_for = inspect.getclosurevars(function).nonlocals
    assert all(type(value) in (int, str) for value in built_for.values()), built_for
    return {name: value for name, value in built_for.items() if isinstance(value, int)}


def _tell_apart(function: Callable[..., Any]) -> None:
    """Name a kernel's code by the numbers that it is built for.

    Numba tells functions of the same name apart by the order in which a process compiles them. If
    two kernels cached by different processes met in a third, one would run in place of both.
    """
    numbers = "_".join(f"{name}{value}" for name, value in _built_for(function).items())
    function.__qualname__ += f"_{numbers}"


def _describe(function: Callable[..., Any]) -> str:
    """Name a kernel by its operation and the numbers that it is built for."""
    op, name = function.__module__.split(".")[1], function.__name__
    kernel = f"the {op} {name} kernel" if name in ("forward", "backward") else f"the {op} kernel"
    numbers = [f"{name} {value}" for name, value in _built_for(function).items()]
    return f"{kernel} for {', '.join(numbers)}" if numbers else kernel


@cache
def _say_uncached(reason: str) -> None:
    """Warn, once for each reason, that kernels are not cached on disk."""
    _logger.warning("compiled kernels are not cached on disk: %s", reason)


@cache
def source_digest(package: Path = _PACKAGE) -> str:
    """Return a digest of every source of the package, wherever kernels are emitted from.

    Numba's cache watches one file per kernel, and the code comes from several. To find which, one
    would follow imports, which takes longer than reading all of them.
    """
    texts = (path.read_bytes() for path in sorted(package.rglob("*.py")))
    return hashlib.sha256(b"".join(texts)).hexdigest()
