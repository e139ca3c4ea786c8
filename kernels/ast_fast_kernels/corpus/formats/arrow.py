"""Shards as Arrow IPC files, which pyarrow and Hugging Face's `datasets` read as they are.

A row's features are a list of frames, each a list of `width` values. The field's metadata names
the type `Array2D` of `datasets`, which then gives arrays (num_frames, width); pyarrow alone sees
lists. Fixed-size lists would be the tighter type, but `datasets` takes them apart frame by frame,
which made a row of 5 s six times as slow. A vector is a fixed-size list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ast_fast_kernels.corpus.formats.shard import ColumnType, Shard, Stored

BATCH_VALUES = 2**27
"""Most values of a record batch that has more than one row: an offset is an int32, and a reader
may load a batch whole (256 MiB of float16)."""
FACTS = b"ast_fast_kernels"
"""Key of the shard's facts, as JSON, in the schema's metadata."""
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
        schema = shard_schema(shard)
        with pa.OSFile(str(paths[0]), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in record_batches(shard, schema):
                writer.write_batch(batch)

    def open(self, paths: Sequence[Path]) -> ArrowRows:
        """Map the file."""
        return ArrowRows(paths[0])


class ArrowRows:
    """Features of an Arrow file, as views of its mapped pages."""

    def __init__(self, path: Path) -> None:
        try:
            self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            chunks = self.table[FEATURES].chunks
            width = json.loads(self.table.schema.metadata[FACTS])["width"]
        except (KeyError, TypeError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path} does not hold features in Arrow's IPC format") from error
        self._chunks = [_Chunk(chunk, width) for chunk in chunks]
        ends = np.cumsum([len(chunk) for chunk in self._chunks], dtype=np.int64)
        self._starts = np.concatenate([[0], ends]) if len(ends) else np.zeros(1, np.int64)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: int) -> Stored:
        which = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._chunks[which][row - int(self._starts[which])]

    @cached_property
    def num_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each row; 1 for a vector."""
        return np.asarray(self.table["num_frames"].to_numpy(), np.int32)


class _Chunk:
    """The features of a record batch: one flat array, and where each row begins in it."""

    def __init__(self, array: pa.Array, width: int) -> None:
        ragged = not pa.types.is_fixed_size_list(array.type)
        storage = getattr(array, "storage", array)  # `datasets`, once imported, registers its type
        values = storage.values.values if ragged else storage.values
        self._values: Stored = values.to_numpy(zero_copy_only=True).reshape(-1, width)
        self._offsets = storage.offsets.to_numpy(zero_copy_only=True) if ragged else None
        self._length = len(array)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Stored:
        if self._offsets is None:
            here: Stored = self._values[row]
        else:
            here = self._values[self._offsets[row] : self._offsets[row + 1]]
        return here


def shard_schema(shard: Shard) -> pa.Schema:
    """Return the schema of a shard, with its facts as metadata."""
    fields = [pa.field("path", pa.string())]
    if shard.key is not None:
        fields.append(pa.field("key", pa.string()))
    fields += [pa.field("num_frames", pa.int32()), pa.field("seconds", pa.float64())]
    fields += [pa.field(name, _TYPES[shard.types.get(name, "string")]) for name in shard.columns]
    fields.append(_features_field(shard))
    facts = {"width": shard.width, **shard.facts}
    return pa.schema(fields, metadata={FACTS: json.dumps(facts, sort_keys=True)})


def record_batches(shard: Shard, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard in batches of at most BATCH_VALUES values, or of one row."""
    start, values = 0, 0
    for row, features in enumerate(shard.features):
        if row > start and values + features.size > BATCH_VALUES:
            yield _batch(shard, start, row, schema)
            start, values = row, 0
        values += features.size
    yield _batch(shard, start, len(shard), schema)


def _batch(shard: Shard, start: int, end: int, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        if field.name == FEATURES:
            arrays.append(_features_array(shard, shard.features[start:end]))
        else:
            values = _column(shard, field.name)[start:end]
            arrays.append(pa.array(values, field.type))
    return pa.record_batch(arrays, schema=schema)


def _column(shard: Shard, name: str) -> Sequence[Any]:
    """Return a column's values as its type holds them."""
    if name in shard.columns:
        values = shard.columns[name]
        kind = shard.types.get(name, "string")
        if kind == "json":
            return [None if v is None else json.dumps(v, sort_keys=True) for v in values]
        if kind == "string":
            return [None if v is None else str(v) for v in values]
        return values
    return getattr(shard, name)  # type: ignore[no-any-return]


def _features_field(shard: Shard) -> pa.Field:
    item = pa.from_numpy_dtype(np.dtype(shard.dtype))
    if not shard.ragged:
        return pa.field(FEATURES, pa.list_(item, shard.width))
    extension = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([[None, shard.width], shard.dtype]),
    }
    return pa.field(FEATURES, pa.list_(pa.list_(item)), metadata=extension)


def _features_array(shard: Shard, features: Sequence[Stored]) -> pa.Array:
    flat = np.concatenate([np.empty(0, shard.dtype), *(rows.reshape(-1) for rows in features)])
    values = pa.array(flat)
    if not shard.ragged:
        return pa.FixedSizeListArray.from_arrays(values, shard.width)
    frames = np.array([0, *(len(rows) for rows in features)], np.int32).cumsum(dtype=np.int32)
    inner = np.arange(0, flat.size + 1, shard.width, dtype=np.int32)
    return pa.ListArray.from_arrays(frames, pa.ListArray.from_arrays(inner, values))
