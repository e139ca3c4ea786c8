"""JSON documents that others wrote, read within bounds and checked value by value."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ast_fast.settings.values import shown
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name, read_document

LARGEST = 64 * 2**20
"""Bytes of a document; one of a million labels has less."""


class Document:
    """A JSON object in a file; every error names the file, the key, the rule and the value."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InputError: It is missing, or holds no JSON object.
        """
        self.path = path
        try:
            values = json.loads(read_document(path, LARGEST))
        except FileNotFoundError as error:
            raise InputError(f"{path.parent} must hold {path.name}, which is missing") from error
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path} must be JSON, but cannot be read: {one_name(error)}"
            ) from error
        if not isinstance(values, dict):
            raise InputError(f"{path} must hold a JSON object, got {shown(values)}")
        self.values: dict[str, Any] = values

    def integer(self, key: str, default: int, *, least: int = 1, most: int = 2**31 - 1) -> int:
        """Return a whole number from `least` to `most`."""
        value = self.values.get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"must be a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float, *, above: float = -math.inf) -> float:
        """Return a finite number above `above`."""
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= above:
            rule = "finite" if above == -math.inf else f"finite and above {above:g}"
            raise self.wrong(key, f"must be a number, {rule}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def wrong(self, key: str, rule: str) -> InputError:
        """Return the error of a value that breaks a rule."""
        return InputError(f"{self.path}: {key} {rule}, got {shown(self.values.get(key))}")
