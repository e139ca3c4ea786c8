"""JSON documents with a checksum of their own content, and the digests of files.

A checksum is of the values, not of the text: a file that was formatted anew is still intact.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import open_document, read_document

CHECKSUM = "checksum"
"""Key of the checksum in a sealed document."""


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON document with its checksum added."""
    plain = {key: value for key, value in document.items() if key != CHECKSUM}
    return plain | {CHECKSUM: digest_of(plain)}


def is_intact(document: Mapping[str, Any]) -> bool:
    """Return whether a document read back has the checksum that `sealed` gave it."""
    return bool(document.get(CHECKSUM) == sealed(document)[CHECKSUM])


def read_sealed(path: Path, unreadable: str, remedy: str) -> dict[str, Any] | None:
    """Return a sealed document that is intact; None if there is no file.

    Args:
        path: The file.
        unreadable: What the error says of one that cannot be read.
        remedy: What to do about a file that cannot be used.
    Raises:
        InputError: It cannot be read, or its checksum does not match.
    """
    try:
        document = json.loads(read_document(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} {unreadable} ({error}); {remedy}") from error
    if not isinstance(document, dict) or not is_intact(document):
        raise InputError(f"{path} is damaged or was changed: its checksum does not match; {remedy}")
    return document


def digest_of(document: Any) -> str:
    """Return the SHA-256 of a document's values; what JSON lacks counts as its text."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a regular file's bytes.

    Raises:
        OSError: As `open_document`, which waits for no pipe and reads no device.
    """
    with open_document(path, sys.maxsize) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
