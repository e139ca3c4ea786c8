"""The embeddings of classified files, as a .npy with a row for each and their names beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write, check_out_file

FLAG = "--embeddings"


def check_embeddings_out(path: Path) -> None:
    """Raise if the files cannot be written, before the work that makes them.

    A .jsonl without its .npy is somebody else's file, such as a list of inputs, and is not
    replaced.

    Raises:
        InputError: A file's suffix or folder is wrong, or there is such a .jsonl.
    """
    check_out_file(path, FLAG, ".npy")
    names = path.with_suffix(".jsonl")
    check_out_file(names, FLAG, ".jsonl")
    if names.exists() and not path.exists():
        raise InputError(
            f"{FLAG} must not replace a .jsonl that has no .npy beside it, got {path}, whose names "
            f"would go to {names}"
        )


def write_embeddings(
    path: Path, names: Sequence[Mapping[str, Any]], rows: Sequence[NDArray[np.float32]], width: int
) -> None:
    """Write each row, and to a .jsonl beside it what it is of; each file is whole or absent.

    Args:
        path: The .npy; it appears last, and an earlier one is removed first.
        names: What each row is of, a line of JSON each.
        rows: Shape (width,) each.
        width: Of a row, for when there is none.
    Raises:
        InputError: A file cannot be written.
    """
    text = "".join(f"{json.dumps(name)}\n" for name in names)
    table = np.stack(rows) if rows else np.empty((0, width), np.float32)
    try:
        path.unlink(missing_ok=True)
        with atomic_write(path.with_suffix(".jsonl")) as temporary:
            temporary.write_text(text, encoding="utf-8")
        with atomic_write(path) as temporary:
            np.save(temporary, table)
    except OSError as error:
        raise InputError(f"{FLAG} {path} cannot be written: {error.strerror}") from error
