"""Shards as Arrow IPC files, which pyarrow and Hugging Face's `datasets` read as they are.

A row's features are a list of frames, each a list of `width` values. The field's metadata names
the type `Array2D` of `datasets`, which then gives arrays (num_frames, width); pyarrow alone sees
lists. Fixed-size lists would be the tighter type, but `datasets` takes them apart frame by frame,
which made reading a row six times as slow. A vector is a fixed-size list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ast_fast_kernels.corpus.formats.hashed import HashedFile
from ast_fast_kernels.corpus.formats.mapped import map_file
from ast_fast_kernels.corpus.formats.shard import ColumnType, Shard, Stored

MOST_VALUES = 2**31 - 1
"""Most values of a row: an offset of a list is an int32."""
FACTS = b"ast_fast_kernels"
"""Key, in a schema's metadata, of what a reader should know of the features, as JSON."""
FEATURES = "features"

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
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

    def write(self, files: Sequence[HashedFile], parts: Iterable[Shard]) -> None:
        """Write the file, a record batch for each part."""
        schema, batches = batches_of(parts, _lists_field, _lists)
        with pa.ipc.new_file(files[0], schema) as writer:
            for batch in batches:
                writer.write_batch(batch)

    def open(self, paths: Sequence[Path]) -> ArrowRows:
        """Map the file."""
        return ArrowRows(paths[0])


class ArrowRows:
    """Features of an Arrow file, as views of its mapped pages."""

    def __init__(self, path: Path) -> None:
        data = map_file(path)
        try:
            self._table = pa.ipc.open_file(data).read_all()
            facts = facts_of(self._table.schema)
            self._chunks = [_Chunk(chunk, facts) for chunk in self._table[FEATURES].chunks]
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise ValueError(f"{path} must be an Arrow file with features: {error}") from error
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
    fields += [pa.field(name, ARROW_TYPES[shard.type_of(name)]) for name in shard.columns]
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
    parts: Iterable[Shard],
    field: Callable[[Shard], pa.Field],
    pack: Callable[[Shard], pa.Array],
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema of a shard, and a batch for each of its parts, made when it is asked for.

    Args:
        parts: The rows.
        field: Gives the field of the features.
        pack: Makes Arrow's array of a part's features.
    Raises:
        ValueError: While batches are made: a row has more than MOST_VALUES values.
    """
    rest = iter(parts)
    first = next(rest)
    schema = schema_of(first, field(first))
    return schema, (_batch(part, schema, pack) for part in chain((first,), rest))


def _batch(shard: Shard, schema: pa.Schema, pack: Callable[[Shard], pa.Array]) -> pa.RecordBatch:
    for path, features in zip(shard.path, shard.features, strict=True):
        if features.size > MOST_VALUES:
            raise ValueError(f"{path} has {features.size} values; Arrow holds 2**31 - 1")
    named = {**vars(shard), "num_frames": shard.num_frames, **shard.as_stored()}
    arrays = [pa.array(named[field.name], field.type) for field in list(schema)[:-1]]
    return pa.record_batch([*arrays, pack(shard)], schema=schema)


def _lists_field(shard: Shard) -> pa.Field:
    item = pa.from_numpy_dtype(np.dtype(shard.dtype))
    if not shard.ragged:
        return pa.field(FEATURES, pa.list_(item, shard.width))
    extension = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([[None, shard.width], shard.dtype]),
    }
    return pa.field(FEATURES, pa.list_(pa.list_(item)), metadata=extension)


def _lists(shard: Shard) -> pa.Array:
    flat = shard.values
    if flat is None:
        rows = (features.reshape(-1) for features in shard.features)
        flat = np.concatenate([np.empty(0, shard.dtype), *rows])
    values = pa.array(flat)
    if not shard.ragged:
        return pa.FixedSizeListArray.from_arrays(values, shard.width)
    frames = np.cumsum([0, *shard.num_frames], dtype=np.int32)
    inner = np.arange(0, flat.size + 1, shard.width, dtype=np.int32)
    return pa.ListArray.from_arrays(frames, pa.ListArray.from_arrays(inner, values))
