"""An output's folder: its lock, what an unfinished run left in it, and how it is finished."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from ast_fast_kernels.corpus.flush import settle
from ast_fast_kernels.corpus.freeze import Frozen
from ast_fast_kernels.corpus.manifest import (
    FAILED,
    MANIFEST,
    SETTINGS,
    SHARDS,
    line_of,
    read_lines,
    write_lines,
)
from ast_fast_kernels.corpus.plan import INPUT, RUN, UNFLUSHED, Plan
from ast_fast_kernels.corpus.records import ShardLines, ShardRecord, read_record
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write, remove_leftovers
from ast_fast_kernels.files.sealed import digest_of_file, is_intact, sealed
from ast_fast_kernels.files.text import read_document

PLAN = "plan.json"
SHAR = "shar"
"""The folder of lhotse's shards, of which every file is taken for one."""
LOCK = ".lock"

Settings = Mapping[str, Mapping[str, Any]]
COMPARED = ("input", "output", "features", "versions")
"""Tables of the settings that a resumed run must find unchanged."""
DERIVED = ("input.items", "input.digest", "output.columns")
"""Entries that follow from the input, and are known only when it was read."""


class Output:
    """The folder of one output, for the process that holds its lock.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / RUN

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder, and hold its lock within the block.

        Raises:
            InputError: It cannot be created, or another process uses it.
        """
        is_new = not self.path.exists()
        lock = FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"--out {self.path} is in use by another run") from None
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be used: {error.strerror}") from error
        try:
            yield
        finally:
            with suppress(OSError):
                (self.path / LOCK).unlink()
            lock.release()
            if is_new:
                with suppress(OSError):
                    self.path.rmdir()  # if nothing was written

    def finished(self) -> dict[str, Any] | None:
        """Return the settings of a finished run; None if none is here.

        Raises:
            InputError: They cannot be read.
        """
        try:
            return tomllib.loads(read_document(self.path / SETTINGS))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path / SETTINGS} cannot be read: {error}") from error

    def lost(self) -> list[str]:
        """Return the files of a finished run that are gone or empty.

        Raises:
            InputError: The list of its shards cannot be read.
        """
        tables = [name for name in (MANIFEST, SHARDS, FAILED) if not (self.path / name).exists()]
        if SHARDS in tables:
            return tables
        try:
            shards = [name for line in read_lines(self.path / SHARDS) for name in line["files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path / SHARDS} cannot be read: {error}") from error
        return tables + [name for name in shards if not _size(self.path / name)]

    def unfinished(self) -> tuple[Settings, Frozen] | None:
        """Return the settings and the list of an unfinished run; None if none is here.

        Raises:
            InputError: They were changed since.
        """
        try:
            document = json.loads(read_document(self.run / PLAN))
        except FileNotFoundError:
            return None
        except ValueError:
            document = {}
        if not is_intact(document):
            raise InputError(f"{self.run / PLAN} was changed; remove {self.path} to begin anew")
        frozen = Frozen(**document["frozen"])
        try:
            digest = digest_of_file(self.run / INPUT)
        except OSError:
            digest = ""
        if digest != frozen.digest:
            raise InputError(f"{self.run / INPUT} was changed; remove {self.path} to begin anew")
        return document["settings"], frozen

    def begin(self, settings: Settings, freeze: Callable[[Path], Frozen]) -> Frozen:
        """Begin a run in an empty folder: write its list by `freeze`, then its settings.

        Raises:
            InputError: The folder holds something else.
        """
        there = sorted(set(os.listdir(self.path)) - {LOCK, RUN})
        if there:
            raise InputError(
                f"--out {self.path} must be new or empty, and holds {there[0]}"
                + (f" and {len(there) - 1} more" if len(there) > 1 else "")
            )
        try:
            self.run.mkdir(exist_ok=True)
            frozen = freeze(self.run / INPUT)
            with atomic_write(self.run / PLAN) as temporary:
                document = sealed({"settings": settings, "frozen": asdict(frozen)})
                temporary.write_text(json.dumps(document), encoding="ascii")
        except BaseException:
            shutil.rmtree(self.run, ignore_errors=True)
            raise
        return frozen

    def clean(self) -> None:
        """Remove what killed processes were writing."""
        for folder in (self.path, self.path / SHAR, self.run):
            if folder.is_dir():
                remove_leftovers(folder)

    def settle(self) -> None:
        """Flush shards to the disk that their processes could not.

        Raises:
            OSError: One cannot be flushed.
        """
        settle(self.path, self.run)

    def records(self, num_shards: int, *, check: bool = False) -> Iterator[ShardRecord]:
        """Yield the records of the shards that are finished.

        Args:
            num_shards: Of the plan.
            check: Whether a shard whose files are gone, or empty, counts as not finished.
        """
        for k in range(num_shards):
            found = read_record(self.run / f"shard-{k:06d}.json")
            if found is not None and not (check and not self._has_files(found[1])):
                yield found[0]

    def _has_files(self, lines: ShardLines) -> bool:
        names = lines.files.files if lines.files is not None else ()
        return all(_size(self.path / name) > 0 for name in names)

    def failed_lines(self, k: int) -> list[Mapping[str, Any]]:
        """Return a finished shard's lines of failed.jsonl, whether it is flushed or not."""
        for end in (UNFLUSHED, ".json"):  # a shard that is flushed meanwhile is found by the second
            found = read_record(self.run / f"shard-{k:06d}{end}")
            if found is not None:
                return [json.loads(line) for line in found[1].failed]
        return []

    def finish(self, settings: Settings, plan: Plan) -> None:
        """Write the tables and the settings, then remove what a resumed run would need."""
        write_lines(self.path / MANIFEST, self._lines(plan, lambda lines: lines.manifest))
        write_lines(self.path / FAILED, self._lines(plan, lambda lines: lines.failed))
        write_lines(self.path / SHARDS, self._lines(plan, _shard_line))
        with atomic_write(self.path / SETTINGS) as temporary:
            temporary.write_text(tomli_w.dumps(settings), encoding="utf-8")
        self.remove_run()

    def remove_run(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.run, ignore_errors=True)

    def _lines(self, plan: Plan, of: Callable[[ShardLines], Sequence[str]]) -> Iterator[str]:
        for k in range(plan.num_shards):
            found = read_record(plan.record_path(k))
            assert found is not None, k
            yield from of(found[1])


def _shard_line(lines: ShardLines) -> list[str]:
    return [] if lines.files is None else [line_of(asdict(lines.files))]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def difference(before: Settings, now: Settings) -> str | None:
    """Return what a resumed run would change, as a clause; None if nothing."""
    old, new = (dict(_flat({name: s.get(name, {}) for name in COMPARED})) for s in (before, now))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not name.startswith(DERIVED):
            was, is_now = (s.get(name, "not set") for s in (old, new))
            return f"{name} was {was} and is now {is_now}"
    return None


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value
