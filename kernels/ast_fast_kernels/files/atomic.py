"""Files and folders that exist whole or not at all.

Data is written under a temporary name beside its target, flushed to disk and then renamed. A
process killed at any moment leaves the old target or the new one, never half of either.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ast_fast_kernels.errors import InputError

PARTIAL = re.compile(r"\.(.+\.)?[0-9a-f]{8}\.partial(\..+)?", re.DOTALL)
"""Names that the functions here give to what is not whole yet."""


def check_out_file(path: Path, name: str, suffix: str) -> None:
    """Raise if a file cannot be written, before the work that makes it.

    Args:
        path: The file to write.
        name: Of the argument, for the message.
        suffix: That the file must have.
    Raises:
        InputError: It has another suffix, or its folder is missing or cannot be written to.
    """
    if path.suffix != suffix:
        raise InputError(f"{name} must end in {suffix}, got {path}")
    try:
        found = path.parent.is_dir()
    except OSError as error:
        raise InputError(f"{name} {path} cannot be written: {error.strerror}") from error
    if not found or path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{name} must be a file in a folder to write in, got {path}")


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well.

    The temporary file keeps the suffix of `path` (writers such as `np.save` look at it) and lies in
    the same folder, so that the final rename never copies. An exception in the block removes it
    and leaves `path` as it was; the block must have created the file.

    Args:
        path: The file to create or replace; its folder must exist.
        durable: Whether to flush it to disk; if not, a power cut may leave less of it.
    """
    temporary = _beside(path)
    try:
        yield temporary
        if durable:
            flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        flush(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends well.

    Unlike `atomic_write`, an existing folder at `path` is moved aside first, because a rename
    cannot replace a folder that holds something: between the two renames `path` is absent, never
    partial.

    Args:
        path: The folder to create or replace; its parent must exist.
    """
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        _flush_all(temporary)
        _replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(path.parent)


@contextmanager
def filled_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder whose contents move into `path` when the block ends well.

    An existing folder is kept, not replaced: a link may lead to it, or it may be a shell's current
    folder. The name that sorts first moves last. If the block fails, nothing is left behind.

    Args:
        path: The folder, new or empty.
    """
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f".{secrets.token_hex(4)}.partial"
    temporary.mkdir()
    try:
        yield temporary
        _flush_all(temporary)
        for inside in sorted(temporary.iterdir(), reverse=True):
            inside.rename(path / inside.name)
        flush(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                path.rmdir()  # if it is empty


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in a folder; its subfolders are not searched.

    The caller must hold the folder's lock: what a living process writes has the same names.
    """
    for name in os.listdir(folder):
        if PARTIAL.fullmatch(name):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    old = _beside(path)
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    """Return an unused hidden name in the folder of `path`, with the same suffix."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")


def _flush_all(root: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))


def flush(path: Path) -> None:
    """Flush a file or folder to disk.

    Raises:
        OSError: It cannot be opened or written.
    """
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders; its renames are journaled
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
