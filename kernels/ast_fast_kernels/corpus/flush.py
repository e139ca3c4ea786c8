"""Finished shards reach the disk while the next one is made.

A shard gets its name and its record at once, so a killed process has lost nothing of it: what the
system holds for a process outlives it. Only a power cut takes what was not flushed. The record is
therefore `shard-000000.unflushed.json` until the shard is on the disk. A run that finds such a one
compares the files with their digests, which are of one shard for each process that was at work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ast_fast_kernels.corpus.plan import UNFLUSHED
from ast_fast_kernels.corpus.records import read_record
from ast_fast_kernels.files.atomic import flush
from ast_fast_kernels.files.xxh3 import xxh3_of_file


class Flusher:
    """Flushes one shard at a time, in a thread of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def add(self, files: Sequence[Path], record: Path) -> None:
        """Flush a shard's files, then let its record count; waits for the shard before.

        Args:
            files: Of the shard.
            record: Its record, of which only the name says that it is not flushed.
        Raises:
            OSError: The shard before could not be flushed, and is to be made again.
        """
        self.wait()
        self._last = self._pool.submit(flush_shard, files, record)

    def wait(self) -> None:
        """Return when all is flushed.

        Raises:
            OSError: It could not be.
        """
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self.wait()


def flush_shard(files: Sequence[Path], record: Path) -> None:
    """Flush a shard's files, then give its record the name that counts.

    Raises:
        OSError: A file cannot be flushed; the record is removed then.
    """
    try:
        for path in files:
            flush(path)
    except OSError:
        record.unlink(missing_ok=True)
        raise
    try:
        os.replace(record, flushed_name(record))
    except FileNotFoundError:  # a process that is on its end, or counted as lost, was first
        if not flushed_name(record).exists():
            raise


def flushed_name(record: Path) -> Path:
    """Return the name of a record whose shard is on the disk."""
    return record.with_name(record.name.replace(UNFLUSHED, ".json"))


def settle(out: Path, run: Path) -> None:
    """Flush the shards that processes left unflushed; forget those that are damaged.

    Args:
        out: Folder of the shards.
        run: Folder of their records.
    Raises:
        OSError: A shard cannot be flushed.
    """
    for record in sorted(run.glob(f"shard-*{UNFLUSHED}")):
        found = read_record(record)
        files = {} if found is None or found[1].files is None else found[1].files.files
        if found is not None and all(_is_whole(out / name, files[name]) for name in files):
            flush_shard([out / name for name in files], record)
        else:
            record.unlink(missing_ok=True)


def _is_whole(path: Path, digest: str) -> bool:
    with suppress(OSError):
        return xxh3_of_file(path) == digest
    return False
