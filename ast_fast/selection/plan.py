"""What is to be trained: candidates from a TOML file, and the trials of each."""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ast_fast.settings.command_line import Arguments, parse_config
from ast_fast.settings.config import Config
from ast_fast.settings.toml import LARGEST_CONFIG
from ast_fast.settings.values import shown
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name, read_document

KEYS = ("config", "settings", "candidates")

FORBIDDEN = frozenset(
    {
        *("--config", "--data", "--cache", "--out", "--resume", "--seed", "--seeds", "--folds"),
        *("--threads", "--merge", "--download", "--tensorboard", "--help"),
    }
)
"""Flags that no candidate may have: the selection sets what they do, or has no use for it."""


@dataclass(frozen=True)
class Candidate:
    """Settings that are tried."""

    name: str
    config: Config
    """With the data, cache and threads of the selection, and seed 0."""


@dataclass(frozen=True, order=True)
class Trial:
    """One training: a candidate, a seed and the fold that it is tested on."""

    candidate: str
    seed: int
    fold: int

    def by(self, candidate: str) -> Trial:
        """Return the trial of another candidate with the same seed and fold."""
        return replace(self, candidate=candidate)

    def __str__(self) -> str:
        return f"{one_name(self.candidate)}, seed {self.seed}, fold {self.fold}"


@dataclass(frozen=True)
class StoppingRule:
    """When a candidate is given up; it is written down before the first trial."""

    margin: float
    """By how much its calibrated loss must exceed the first candidate's, on each fold."""
    seed: int
    """The first seed, whose trials decide."""

    def __str__(self) -> str:
        return (
            f"a candidate whose calibrated loss with seed {self.seed} exceeds the first "
            f"candidate's by more than {self.margin:g} on every fold gets no further seed"
        )


@dataclass(frozen=True)
class Plan:
    """Candidates, and how each is tried."""

    candidates: tuple[Candidate, ...]
    """The others are compared with the first."""
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    """Folds to test on, each after training on the others but `left_out`."""
    left_out: int
    """Fold that no trial sees."""
    rule: StoppingRule | None

    def __post_init__(self) -> None:
        for name, values in (("--seeds", self.seeds), ("--test-folds", self.folds)):
            if not values or len(set(values)) < len(values):
                given = " ".join(map(str, values)) or "none"
                raise InputError(f"{name} must be at least one value, each once, got {given}")
        if self.left_out in self.folds:
            raise InputError(
                f"--test-folds must not hold the fold of --leave-out, got {self.left_out} in both"
            )
        if min(self.seeds) < 0:
            raise InputError(f"--seeds must be at least 0, got {min(self.seeds)}")
        if self.rule is not None and not self.rule.margin >= 0:
            raise InputError(f"--stop-margin must be at least 0, got {self.rule.margin}")

    @property
    def names(self) -> list[str]:
        """The candidates' names, in order."""
        return [candidate.name for candidate in self.candidates]

    @property
    def first(self) -> str:
        """Name of the candidate that others are compared with."""
        return self.names[0]

    @property
    def trials(self) -> list[Trial]:
        """All trials, split by split, so that what has run is comparable at any moment."""
        return [
            Trial(name, seed, fold)
            for seed in self.seeds
            for fold in self.folds
            for name in self.names
        ]

    def document(self) -> dict[str, Any]:
        """Return what must stay the same as long as one folder holds the trials."""
        return {
            "first candidate": self.first,
            "--test-folds": list(self.folds),
            "--leave-out": self.left_out,
            "--stop-margin": None if self.rule is None else self.rule.margin,
            "first seed": self.seeds[0],
        }


def read_candidates(
    path: Path, *, data: Path, cache: Path | None, threads: int
) -> tuple[Candidate, ...]:
    """Return the candidates that a TOML file names.

    `config` is a file of settings, relative to this file; `settings` are flags of `python -m
    ast_fast.cv` for all candidates; the table `candidates` gives each name its own flags, which
    replace those of `settings`.

    Args:
        path: The file.
        data: Data set of all.
        cache: Folder for decoded data; None is the user's.
        threads: CPU threads of a trial.
    Raises:
        InputError: The file cannot be read, or a candidate's settings cannot be used; one line for
            each.
    """
    document = _document(path)
    given = ["--data", str(data), "--threads", str(threads)]
    given += [] if cache is None else ["--cache", str(cache)]
    if "config" in document:
        given += ["--config", str(path.parent / _text(document, "config", path))]
    common = _flags(_text(document, "settings", path), f"{path}: settings")
    candidates, problems = [], []
    for name in document["candidates"]:
        where = f"{path}: candidates.{one_name(name)}"
        try:
            _check_name(name, where)
            own = _flags(_text(document["candidates"], name, path), where)
            rest = common.without(*(flag for flag, _ in own.groups))
            config = parse_config((*given, *rest.tokens, *own.tokens))
            if config.model.pretrained is not None:
                raise InputError("model.pretrained must be none: trials begin with fresh weights")
            candidates.append(Candidate(name, config))
        except InputError as error:
            problems += [
                text if text.startswith(str(path)) else f"{where}: {text}"
                for text in error.problems
            ]
    if problems:
        raise InputError(*problems)
    return tuple(candidates)


def _document(path: Path) -> dict[str, Any]:
    """Return the file's content, whose keys are known and which has candidates."""
    try:
        document = tomllib.loads(read_document(path, LARGEST_CONFIG))
    except OSError as error:
        raise InputError(f"CANDIDATES {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    if unknown := document.keys() - set(KEYS):
        raise InputError(
            f"{path}: keys must be among {', '.join(KEYS)}, got {one_name(min(unknown))}"
        )
    candidates = document.get("candidates")
    if not isinstance(candidates, dict) or not candidates:
        raise InputError(
            f"{path}: candidates must be a table of names with flags, got {shown(candidates)}"
        )
    return document


def _text(table: dict[str, Any], key: str, path: Path) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise InputError(f"{path}: {one_name(key)} must be a text, got {shown(value)}")
    return value


def _check_name(name: str, where: str) -> None:
    """Raise if a name cannot be that of a folder on every system."""
    if not name or not all(
        letter.isascii() and (letter.isalnum() or letter in "-_") for letter in name
    ):
        raise InputError(f"{where}: a name must have letters, digits, - and _ only")


def _flags(text: str, where: str) -> Arguments:
    try:
        arguments = Arguments(tuple(shlex.split(text)))
    except ValueError as error:
        raise InputError(f"{where}: not a command line: {error}") from error
    for flag, _ in arguments.groups:
        if flag in FORBIDDEN:
            raise InputError(f"{where}: flags must be settings of a training, got {flag}")
    return arguments
