"""Columns that an input carries along: their names, and the one type that all their values fit.

Text, whole numbers (of 64 bits), numbers, True and False keep their type; whole numbers among
numbers become numbers. Lists and objects are kept as JSON, and so is a column whose values are of
different kinds. A CSV file has only text: a column all of whose cells are written as numbers is one
of numbers. None, and an empty cell, fit every type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ast_fast_kernels.corpus.formats.shard import OWN_COLUMNS, ColumnType
from ast_fast_kernels.errors import InputError

OWN = OWN_COLUMNS | {"path_bytes", "start", "duration", "reason"}
"""Names that the output uses itself."""
RENAMED = "input_"

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?")


def carried(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns to carry along, those renamed whose names the output uses itself.

    Raises:
        InputError: Another column has the new name already.
    """
    for name in OWN & columns.keys():
        if RENAMED + name in columns:
            raise InputError(
                f"the input must not have a column {RENAMED}{name} beside {name}, which is renamed "
                "so: the output has its own"
            )
    return {(RENAMED + name if name in OWN else name): value for name, value in columns.items()}


class ColumnTypes:
    """Finds the type of each column while the input is read.

    Args:
        are_cells: Whether text may stand for numbers, as in a CSV file.
    """

    def __init__(self, are_cells: bool) -> None:
        self._are_cells = are_cells
        self._kinds: dict[str, ColumnType | None] = {}

    def add(self, columns: Mapping[str, Any]) -> None:
        """Take the columns of one item into account."""
        for name, value in columns.items():
            before = self._kinds.get(name)
            kind = before if value is None else self._kind_of(value)
            if before is not None and kind != before:
                kind = self._joined(before, kind)
            self._kinds[name] = kind

    def _kind_of(self, value: Any) -> ColumnType:
        is_cell = self._are_cells and isinstance(value, str)
        return kind_of_cell(value) if is_cell else _kind_of(value)

    def _joined(self, one: ColumnType, other: ColumnType | None) -> ColumnType:
        if {one, other} == {"int64", "float64"}:
            return "float64"
        return "string" if self._are_cells else "json"

    @property
    def types(self) -> dict[str, ColumnType]:
        """Type by column, sorted by name: `string`, `int64`, `float64`, `bool` or `json`."""
        return {name: self._kinds[name] or "string" for name in sorted(self._kinds)}


def typed(value: Any, kind: ColumnType) -> Any:
    """Return a column's value as its type has it."""
    if value is None or kind in ("string", "bool", "json"):
        return value
    return int(value) if kind == "int64" else float(value)


def _kind_of(value: Any) -> ColumnType:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "json"
    if isinstance(value, float):
        return "float64"
    return "string" if isinstance(value, str) else "json"


def kind_of_cell(cell: str) -> ColumnType:
    """Return the type of what text says: a whole number, a number, or text."""
    if _WHOLE.fullmatch(cell):
        return "int64"
    return "float64" if _NUMBER.fullmatch(cell) else "string"
