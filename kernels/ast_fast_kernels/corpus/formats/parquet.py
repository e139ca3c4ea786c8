"""Shards as Parquet files, in which the features of a row are one blob of bytes.

Parquet writes two levels beside every value of a list, which costs more than the filterbank: 1.5 ms
for 5 s, however it is compressed or encoded. As bytes it is 0.1 ms, and any reader of Parquet gives
`np.frombuffer(row["features"], dtype).reshape(-1, width)`. No compression is used: zstd takes 11 %
off and four times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ast_fast_kernels.corpus.formats.arrow import FEATURES, batches_of, facts_of
from ast_fast_kernels.corpus.formats.hashed import HashedFile
from ast_fast_kernels.corpus.formats.shard import Shard, Stored


class ParquetFormat:
    """Parquet: one file a shard, read into memory whole."""

    mapped = False

    def file_names(self, index: int) -> tuple[str, ...]:
        """Return the name of the one file."""
        return (f"shard-{index:06d}.parquet",)

    def write(self, files: Sequence[HashedFile], parts: Iterable[Shard]) -> None:
        """Write the file, a row group for each part."""
        schema, batches = batches_of(parts, lambda _: pa.field(FEATURES, pa.binary()), _blobs)
        cheap = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(files[0], schema, **cheap) as writer:
            for batch in batches:
                writer.write_batch(batch)

    def open(self, paths: Sequence[Path]) -> ParquetRows:
        """Read the file."""
        return ParquetRows(paths[0])


class ParquetRows:
    """Features of a shard, decoded into memory."""

    def __init__(self, path: Path) -> None:
        try:
            table = pq.read_table(path)
            self._facts = facts_of(table.schema)
            self._blobs = table[FEATURES]
        except (KeyError, TypeError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise ValueError(f"{path} must be a Parquet file with features: {error}") from error

    def __len__(self) -> int:
        return len(self._blobs)

    def __getitem__(self, row: int) -> Stored:
        values = np.frombuffer(self._blobs[row].as_buffer(), self._facts["dtype"])
        return values.reshape(-1, self._facts["width"]) if self._facts["ragged"] else values

    @cached_property
    def num_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each row; 1 for a vector."""
        return np.array(
            [len(self[row]) if self._facts["ragged"] else 1 for row in range(len(self))], np.int32
        )


def _blobs(shard: Shard) -> pa.Array:
    return pa.array([np.ascontiguousarray(rows).tobytes() for rows in shard.features], pa.binary())
