"""Compiled kernels on disk: verified when they are read, compiled by one process at a time.

Numba's own cache trusts its files: it runs whatever a flipped bit has made of them, and numbers
them, so that two processes may take the same number. Here a file is named by what it holds, and
begins with a checksum of its name and its contents. Nothing of a file that fails is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import os
import pickle
import stat
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import (
    InTreeCacheLocator,
    NullCache,
    UserProvidedCacheLocator,
    UserWideCacheLocator,
)
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

try:
    import fcntl
except ModuleNotFoundError:  # Windows: there, processes that begin at once all compile
    fcntl = None  # type: ignore[assignment]

_logger = logging.getLogger("ast_fast_kernels")

compile_logger = logging.getLogger("ast_fast_kernels.compile")
"""Logs, at level INFO, the begin and the end of each compilation: two records. A process that waits
for another's compilation logs one. A kernel that comes from the disk has none."""

DIGEST_BYTES = hashlib.sha256().digest_size

LONGEST_WAIT = 180.0
"""Seconds to wait for another process. One that is stopped, not killed, keeps its lock."""

POLL_SECONDS = 0.05

kernel_files: dict[str, Path | None] = {}
"""Each kernel that this process has → its file; None, if it could not be written."""


class KernelCache(NullCache):
    """One kernel's file. A failed read is a miss, and a failed write keeps the kernel.

    Between a miss and `close`, other processes that miss the same file wait. All calls are made
    under the compile lock of `threads.py`: the lock of a file holds off processes, not threads.
    """

    def __init__(self, function: Callable[..., Any], kernel: str) -> None:
        """Take the kernel's function, and its name for the log."""
        self._function, self._kernel = function, kernel
        self._begin = 0.0
        self._target: Path | None = None  # where to write
        self._held = contextlib.ExitStack()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kernel from disk; None, if it has to be compiled."""
        target_context.refresh()
        paths = _paths(self._function, self._name(sig, target_context.codegen()))
        for path in paths:
            found = _read_whole(path) or self._read_when_locked(path)
            if found is not None:
                kernel_files[self._kernel] = path
                return CompileResult._rebuild(target_context, *pickle.loads(found))
            if self._target is not None:
                break
        if self._target is None:
            folders = ", ".join(str(path.parent) for path in paths)
            say_uncached(f"none can be written of {folders}; NUMBA_CACHE_DIR names another folder")
        compile_logger.info("compiling %s", self._kernel)
        self._begin = time.perf_counter()
        return None

    def _read_when_locked(self, path: Path) -> bytes | None:
        """Read a file again once no other process compiles it; take it as the one to write."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(_locked(path.with_name(f"{path.name}.lock"), self._kernel))
        except OSError:  # cannot be written
            return None
        self._target = path
        return _read_whole(path)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a kernel that was compiled after a miss."""
        seconds = time.perf_counter() - self._begin
        compile_logger.info("compiled %s in %.1f s", self._kernel, seconds)
        assert not data.library.has_dynamic_globals, "addresses in the code hold for one process"
        kernel_files[self._kernel] = None
        if self._target is None:
            return
        payload: bytes = dumps(data._reduce())
        try:
            _write(self._target, _digest(self._target.name, payload) + payload)
        except OSError as error:  # such as a full disk
            say_uncached(f"{self._target}: {error}")
            return
        kernel_files[self._kernel] = self._target

    def close(self) -> None:
        """Let other processes go on."""
        self._held.close()

    def _name(self, sig: Any, codegen: Any) -> str:
        """Return the name of the file: everything that the compiled code depends on."""
        function = self._function
        holds = (
            (sys.implementation.cache_tag, numba.__version__, llvmlite.__version__),
            (str(sig), codegen.magic_tuple()),
            (function.__code__.co_code, inspect.getclosurevars(function).nonlocals),
        )
        digest = hashlib.sha256(repr(holds).encode()).hexdigest()[:32]
        kernel = function.__qualname__.rpartition(".")[2]
        return f"{function.__module__}.{kernel}.{digest}.nbc"


def _paths(function: Callable[..., Any], name: str) -> list[Path]:
    """Return where a file may lie: in NUMBA_CACHE_DIR, beside the source, in the user's cache.

    These are Numba's folders. The search ends at the first that can be written. Unlike Numba, it
    reads those before it: a container's image may hold a cache that its users can only read.
    """
    source = inspect.getfile(function)
    locators: list[Any] = [InTreeCacheLocator, UserWideCacheLocator]
    if numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        locators.insert(0, UserProvidedCacheLocator)
    return [Path(locator(function, source).get_cache_path(), name) for locator in locators]


def _read_whole(path: Path) -> bytes | None:
    """Return what a file holds after its checksum; None, if there is none that is whole."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            _say_unusable(path, "is not a regular file")
            return None
        held = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _say_unusable(path, f"cannot be read ({error.strerror})")
        return None
    payload = held[DIGEST_BYTES:]
    if held[:DIGEST_BYTES] == _digest(path.name, payload):
        return payload
    _say_unusable(path, "is damaged")
    return None


def _digest(name: str, payload: bytes) -> bytes:
    """Return the checksum of a file: of its name too, which says what the code was compiled for."""
    return hashlib.sha256(name.encode() + b"\n" + payload).digest()


def _write(path: Path, contents: bytes) -> None:
    """Write a file that appears whole; its lock, if there is one, is held."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(contents)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _locked(path: Path, kernel: str) -> contextlib.ExitStack:
    """Return what holds the lock; wait while another process does.

    A lock of `fcntl.lockf` ends with its process, however that ends, and a forked child has none.

    Raises:
        OSError: The file cannot be created.
    """
    held = contextlib.ExitStack()
    end, said = time.monotonic() + LONGEST_WAIT, False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        held.callback(os.close, descriptor)
        locked = _try_to_lock(descriptor)
        if locked and _is_same_file(descriptor, path):
            held.callback(path.unlink, missing_ok=True)
            for litter in path.parent.glob(f"{path.stem}.*.tmp"):  # of killed processes
                litter.unlink(missing_ok=True)
            return held
        held.close()
        if locked:
            continue  # whoever had the lock has removed the file
        if time.monotonic() >= end:
            compile_logger.info("waited %.0f s in vain for %s", LONGEST_WAIT, kernel)
            return held
        if not said:
            compile_logger.info("waiting for another process that compiles %s", kernel)
            said = True
        time.sleep(POLL_SECONDS)


def _try_to_lock(descriptor: int) -> bool:
    """Say whether no other process holds the lock; a file system may know none."""
    if fcntl is not None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            pass
    return True


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@cache
def say_uncached(reason: str) -> None:
    """Warn, once for each reason, that kernels are not cached on disk."""
    _logger.warning("compiled kernels are not cached on disk: %s", reason)


@cache
def _say_unusable(path: Path, what: str) -> None:
    """Warn, once for each file, that its kernel is compiled again."""
    _logger.warning("the cached kernel %s %s; it is compiled again", path, what)
