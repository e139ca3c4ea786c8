"""The manifest as a table in memory: columns, not a Python object a row."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.json

from ast_fast_kernels.corpus.formats.arrow import ARROW_TYPES
from ast_fast_kernels.corpus.formats.shard import ColumnType
from ast_fast_kernels.corpus.manifest import read_lines

OWN: dict[str, pa.DataType] = {
    "path": pa.string(),
    "key": pa.string(),
    "shard": pa.int32(),
    "row": pa.int32(),
    "frames": pa.int32(),
    "seconds": pa.float64(),
    "digest": pa.string(),
}
"""Columns that every manifest has, `key` only if the input named its items."""
LONGEST_LINE = 2**24
"""Bytes of a line, which must fit into a block that is read at once."""


def read_table(path: Path, types: Mapping[str, ColumnType]) -> pa.Table:
    """Return a manifest as a table.

    Args:
        path: The manifest.
        types: Of its further columns; one of type json has text.
    Raises:
        ValueError: A line does not fit the types; the message names the file.
        OSError: It cannot be read.
    """
    first = next(islice(read_lines(path), 1), None)
    own = {name: kind for name, kind in OWN.items() if name != "key" or "key" in (first or ())}
    kinds = own | {name: ARROW_TYPES[kind] for name, kind in types.items()}
    schema = pa.schema(list(kinds.items()))
    if first is None:
        return schema.empty_table()
    try:
        table = pyarrow.json.read_json(
            path,
            read_options=pyarrow.json.ReadOptions(block_size=LONGEST_LINE),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} must be as extract wrote it: {error}") from error
    return table.select(schema.names)
