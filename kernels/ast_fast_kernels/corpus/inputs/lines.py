"""Lines of a manifest, plain or compressed by gzip, each with its number."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name, open_document

LONGEST = 2**24
"""Bytes of a line: more is no manifest."""
LARGEST = 2**40
"""Bytes of a manifest; it is never held in memory."""
_BOM = b"\xef\xbb\xbf"


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, without their ends, with their numbers from 1 on.

    Raises:
        InputError: The file cannot be read, or a line is too long.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open_document(path, LARGEST))
            content: BinaryIO = file
            if path.name.endswith(".gz"):
                content = cast(BinaryIO, stack.enter_context(gzip.open(file)))
            number = 0
            while line := content.readline(LONGEST):
                number += 1
                if len(line) == LONGEST:
                    raise InputError(f"{path} line {number} is longer than {LONGEST} bytes")
                line = line.removeprefix(_BOM) if number == 1 else line
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines as `raw_lines` does, as text.

    Raises:
        InputError: A line is not in UTF-8, or `raw_lines` raises it.
    """
    for number, line in raw_lines(path):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} line {number} is not in UTF-8") from error


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of a manifest, one a line, with their numbers.

    Raises:
        InputError: A line is no JSON object, or `text_lines` raises it.
    """
    for number, line in text_lines(path):
        try:
            value = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InputError(
                f"{path} line {number} must be a JSON object, got {one_name(line)}; "
                "a manifest has one object a line"
            )
        yield number, value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
