"""A run's folder: its choice, creation, resumption, lock and files."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ast_fast.errors import InputError
from ast_fast.machine.atomic import atomic_write
from ast_fast.machine.distributed import Ranks
from ast_fast.machine.text import read_document
from ast_fast.report.build import Measured
from ast_fast.run.endings import exhausted_resource
from ast_fast.run.facts import RunFacts
from ast_fast.settings.agree import RESUMED_FACTS, differing_facts
from ast_fast.settings.config import Config
from ast_fast.settings.toml import CONFIG, config_to_toml

RUN = "run.json"
MEASURED = "measured.json"
LOCK = ".lock"

OWN_FILES = re.compile(r"\.lock|run\.json|\.(run|config)\.[0-9a-f]{8}\.partial\.(json|toml)")
"""Files left by a process that was killed before it wrote config.toml."""


class RunFolder:
    """The folder of one run, for the process that trains it.

    Args:
        path: The folder. If `--out` does not name it and another process takes it first, the next
            free name is used.
        is_named: Whether `--out` names it.
        is_resumed: Whether the run in it is resumed.
        ranks: The processes of the run; only the first writes.
    """

    def __init__(self, path: Path, *, is_named: bool, is_resumed: bool, ranks: Ranks) -> None:
        self.path = path
        self.ranks = ranks
        self.holds_run = is_resumed
        """Whether the folder holds a run that can be resumed."""
        self._is_named = is_named
        self._is_resumed = is_resumed
        self._lock: FileLock | None = None
        self._made: list[Path] = []

    def begin(self, config: Config, facts: RunFacts) -> None:
        """Create the folder of a new run, and write its settings and facts there.

        Raises:
            InputError: It cannot be created, or another process took it first.
        """
        with _reported_by_name(self.path):
            if self.ranks.is_first:
                self._make(config, facts)
        self.path, self.holds_run = self.ranks.same((self.path, True))

    def resume(self, facts: RunFacts) -> RunFacts:
        """Resume the run in the folder; return its facts, with those of this process added.

        Raises:
            InputError: A fact that results depend on differs, or another process uses the folder.
        """
        with _reported_by_name(self.path):
            if self.ranks.is_first:
                self._acquire()
            there = read_facts(self.path)
            for name in differing_facts(there.to_json(), facts.to_json(), RESUMED_FACTS):
                raise InputError(
                    f"--resume must keep the facts of the run in {self.path}: {name} was "
                    f"{getattr(there, name)} and is now {getattr(facts, name)}"
                )
            resumed = there.resumed_by(facts)
            self.ranks.same(None)  # all have read it
            if self.ranks.is_first:
                self.write_facts(resumed)
        return resumed

    def of_fold(self, fold: int) -> Path:
        """Return the folder of one fold."""
        return self.path / f"fold-{fold}"

    def write_facts(self, facts: RunFacts) -> None:
        """Write run.json."""
        with atomic_write(self.path / RUN) as path:
            path.write_text(json.dumps(facts.to_json(), indent=2) + "\n", encoding="utf-8")

    def remove_untrained(self) -> None:
        """Remove what this process created of the folder, unless it finished an epoch there."""
        if not (self.holds_run and self.ranks.is_first) or self._is_resumed:
            return
        if any(self.path.glob("fold-*/*.safetensors")):
            return
        for folder in self.path.glob("fold-*"):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._remove_files(CONFIG, RUN, LOCK)
        self.holds_run = False

    def close(self) -> None:
        """Release the folder for other processes."""
        if self._lock is not None:
            self._lock.release()

    def _make(self, config: Config, facts: RunFacts) -> None:
        try:
            self._claim()
            self._acquire()
            check_out(self.path)  # again: another process may have been first
            for name in os.listdir(self.path):
                if name != LOCK:
                    (self.path / name).unlink()  # OWN_FILES of a killed process
            self.write_facts(facts)
            with atomic_write(self.path / CONFIG) as path:
                path.write_text(config_to_toml(recorded(config)), encoding="utf-8")
        except BaseException:
            unfinished = self._lock is not None and not (self.path / CONFIG).exists()
            self._remove_files(*((RUN, LOCK) if unfinished else ()))
            raise
        self.holds_run = True

    def _claim(self) -> None:
        """Create the folder; without `--out`, one that did not exist."""
        self._made = [folder for folder in self.path.parents if not folder.exists()]
        if self._is_named:
            if not self.path.exists():
                self._made.insert(0, self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in default_outs():
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                self.path = path
                self._made.insert(0, path)
                return

    def _acquire(self) -> None:
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"--out {self.path} is in use by another process") from None
        self._lock = lock

    def _remove_files(self, *names: str) -> None:
        """Remove these files from the run's folder, then the folders created for it if empty."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.path / name).unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _reported_by_name(out: Path) -> Iterator[None]:
    """Name the folder in errors of the system, except a full disk, which has its own message."""
    try:
        yield
    except OSError as error:
        if exhausted_resource(error) is None:
            raise InputError(f"--out {out} cannot be written: {error.strerror}") from error
        raise


def choose_out(config: Config) -> Path:
    """Return the folder of `--out`, or the first of `default_outs` that does not exist."""
    if config.paths.out is not None:
        return config.paths.out
    return next(path for path in default_outs() if not os.path.lexists(path))


def default_outs() -> Iterator[Path]:
    """Yield the folders for a run that starts now without `--out`, first choice first."""
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    yield Path("runs", name)
    for number in itertools.count(2):
        yield Path("runs", f"{name}-{number}")


def check_out(out: Path) -> None:
    """Check that the run's folder is new or empty, and that it can be created and written.

    Raises:
        InputError: It is not, or cannot; the message says why.
    """
    try:
        _check_out(out)
    except OSError as error:  # no permission, or a name longer than the system takes
        raise InputError(f"--out {out} cannot be used: {error.strerror}") from error


def _check_out(out: Path) -> None:
    if (out / CONFIG).is_file():
        raise InputError(
            f"--out {out} holds another run; name a new folder, or resume it with --resume"
        )
    for folder in (out, *out.parents):
        if folder.is_symlink() and not folder.exists():
            target = os.readlink(folder)
            raise InputError(
                f"--out {out} cannot be made: {folder} is a link to {target}, which does not exist"
            )
    if out.exists() and not out.is_dir():
        raise InputError(f"--out must be a folder, got {out}, which is a file")
    if out.is_dir() and not all(OWN_FILES.fullmatch(name) for name in os.listdir(out)):
        raise InputError(f"--out must be a new or empty folder, got {out}, which holds other files")
    ancestor = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not ancestor.is_dir():
        raise InputError(f"--out {out} cannot be made: {ancestor} is a file")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} cannot be written: no permission to write in {ancestor}")


def recorded(config: Config) -> Config:
    """Return the settings for config.toml: with absolute paths, without --out and --resume."""
    data = config.paths.data and config.paths.data.absolute()
    cache = config.paths.cache and config.paths.cache.absolute()
    return replace(
        config, resume=False, paths=replace(config.paths, data=data, cache=cache, out=None)
    )


def read_facts(out: Path) -> RunFacts:
    """Return the facts in the run.json of a run's folder.

    Raises:
        InputError: It is missing, damaged, or lacks a fact that results depend on.
    """
    path = out / RUN
    try:
        document = json.loads(read_document(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for name in (*RESUMED_FACTS, "resumed"):
        if not isinstance(document, dict) or name not in document:
            raise InputError(f"{path} must have {name}, which is missing")
    return RunFacts.from_json(document)


def read_measured(folder: Path) -> Measured | None:
    """Return the cost of a finished fold; None if the file is missing or incomplete."""
    try:
        document = json.loads(read_document(folder / MEASURED))
        measured = Measured.from_json(document)
        whole = math.isfinite(measured.seconds + sum(measured.stages.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return measured if whole else None


def write_measured(folder: Path, measured: Measured) -> None:
    """Write the cost of a finished fold."""
    with atomic_write(folder / MEASURED) as path:
        path.write_text(json.dumps(measured.to_json(), indent=2))
