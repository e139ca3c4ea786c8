"""Names of a model's classes: from transformers' config.json, from a table, or by number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ast_fast.pretrained.documents import LARGEST, Document
from ast_fast.settings.values import checked_names
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name, read_document

TABLE = "class_labels_indices.csv"
"""AudioSet's own table of its classes, which the original project keeps with its recipes."""

COLUMNS = (("index", "display_name"), ("target", "category"))
"""Columns of a class's number and name: AudioSet's, ESC-50's."""


def labels_of(document: Document) -> list[str]:
    """Return the names in transformers' config.json, in the order of the logits.

    Raises:
        InputError: They are not one name for each number from 0 on.
    """
    names = document.values.get("id2label")
    if names is None:
        return [f"LABEL_{n}" for n in range(document.integer("num_labels", 2, most=2**24))]
    if not isinstance(names, Mapping) or not names:
        raise document.wrong("id2label", "must be a table of names")
    keys = [str(n) for n in range(len(names))]
    if set(map(str, names)) != set(keys):
        raise document.wrong("id2label", f"must have a name for each number from 0 to {keys[-1]}")
    return checked_names([names[key] for key in keys], f"{document.path}: labels")


def read_labels(path: Path) -> list[str]:
    """Return the names in a table: csv with AudioSet's or ESC-50's columns.

    Raises:
        InputError: The file cannot be read, lacks the columns, or leaves out a number.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_document(path, LARGEST), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} must be a table of labels: {one_name(error)}") from error
    columns = next((pair for pair in COLUMNS if rows and set(pair) <= rows[0].keys()), None)
    if columns is None:
        wanted = " or ".join(f"{number} and {name}" for number, name in COLUMNS)
        raise InputError(f"{path} must be a csv with the columns {wanted}")
    names: dict[str, Any] = {}
    for row in rows:
        number, name = (row[column] for column in columns)
        if names.setdefault(number, name) != name:
            raise InputError(f"{path}: class {one_name(number)} must have one name, got two")
    missing = next((n for n in range(len(names)) if str(n) not in names), None)
    if missing is not None:
        raise InputError(f"{path} must name every class from 0 on, but not {missing}")
    return checked_names([names[str(n)] for n in range(len(names))], f"{path}: labels")


def labels_beside(path: Path, num_classes: int) -> list[str]:
    """Return the names for an original checkpoint, which holds none.

    They come from AudioSet's table, if it lies beside the checkpoint; else classes are numbered.
    """
    table = path.parent / TABLE
    if table.is_file():
        return given_labels(table, num_classes)
    return [f"class {n}" for n in range(num_classes)]


def given_labels(labels: Path | Sequence[str], num_classes: int) -> list[str]:
    """Return the names in a table, or these one by one.

    Raises:
        InputError: There are more or fewer than the model has classes.
    """
    where: object = "labels"
    if isinstance(labels, Path):
        where, names = labels, read_labels(labels)
    else:
        names = checked_names(labels, f"{where}: labels")
    if len(names) != num_classes:
        raise InputError(f"{where} must name the model's {num_classes} classes, got {len(names)}")
    return names
