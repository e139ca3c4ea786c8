"""ESC-50's layout: where the table and the audio are, and the table with every row checked."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from ast_fast.settings.values import shown
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name, open_document

METADATA = Path("meta", "esc50.csv")
AUDIO = Path("audio")
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
"""Columns of the table; the last three are optional, except esc10 for ESC-10."""
REQUIRED_COLUMNS = COLUMNS[:4]

LISTED = 20
"""Items that an error names before it counts the rest."""

Subset = Literal["all", "esc10"]


@dataclass(frozen=True)
class Clip:
    """One row of esc50.csv."""

    filename: str
    fold: int
    target: int
    category: str


@dataclass(frozen=True)
class BadFile:
    """A listed file that cannot be used, and why."""

    filename: str
    fold: int
    category: str
    reason: str


def read_metadata(root: Path, *, subset: Subset = "all") -> list[Clip]:
    """Read `meta/esc50.csv` and check every row.

    Columns may have any order, and there may be others; src_file and take are not read.

    Args:
        root: Folder that holds audio/ and meta/.
        subset: `"esc10"` keeps the rows whose column esc10 is True.
    Returns:
        The clips, in the csv's order.
    Raises:
        InputError: The folder or the csv is missing or malformed; the message says where and why.
    """
    table = root / METADATA
    _check_layout(root, table)
    try:
        with (
            open_document(table) as opened,
            io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as file,
        ):
            return _read_rows(table, csv.reader(file, strict=True), subset)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{table} must be text in UTF-8, got byte 0x{error.object[error.start]:02x}"
        ) from None
    except OSError as error:
        raise InputError(f"{table} cannot be read: {error.strerror}") from None


def _check_layout(root: Path, table: Path) -> None:
    try:
        if not root.is_dir():
            state = "is not a folder" if root.exists() else "does not exist"
            raise InputError(f"--data {root} {state}; --download fetches ESC-50")
        if not table.is_file():
            inside = sorted(path.parent.parent for path in root.glob(f"*/{METADATA.as_posix()}"))
            hint = f"; did you mean --data {inside[0]}?" if inside else ""
            raise InputError(
                f"--data {root} must hold {METADATA.as_posix()}, which is missing{hint}"
            )
        if not (root / AUDIO).is_dir():
            raise InputError(f"--data {root} must hold the folder {AUDIO}/, which is missing")
    except OSError as error:  # no permission, or a name longer than the system takes
        raise InputError(f"--data {root} cannot be read: {error.strerror}") from error


def _read_rows(table: Path, reader: Iterator[list[str]], subset: Subset) -> list[Clip]:
    required = (*REQUIRED_COLUMNS, "esc10") if subset == "esc10" else REQUIRED_COLUMNS
    rows = _numbered_rows(table, reader)
    header_line, header = next(rows, (1, []))
    if not header:
        raise InputError(f"{table} must begin with the columns {', '.join(required)}, but is empty")
    for column in required:
        if header.count(column) != 1:
            found = list_some([shown(name) for name in header], ", ")
            raise InputError(
                f"{table}, line {header_line}: column {column} must appear once, "
                f"got {header.count(column)} among {found}"
            )
    clips: list[Clip] = []
    checker = _RowChecker(table)
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{table}, line {line}: must have {len(header)} values, as many as the header, "
                f"got {len(row)}"
            )
        values = dict(zip(header, row, strict=True))
        clip = checker.check(line, values)
        if subset == "all" or checker.check_esc10(line, values["esc10"]):
            clips.append(clip)
    if not clips:
        what = "no row with esc10 True" if checker.lines else "no row below its header"
        raise InputError(f"{table} must list at least one clip, but has {what}")
    return clips


def check_rows(
    table: Path, rows: Sequence[dict[str, str]], subset: Subset
) -> list[tuple[int, Clip]]:
    """Check the rows of a table with a line for each, and return the clips with their indices.

    Args:
        table: Where the rows come from, for messages.
        rows: The columns filename, fold, target and category of each; a filename may be a path.
        subset: `"esc10"` keeps the rows whose column esc10 is True.
    Raises:
        InputError: A row is malformed, or none is left.
    """
    checker = _RowChecker(table)
    kept = []
    for index, values in enumerate(rows):
        parts = PurePosixPath(values["filename"]).parts
        name = "/".join(part for part in parts if part not in ("/", ".."))
        clip = checker.check(index + 1, values | {"filename": name})
        if subset == "all" or checker.check_esc10(index + 1, values["esc10"]):
            kept.append((index, clip))
    if not kept:
        raise InputError(f"{table} must list at least one clip, but has none")
    return kept


def _numbered_rows(table: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the 1-based line on which it ends."""
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            line = reader.line_num  # type: ignore[attr-defined]
            raise InputError(f"{table}, line {line}: is not valid csv ({error})") from None
        if row:
            yield reader.line_num, row  # type: ignore[attr-defined]


class _RowChecker:
    """Checks each row by itself, and against the rows before it."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.lines: dict[str, int] = {}
        self.categories: dict[int, tuple[str, int]] = {}
        self.targets: dict[str, tuple[int, int]] = {}

    def check(self, line: int, values: dict[str, str]) -> Clip:
        filename = self._filename(line, values["filename"])
        fold = self._number(line, "fold", values["fold"], lowest=1)
        target = self._number(line, "target", values["target"], lowest=0)
        category = values["category"]
        if not category.strip() or not category.isprintable():
            self._fail(line, "category", "must be a name", category)
        known, first = self.categories.setdefault(target, (category, line))
        if known != category:
            rule = f"must be {shown(known)} as on line {first}, which also has target {target}"
            self._fail(line, "category", rule, category)
        known_target, first = self.targets.setdefault(category, (target, line))
        if known_target != target:
            rule = f"must be {known_target} as on line {first}, which is also {shown(category)}"
            self._fail(line, "target", rule, values["target"])
        return Clip(filename, fold, target, category)

    def check_esc10(self, line: int, value: str) -> bool:
        if value.lower() not in ("true", "false"):
            self._fail(line, "esc10", "must be True or False", value)
        return value.lower() == "true"

    def _filename(self, line: int, value: str) -> str:
        if not value or "\0" in value:
            self._fail(line, "filename", "must name a file", value)
        for named in (PurePosixPath(value), PureWindowsPath(value)):
            if named.is_absolute() or named.drive or ".." in named.parts:
                self._fail(line, "filename", f"must stay inside {AUDIO}/", value)
        path = str(PurePosixPath(value))  # ./a.wav is a.wav
        if path in self.lines:
            rule = f"must be listed once, but is on line {self.lines[path]} too"
            self._fail(line, "filename", rule, value)
        self.lines[path] = line
        return value

    def _number(self, line: int, column: str, value: str, *, lowest: int) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < lowest:
            self._fail(line, column, f"must be a whole number of at least {lowest}", value)
        return int(value)

    def _fail(self, line: int, column: str, rule: str, value: str) -> None:
        raise InputError(f"{self.table}, line {line}, column {column}: {rule}, got {shown(value)}")


def class_names_of(clips: Sequence[Clip]) -> tuple[str, ...]:
    """Return the categories of the clips, ordered by their target."""
    names = {clip.target: clip.category for clip in clips}
    return tuple(names[target] for target in sorted(names))


def found_as(path: Path, root: Path) -> str | None:
    """Return another spelling of a file that is not there: in other case, or other Unicode form.

    A name such as "é.wav" has one form on macOS (NFD) and another elsewhere (NFC).

    Args:
        path: The file that is absent.
        root: The folder below which its name may be spelt otherwise.
    Returns:
        The name that is there, relative to `root`; None if there is none.
    """
    there = root
    for part in path.relative_to(root).parts:
        wanted = _folded(part)
        try:
            names = sorted(os.listdir(there))
        except OSError:
            return None
        same = [name for name in names if name == part] or [
            name for name in names if _folded(name) == wanted
        ]
        if not same:
            return None
        there /= same[0]
    return str(there.relative_to(root))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def bad_files_of(clips: Sequence[Clip], reasons: dict[str, str]) -> tuple[BadFile, ...]:
    """Return the clips whose file cannot be used, given the reason for each file name."""
    return tuple(
        BadFile(clip.filename, clip.fold, clip.category, reasons[clip.filename])
        for clip in clips
        if clip.filename in reasons
    )


def check_bad_files(
    root: Path, clips: Sequence[Clip], bad_files: Sequence[BadFile], *, skip: bool
) -> None:
    """Raise if there are bad files and `skip` is off, or if they leave a class without a clip."""
    if bad_files and not skip:
        listed = list_some([f"{bad.filename} {bad.reason}" for bad in bad_files])
        raise InputError(
            f"{len(bad_files)} of {len(clips)} files in {root / AUDIO} cannot be used: {listed}; "
            "--skip-bad-files leaves them out"
        )
    bad = {file.filename for file in bad_files}
    left = {clip.category for clip in clips if clip.filename not in bad}
    lost = [shown(name) for name in class_names_of(clips) if name not in left]
    if lost:
        listed = list_some([f"{file.filename} {file.reason}" for file in bad_files])
        names = list_some(lost, ", ")
        raise InputError(f"{root / METADATA}: no usable file is left for class {names}: {listed}")


def list_some(items: Sequence[str], separator: str = "; ") -> str:
    """Join the first items, the long ones without their middle; count the rest."""
    listed = separator.join(map(one_name, items[:LISTED]))
    rest = len(items) - LISTED
    return f"{listed}{separator}and {rest} more" if rest > 0 else listed
