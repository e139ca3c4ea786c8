"""Read benchmark records and write what is made from them; one clear line for what is no record."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ast_fast_kernels.console import fail
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name, read_document

Record = dict[str, Any]


def read_object(path: Path) -> Record:
    """Return a JSON file's object.

    Raises:
        InputError: It cannot be read, or is none.
    """
    try:
        document = json.loads(read_document(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} must be a record in JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} must hold a JSON object, got a {type(document).__name__}")
    return document


def read_record(path: Path) -> Record:
    """Return a record of `pytest bench`.

    Raises:
        InputError: The file cannot be read or is of another kind.
    """
    record = read_object(path)
    cases = record.get("benchmarks")
    if not isinstance(cases, list):
        raise InputError(
            f"{path} must be a record of pytest bench, with a list of benchmarks; "
            f"it has {one_name(', '.join(record) or 'nothing')}"
        )
    for place, case in enumerate(cases):
        if not (isinstance(case, dict) and isinstance(case.get("extra_info"), dict)):
            raise InputError(f"{path}: benchmarks[{place}] must be a case with extra_info")
    return record


def group_of(case: Mapping[str, Any]) -> str:
    """Return the name of a case's group; empty if it has none."""
    return str(case.get("group") or "")


def number(case: Mapping[str, Any], part: str, name: str) -> float:
    """Return a positive number of a case.

    Args:
        case: One of a record's benchmarks.
        part: `"params"` or `"extra_info"`.
        name: The number's name there.
    Raises:
        InputError: It is missing or no such number.
    """
    value = (case.get(part) or {}).get(name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        title = one_name(case.get("name") or group_of(case))
        raise InputError(
            f"{part}[{name!r}] of case {title} must be a positive number, got {one_name(value)}"
        )
    return value


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Write a file by `save`.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        save(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def run(program: Callable[[], None]) -> None:
    """Run a program of bench/; end with a line for each problem and exit code 2 on bad input."""
    try:
        program()
    except InputError as error:
        sys.exit(fail(*error.problems))
