"""A run's folder: its choice, creation, resumption, lock and files."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import UnionType

from filelock import FileLock, Timeout

from ast_fast.machine.distributed import Ranks
from ast_fast.report.build import Measured
from ast_fast.run.endings import exhausted_resource
from ast_fast.run.facts import RunFacts
from ast_fast.settings.agree import PRETRAINED, RESUMED_FACTS, differing_facts
from ast_fast.settings.config import Config
from ast_fast.settings.toml import CONFIG, RUN, config_to_toml, recorded_run, settings_digest
from ast_fast.training.manifest import (
    check_files,
    describe,
    read_manifest,
    remedy,
    write_manifest,
)
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import PARTIAL, atomic_write, filled_folder, remove_leftovers
from ast_fast_kernels.files.sealed import sealed
from ast_fast_kernels.files.text import read_document

MEASURED = "measured.json"
LOCK = ".lock"

OWN_FILES = re.compile(rf"\.lock|run\.json|{PARTIAL.pattern}", PARTIAL.flags)
"""What a process left that was killed before it wrote config.toml."""
OF_A_MERGE = re.compile(r"fold-\d+|report\.(json|html)")
"""What one merging runs left besides, if it was killed while it moved them in from a folder that
is still there."""


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

    def begin(self, config: Config, facts: RunFacts) -> RunFacts:
        """Create the folder of a new run, and write its settings and facts there.

        Returns:
            The facts, with the digest of the settings.
        Raises:
            InputError: It cannot be created, or another process took it first.
        """
        settings = config_to_toml(recorded(config))
        facts = replace(facts, settings_sha256=settings_digest(settings))
        with _reported_by_name(self.path):
            if self.ranks.is_first:
                self._make(settings, facts)
        self.path, self.holds_run = self.ranks.same((self.path, True))
        return facts

    @contextlib.contextmanager
    def filled(self) -> Iterator[Path]:
        """Yield an empty folder whose contents become the new run when the block ends well.

        Raises:
            InputError: The run's folder cannot be created, or another process took it first.
        """
        try:
            self._claim()
            self._acquire()
            self._clear()
            with filled_folder(self.path) as whole:
                yield whole
        except BaseException:
            self._remove_files(*((LOCK,) if self._lock is not None else ()))
            raise
        finally:
            self.close()

    def resume(self, facts: RunFacts) -> RunFacts:
        """Resume the run in the folder; return its facts, with those of this process added.

        Raises:
            InputError: A fact that results depend on differs, or another process uses the folder.
        """
        with _reported_by_name(self.path):
            if self.ranks.is_first:
                self._acquire()
            there = read_facts(self.path)
            names = (*RESUMED_FACTS, PRETRAINED)
            for name in differing_facts(there.to_json(), facts.to_json(), names):
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
            path.write_text(run_json(facts), encoding="utf-8")

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

    def _make(self, settings: str, facts: RunFacts) -> None:
        try:
            self._claim()
            self._acquire()
            self._clear()
            self.write_facts(facts)
            with atomic_write(self.path / CONFIG) as path:
                path.write_text(settings, encoding="utf-8")
        except BaseException:
            unfinished = self._lock is not None and not (self.path / CONFIG).exists()
            self._remove_files(*((RUN, LOCK) if unfinished else ()))
            raise
        self.holds_run = True

    def _clear(self) -> None:
        """Remove what a killed process left, after checking that it is nothing else."""
        check_out(self.path)  # again: another process may have been first
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

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
        if (self.path / CONFIG).exists():  # a killed merge leaves what tells its other files
            remove_leftovers(self.path)

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
    names = os.listdir(out) if out.is_dir() else []
    half_merged = any(PARTIAL.fullmatch(name) and (out / name).is_dir() for name in names)
    for name in names:
        if OWN_FILES.fullmatch(name) or (half_merged and OF_A_MERGE.fullmatch(name)):
            continue
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
    pretrained = config.model.pretrained and config.model.pretrained.absolute()
    return replace(
        config,
        resume=False,
        paths=replace(config.paths, data=data, cache=cache, out=None),
        model=replace(config.model, pretrained=pretrained),
    )


def run_json(facts: RunFacts) -> str:
    """Return the text of run.json."""
    return json.dumps(sealed(facts.to_json()), indent=2) + "\n"


FACT_TYPES: tuple[tuple[str, type | UnionType, str], ...] = (
    *((name, str, "text") for name in ("data_key", "device", "amp", "command", "started")),
    *((name, int, "an integer") for name in ("threads", "processes")),
    *((name, dict, "a table") for name in ("kernels", "versions", "machine")),
    ("resumed", list, "a list"),
    ("commit", dict | None, "a table or null"),
    (PRETRAINED, str | None, "text or null"),
    ("cuda_graph", bool | None, "true, false or null"),
    ("merged", list | None, "a list or null"),
    ("ended", str | None, "text or null"),
    ("peak_memory_gib", float | int | None, "a number or null"),
)
"""Facts in run.json, their types, and how a message names these."""


def read_facts(out: Path) -> RunFacts:
    """Return the facts in the run.json of a run's folder.

    Raises:
        InputError: It is missing, damaged, or lacks a fact that results depend on.
    """
    path = out / RUN
    document = recorded_run(out)
    for name in (*RESUMED_FACTS, "resumed"):
        if name not in document:
            raise InputError(f"{path} must have {name}, which is missing")
    for name, kind, words in FACT_TYPES:
        if name in document and not isinstance(document[name], kind):
            raise InputError(f"{path}: {name} must be {words}, got {document[name]!r}")
    return RunFacts.from_json(document)


def read_measured(folder: Path) -> Measured | None:
    """Return the cost of a finished fold; None if it is still to be measured.

    So it is if the file is missing, or not in the fold's manifest yet. Version 0.2.0 wrote no
    manifest: there, an incomplete file counts as missing.

    Raises:
        InputError: The file is not the one that the manifest lists.
    """
    path = folder / MEASURED
    files = read_manifest(folder)
    if not path.exists() or (files is not None and MEASURED not in files):
        return None
    if files is not None:
        check_files(folder, files, (MEASURED,))
    try:
        measured = Measured.from_json(json.loads(read_document(path)))
        whole = math.isfinite(measured.seconds + sum(measured.stages.values()))
        measured.kernels.wrong()  # compares numbers
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
        OverflowError,  # of a number with hundreds of digits
    ):
        whole = False
    if not whole and files is not None:
        raise InputError(f"{path} must hold a fold's times and kernels; {remedy(folder)}")
    return measured if whole else None


def write_measured(folder: Path, measured: Measured) -> None:
    """Write the cost of a finished fold, and list it in the manifest if there is one."""
    files = read_manifest(folder)
    if files is not None and MEASURED in files:
        del files[MEASURED]
        write_manifest(folder, files)  # a kill after this leaves a fold to be measured
    with atomic_write(folder / MEASURED) as path:
        path.write_text(json.dumps(measured.to_json(), indent=2) + "\n", encoding="utf-8")
    if files is not None:
        write_manifest(folder, files | describe(folder, (MEASURED,)))
