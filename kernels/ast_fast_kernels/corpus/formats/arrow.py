"""Shards as Arrow IPC files, which pyarrow and Hugging Face's `datasets` read as they are.

A row's features are a list of frames, each a list of `width` values. The field's metadata names
the type `Array2D` of `datasets`, which then gives arrays (num_frames, width); pyarrow alone sees
lists. Fixed-size lists would be the tighter type, but `datasets` takes them apart frame by frame,
which made reading a row six times as slow. A vector is a fixed-size list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ast_fast_kernels.corpus.formats.shard import ColumnType, Shard, Stored

BATCH_VALUES = 2**25
"""Most values of a batch of several rows: 64 MiB of float16. Writing copies a batch, and readers
often load one whole."""
MOST_VALUES = 2**31 - 1
"""Most values of a row: an offset of a list is an int32."""
FACTS = b"ast_fast_kernels"
"""Key, in a schema's metadata, of what a reader should know of the features, as JSON."""
FEATURES = "features"

_TYPES: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "json": pa.string(),
}


class ArrowFormat:
    """Arrow IPC: one file a shard, mapped when it is read."""

    mapped = True

    def file_names(self, index: int) -> tuple[str, ...]:
        """Return the name of the one file."""
        return (f"shard-{index:06d}.arrow",)

    def write(self, paths: Sequence[Path], shard: Shard) -> None:
        """Create the file, in record batches of bounded size."""
        schema = schema_of(shard, _lists_field(shard))
        with pa.OSFile(str(paths[0]), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in batches_of(shard, schema, _lists):
                writer.write_batch(batch)

    def open(self, paths: Sequence[Path]) -> ArrowRows:
        """Map the file."""
        return ArrowRows(paths[0])


class ArrowRows:
    """Features of an Arrow file, as views of its mapped pages."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as file:  # an OSError names the file
            try:
                self._table = pa.ipc.open_file(file).read_all()
                facts = facts_of(self._table.schema)
                chunks = self._table[FEATURES].chunks
                self._chunks = [_Chunk(chunk, facts) for chunk in chunks]
            except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
                raise ValueError(f"{path} must be an Arrow file with features") from error
        ends = np.cumsum([len(chunk) for chunk in self._chunks], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), ends])

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, row: int) -> Stored:
        which = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._chunks[which][row - int(self._starts[which])]

    @cached_property
    def num_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each row; 1 for a vector."""
        return np.asarray(self._table["num_frames"].to_numpy(), np.int32)


class _Chunk:
    """The features of a record batch: one flat array, and where each row begins in it."""

    def __init__(self, array: pa.Array, facts: dict[str, Any]) -> None:
        storage = getattr(array, "storage", array)  # once imported, `datasets` registers its type
        values = storage.values.values if facts["ragged"] else storage.values
        flat = values.to_numpy(zero_copy_only=True)
        self._values: Stored = flat.reshape(-1, facts["width"])
        self._offsets = storage.offsets.to_numpy(zero_copy_only=True) if facts["ragged"] else None
        self._length = len(array)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Stored:
        if self._offsets is None:
            here: Stored = self._values[row]
        else:
            here = self._values[self._offsets[row] : self._offsets[row + 1]]
        return here


def schema_of(shard: Shard, features: pa.Field) -> pa.Schema:
    """Return the schema of a shard, with its facts as metadata."""
    fields = [pa.field("path", pa.string())]
    if shard.key is not None:
        fields.append(pa.field("key", pa.string()))
    fields += [pa.field("num_frames", pa.int32()), pa.field("seconds", pa.float64())]
    fields += [pa.field(name, _TYPES[shard.type_of(name)]) for name in shard.columns]
    shape = {"dtype": shard.dtype, "ragged": shard.ragged, "width": shard.width}
    facts = json.dumps({**shard.facts, **shape}, sort_keys=True)
    return pa.schema([*fields, features], metadata={FACTS: facts})


def facts_of(schema: pa.Schema) -> dict[str, Any]:
    """Return a shard's facts, and the dtype, raggedness and width of its features.

    Raises:
        KeyError, TypeError, ValueError: The schema is of no shard.
    """
    facts = json.loads(schema.metadata[FACTS])
    return {**facts, "width": int(facts["width"]), "ragged": bool(facts["ragged"])}


def batches_of(
    shard: Shard, schema: pa.Schema, pack: Callable[[Shard, Sequence[Stored]], pa.Array]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard in batches of at most BATCH_VALUES values, or of one row.

    Args:
        shard: The rows.
        schema: As `schema_of` gives it.
        pack: Makes Arrow's array of some rows' features.
    Raises:
        ValueError: A row has more than MOST_VALUES values.
    """
    start = values = 0
    for row, features in enumerate(shard.features):
        if features.size > MOST_VALUES:
            raise ValueError(f"{shard.path[row]} has {features.size} values; Arrow holds 2**31 - 1")
        if row > start and values + features.size > BATCH_VALUES:
            yield _batch(shard, slice(start, row), schema, pack)
            start, values = row, 0
        values += features.size
    yield _batch(shard, slice(start, None), schema, pack)


def _batch(
    shard: Shard,
    rows: slice,
    schema: pa.Schema,
    pack: Callable[[Shard, Sequence[Stored]], pa.Array],
) -> pa.RecordBatch:
    named = {"num_frames": shard.num_frames, **vars(shard), **shard.as_stored()}
    arrays = [pa.array(named[field.name][rows], field.type) for field in list(schema)[:-1]]
    return pa.record_batch([*arrays, pack(shard, shard.features[rows])], schema=schema)


def _lists_field(shard: Shard) -> pa.Field:
    item = pa.from_numpy_dtype(np.dtype(shard.dtype))
    if not shard.ragged:
        return pa.field(FEATURES, pa.list_(item, shard.width))
    extension = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([[None, shard.width], shard.dtype]),
    }
    return pa.field(FEATURES, pa.list_(pa.list_(item)), metadata=extension)


def _lists(shard: Shard, features: Sequence[Stored]) -> pa.Array:
    flat = np.concatenate([np.empty(0, shard.dtype), *(rows.reshape(-1) for rows in features)])
    values = pa.array(flat)
    if not shard.ragged:
        return pa.FixedSizeListArray.from_arrays(values, shard.width)
    frames = np.cumsum([0, *(len(rows) for rows in features)], dtype=np.int32)
    inner = np.arange(0, flat.size + 1, shard.width, dtype=np.int32)
    return pa.ListArray.from_arrays(frames, pa.ListArray.from_arrays(inner, values))
