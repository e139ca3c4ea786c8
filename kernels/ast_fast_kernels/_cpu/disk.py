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
import sys
import time
from collections.abc import Callable, Iterator
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
        name = self._name(sig, target_context.codegen())
        paths = [folder / name for folder in _folders(self._function)]
        found = _first_whole(paths)
        if found is None:
            self._target = self._held.enter_context(_writable(paths, self._kernel))
            found = _first_whole(paths)  # another process may have compiled it meanwhile
        if found is None:
            compile_logger.info("compiling %s", self._kernel)
            self._begin = time.perf_counter()
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(found))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a kernel that was compiled after a miss."""
        seconds = time.perf_counter() - self._begin
        compile_logger.info("compiled %s in %.1f s", self._kernel, seconds)
        assert not data.library.has_dynamic_globals, "addresses in the code hold for one process"
        if self._target is None:
            return
        payload: bytes = dumps(data._reduce())
        try:
            _write(self._target, _digest(self._target.name, payload) + payload)
        except OSError as error:  # such as a full disk
            say_uncached(f"{self._target}: {error}")

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


def _folders(function: Callable[..., Any]) -> list[Path]:
    """Return Numba's folders, in its order: NUMBA_CACHE_DIR, beside the source, the user's.

    Numba reads only a folder that it can also write. One that was filled for others to read, as
    in a container's image, would be no use.
    """
    source = inspect.getfile(function)
    locators: list[Any] = [InTreeCacheLocator, UserWideCacheLocator]
    if numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        locators.insert(0, UserProvidedCacheLocator)
    return [Path(locator(function, source).get_cache_path()) for locator in locators]


def _first_whole(paths: list[Path]) -> bytes | None:
    """Return the first of these files that is whole, without its checksum."""
    for path in paths:
        try:
            held = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            _say_unusable(path, f"cannot be read ({error.strerror})")
            continue
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


@contextlib.contextmanager
def _writable(paths: list[Path], kernel: str) -> Iterator[Path | None]:
    """Yield the first path that can be written, locked against other processes; None, if none."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _locked(path.with_name(f"{path.name}.lock"), kernel)
        except OSError:  # cannot be written
            continue
        with lock:
            yield path
        return
    folders = ", ".join(str(path.parent) for path in paths)
    say_uncached(f"none of these folders can be written: {folders}; NUMBA_CACHE_DIR names another")
    yield None


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
