"""Tables and lists that name audio: JSONL, CSV, TSV, plain lists, Kaldi's wav.scp."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ast_fast_kernels.audio.source import MOST_SECONDS
from ast_fast_kernels.corpus.inputs.columns import carried
from ast_fast_kernels.corpus.inputs.lines import objects, raw_lines, text_lines
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name

PATH_COLUMNS = ("path", "audio_filepath", "filename", "file_name", "file", "audio", "wav")
"""Columns that name the audio, the first that is there, unless --path-column says which."""
KEY_COLUMNS = ("key", "id")
START_COLUMNS = ("start", "offset")
DURATION_COLUMNS = ("duration",)
END_COLUMNS = ("end",)
"""Taken if there is no duration; carried along otherwise."""

_ARCHIVE = re.compile(r"\.ark:\d+$")


def from_jsonl(path: Path, path_column: str | None) -> Iterator[Item]:
    """Yield the items of a JSONL manifest; see `_item` for what its columns mean."""
    for number, row in objects(path):
        yield _item(f"{path} line {number}", row, path_column)


def from_table(path: Path, path_column: str | None) -> Iterator[Item]:
    """Yield the items of a CSV or, by its suffix, TSV table, whose first line names the columns.

    Raises:
        InputError: A row has other cells than the first line, or `_item` raises it.
    """
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    numbers = _Counted(path)
    rows = csv.reader(numbers, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for cells in rows:
            where = f"{path} line {numbers.count}"
            if names is None:
                names = cells
                if len(set(names)) < len(names):
                    raise InputError(f"{where} must name each column once, got {names}")
                continue
            if len(cells) != len(names):
                raise InputError(f"{where} must have {len(names)} cells, got {len(cells)}")
            row = {name: cell or None for name, cell in zip(names, cells, strict=True)}
            yield _item(where, row, path_column)
    except csv.Error as error:
        raise InputError(f"{path} line {numbers.count} cannot be read: {error}") from error


class _Counted:
    """Lines for csv's reader, which counts only the lines that it is given, blank ones aside."""

    def __init__(self, path: Path) -> None:
        self._lines = text_lines(path)
        self.count = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        self.count, line = next(self._lines)
        return line + "\n"


def from_list(path: Path) -> Iterator[Item]:
    """Yield the items of a list of files, one a line."""
    for _, line in raw_lines(path):
        yield Item(os.fsdecode(line))


def from_scp(path: Path) -> Iterator[Item]:
    """Yield the items of Kaldi's wav.scp: a key, then a file.

    Raises:
        InputError: A line names a command or an archive instead of a file, or has one word.
    """
    for number, line in text_lines(path):
        key, *names = line.strip().split(maxsplit=1)
        where = f"{path} line {number}"
        if not names:
            raise InputError(f"{where} must be a key and a file, got {one_name(line)}")
        (name,) = names
        if name.endswith("|") or name.startswith("|"):
            raise InputError(
                f"{where} must name a file, got a command, {one_name(name)}; commands are not run: "
                "write the audio to files first"
            )
        if _ARCHIVE.search(name):
            raise InputError(f"{where} must name a file, got an archive, {one_name(name)}")
        yield Item(name, key=key)


def _item(where: str, row: Mapping[str, Any], path_column: str | None) -> Item:
    """Return the item of a manifest's row.

    The columns that name the audio, its key, its start and its duration are taken out; the others
    are carried along.

    Raises:
        InputError: No column names the audio, or a value is not what its column needs.
    """
    left = dict(row)
    names = PATH_COLUMNS if path_column is None else (path_column,)
    name = next((name for name in names if name in left), None)
    if name is None:
        raise InputError(
            f"{where} must name its audio in {' or '.join(names)}, "
            f"got {', '.join(map(one_name, row)) or 'no column'}; --path-column says which it is"
        )
    path = left.pop(name)
    if not isinstance(path, str) or not path or "\0" in path:
        raise InputError(f"{where}: {name} must be a file's name, got {one_name(repr(path))}")
    key = _take(left, KEY_COLUMNS)
    if isinstance(key, (dict, list, bool, float)):
        raise InputError(f"{where}: key must be text, got {one_name(repr(key))}")
    start = seconds_of(where, "start", _take(left, START_COLUMNS))
    duration = seconds_of(where, "duration", _take(left, DURATION_COLUMNS))
    if duration is None:
        end = seconds_of(where, "end", _take(left, END_COLUMNS))
        duration = None if end is None else end - (start or 0.0)
    if duration is not None and duration <= 0.0:
        raise InputError(f"{where}: duration must be above 0 s, got {duration:g}")
    return Item(
        path,
        start=start or 0.0,
        duration=duration,
        key=None if key is None else str(key),
        columns=carried(left),
    )


def _take(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Take the first of these columns out of a row; None if there is none."""
    for name in names:
        if name in row:
            return row.pop(name)
    return None


def seconds_of(where: str, name: str, value: object) -> float | None:
    """Return a number of seconds; None stays None.

    Raises:
        InputError: It is no number from 0 to MOST_SECONDS.
    """
    if value is None:
        return None
    try:
        seconds = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or not 0 <= seconds <= MOST_SECONDS:
        raise InputError(
            f"{where}: {name} must be seconds from 0 to {MOST_SECONDS:.0e}, "
            f"got {one_name(repr(value))}"
        )
    return seconds
