"""Text that others wrote: shown on one line, kept in a csv cell, read within bounds.

Names of files, folders, classes and archive members, cells of tables, and what servers answer can
hold anything. Printed as they are, they could move a terminal's cursor, forge a line, hide their
end or run as a spreadsheet's formula.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from io import BufferedReader
from pathlib import Path

LONGEST_LINE = 4000
"""Characters of a printed line; two of Linux's longest paths do not fit, two usual ones do."""
LONGEST_NAME = 200
"""Characters of a name, or of a value, within a line."""
LARGEST_DOCUMENT = 256 * 2**20
"""Bytes of a table or a JSON document: a report of 1,000 classes and five folds has 70 MB."""

_ELLIPSIS = "…"
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BLANK_LETTERS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
"""Letters and marks that Unicode counts as printable and that print nothing."""


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    r"""Return text as one line that is safe to print; a long one loses its middle.

    What moves the cursor, changes the direction of writing or prints nothing is written as in
    Python, `\n`, `\x1b`, `\u202e`. A byte of a file's name that is not UTF-8 becomes `\xff`.
    Backslashes stay as they are.

    Args:
        text: Any text, lone surrogates included.
        longest: Most characters of the result.
    """
    if len(text) <= longest and text.isascii() and text.isprintable():
        return text
    if len(text) > 2 * longest:  # bounds the work
        text = text[:longest] + text[-longest:]
    shown = [_visible(character) for character in text]
    if sum(map(len, shown)) <= longest:
        return "".join(shown)
    half = (longest - 1) // 2
    return _start(shown, half) + _ELLIPSIS + _start(shown[::-1], half, backwards=True)


def one_name(text: object) -> str:
    """Return a name, or another short value, as `one_line` does, with at most LONGEST_NAME."""
    return one_line(str(text), LONGEST_NAME)


def is_visible(character: str) -> bool:
    """Return whether a character prints something, or is a space of some width."""
    if character in _BLANK_LETTERS:
        return False
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _visible(character: str) -> str:
    if is_visible(character):
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # as os.fsdecode gives a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _NAMED.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _start(pieces: list[str], longest: int, *, backwards: bool = False) -> str:
    """Join the first pieces that fit; if they came backwards, in their own order."""
    kept: list[str] = []
    for piece in pieces:
        longest -= len(piece)
        if longest < 0:
            break
        kept.append(piece)
    return "".join(kept[::-1] if backwards else kept)


_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
"""The wide ones too: some spreadsheets take them."""
_QUOTE = "'"


def to_cell(text: str) -> str:
    """Return text for a csv cell that no spreadsheet takes for a formula.

    Text that begins like a formula, or with an apostrophe, gets an apostrophe in front.
    `from_cell` returns the text.
    """
    risky = text.startswith((*_FORMULA_STARTS, _QUOTE))
    risky = risky or text.lstrip().startswith(_FORMULA_STARTS)
    return _QUOTE + text if risky else text


def from_cell(cell: str) -> str:
    """Return the text that `to_cell` got."""
    return cell.removeprefix(_QUOTE)


def open_document(path: Path, largest: int = LARGEST_DOCUMENT) -> BufferedReader:
    """Open a regular file for reading bytes.

    Args:
        path: The file. A pipe or a device is never waited for.
        largest: Most bytes of the file.
    Raises:
        OSError: It cannot be opened, is no regular file, or is larger; `strerror` says which.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        if status.st_size > largest:
            raise _too_large(path, largest)
    except BaseException:
        file.close()
        raise
    return file


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for what a pipe's other end does."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_document(path: Path, largest: int = LARGEST_DOCUMENT) -> str:
    """Return the text of a regular file in UTF-8.

    Args:
        path: The file.
        largest: Most bytes of the file.
    Raises:
        OSError: As `open_document`.
        UnicodeDecodeError: It is not in UTF-8.
    """
    with open_document(path, largest) as file:
        data = file.read(largest + 1)  # a file of /proc has no size
    if len(data) > largest:
        raise _too_large(path, largest)
    return data.decode()


def _too_large(path: Path, largest: int) -> OSError:
    return OSError(errno.EFBIG, f"Larger than {largest / 2**20:g} MiB", str(path))
