"""A run's folder: chosen, made or taken up again, held by one process, and what stands in it."""

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
"""What a process killed between making its folder and writing config.toml leaves there."""


class RunFolder:
    """The folder of one run, for the process that trains it.

    Args:
        path: Where it is, or is to be. One that nobody named may turn out to be another's; then the
            next free name is taken.
        is_named: Whether `--out` names it.
        is_resumed: Whether there is a run in it to go on with.
        ranks: The processes of the run; the first alone writes.
    """

    def __init__(self, path: Path, *, is_named: bool, is_resumed: bool, ranks: Ranks) -> None:
        self.path = path
        self.ranks = ranks
        self.begun = is_resumed
        """Whether there is a run in it to go on with."""
        self._is_named = is_named
        self._is_resumed = is_resumed
        self._lock: FileLock | None = None
        self._made: list[Path] = []

    def begin(self, config: Config, facts: RunFacts) -> None:
        """Make the folder of a new run, and write its settings and facts there.

        Raises:
            InputError: It cannot be made, or another process was faster.
        """
        with _reported_by_name(self.path):
            if self.ranks.is_first:
                self._make(config, facts)
        self.path, self.begun = self.ranks.same((self.path, True))

    def take_up(self, facts: RunFacts) -> RunFacts:
        """Go on with the run in the folder; return its facts, with those of this process added.

        Raises:
            InputError: It was begun with other facts that results depend on, or is in use.
        """
        with _reported_by_name(self.path):
            if self.ranks.is_first:
                self._acquire()
            there = read_facts(self.path)
            for name in differing_facts(there.to_json(), facts.to_json(), RESUMED_FACTS):
                raise InputError(
                    f"--resume must go on with what the run in {self.path} began with: {name} is "
                    f"{getattr(there, name)} there and {getattr(facts, name)} here"
                )
            taken_up = there.resumed_by(facts)
            self.ranks.same(None)  # all have read it
            if self.ranks.is_first:
                self.write_facts(taken_up)
        return taken_up

    def of_fold(self, fold: int) -> Path:
        """Return the folder of one fold."""
        return self.path / f"fold-{fold}"

    def write_facts(self, facts: RunFacts) -> None:
        """Write run.json."""
        with atomic_write(self.path / RUN) as path:
            path.write_text(json.dumps(facts.to_json(), indent=2) + "\n", encoding="utf-8")

    def remove_untrained(self) -> None:
        """Remove what this process made of the run's folder, if it finished no epoch there."""
        if not (self.begun and self.ranks.is_first) or self._is_resumed:
            return
        if any(self.path.glob("fold-*/*.safetensors")):
            return
        for folder in self.path.glob("fold-*"):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._remove_files(CONFIG, RUN, LOCK)
        self.begun = False

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock is not None:
            self._lock.release()

    def _make(self, config: Config, facts: RunFacts) -> None:
        try:
            self._claim()
            self._acquire()
            check_out(self.path)  # again: another process may have been faster
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
        self.begun = True

    def _claim(self) -> None:
        """Make the folder; one that nobody named is this process's alone."""
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
        """Remove these files from the run's folder, then the folders made for it if empty."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.path / name).unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _reported_by_name(out: Path) -> Iterator[None]:
    """Name the folder in an error of the system, but for a full disk, which has a message."""
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
    """Yield the folders that a run begun now may take when none is named, first choice first."""
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    yield Path("runs", name)
    for number in itertools.count(2):
        yield Path("runs", f"{name}-{number}")


def check_out(out: Path) -> None:
    """Check that the run's folder is new or empty, and that it can be made and written.

    Raises:
        InputError: It cannot; the message says why.
    """
    try:
        _check_out(out)
    except OSError as error:  # no permission, or a name longer than the system takes
        raise InputError(f"--out {out} cannot be used: {error.strerror}") from error


def _check_out(out: Path) -> None:
    if (out / CONFIG).is_file():
        raise InputError(
            f"--out {out} holds another run; name a new folder, or go on with it by --resume"
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
    """Return the settings as config.toml keeps them: usable from anywhere, for another run too."""
    data = config.paths.data and config.paths.data.absolute()
    cache = config.paths.cache and config.paths.cache.absolute()
    return replace(
        config, resume=False, paths=replace(config.paths, data=data, cache=cache, out=None)
    )


def read_facts(out: Path) -> RunFacts:
    """Return what run.json in a run's folder says.

    Raises:
        InputError: It is missing, damaged, or lacks a fact that results depend on.
    """
    path = out / RUN
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for name in (*RESUMED_FACTS, "resumed"):
        if not isinstance(document, dict) or name not in document:
            raise InputError(f"{path} must say {name}, which it does not")
    return RunFacts.from_json(document)


def read_measured(folder: Path) -> Measured | None:
    """Return what a finished fold cost; None if the file is missing or incomplete."""
    try:
        document = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
        measured = Measured.from_json(document)
        whole = math.isfinite(measured.seconds + sum(measured.stages.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return measured if whole else None


def write_measured(folder: Path, measured: Measured) -> None:
    """Write what a finished fold cost."""
    with atomic_write(folder / MEASURED) as path:
        path.write_text(json.dumps(measured.to_json(), indent=2))
