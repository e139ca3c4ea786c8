"""Shards as .npy files: the values of all rows one behind the other, and where each row begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_fast_kernels.corpus.formats.hashed import HashedFile
from ast_fast_kernels.corpus.formats.mapped import array_at, map_file, npy_header
from ast_fast_kernels.corpus.formats.shard import Shard, Stored


class NpyFormat:
    """Two arrays a shard: values (frames of all rows, width), and offsets (rows + 1).

    Row i is `values[offsets[i] : offsets[i + 1]]`. If each row is one vector, the offsets are
    empty, and row i is `values[i]`. The other columns are in the manifest only.
    """

    mapped = True

    def file_names(self, index: int) -> tuple[str, ...]:
        """Return the names of the values and of the offsets."""
        return f"shard-{index:06d}.npy", f"shard-{index:06d}.offsets.npy"

    def write(self, files: Sequence[HashedFile], parts: Iterable[Shard]) -> None:
        """Write both files, after the last part: the values begin with their number."""
        features: list[bytes] = []
        frames = [np.zeros(1, np.int64)]
        for part in parts:
            features += [np.ascontiguousarray(rows).tobytes() for rows in part.features]
            frames.append(part.num_frames.astype(np.int64))
        offsets = np.cumsum(np.concatenate(frames))
        files[0].write(npy_header((int(offsets[-1]), part.width), part.dtype))
        for rows in features:
            files[0].write(rows)
        written = offsets if part.ragged else offsets[:0]
        files[1].write(npy_header(written.shape, "int64") + written.tobytes())

    def open(self, paths: Sequence[Path]) -> NpyRows:
        """Map both."""
        values, offsets = map(_load, paths)
        return NpyRows(values, offsets, paths)


class NpyRows:
    """Features of a shard, as views of mapped values."""

    def __init__(self, values: Stored, offsets: npt.NDArray[np.int64], paths: Sequence[Path]):
        if len(offsets) and offsets[-1] != len(values):
            raise ValueError(f"{paths[1]} must be the offsets of {paths[0]}")
        self._values, self._offsets = values, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1 if len(self._offsets) else len(self._values)

    def __getitem__(self, row: int) -> Stored:
        if len(self._offsets) == 0:
            return self._values[row]  # type: ignore[no-any-return]
        return self._values[self._offsets[row] : self._offsets[row + 1]]

    @cached_property
    def num_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each row; 1 for a vector."""
        if len(self._offsets) == 0:
            return np.ones(len(self), np.int32)
        return np.diff(self._offsets).astype(np.int32)


def _load(path: Path) -> npt.NDArray[Any]:
    data = map_file(path)
    try:
        return array_at(data)
    except ValueError as error:
        raise ValueError(f"{path} must be an array in numpy's format: {error}") from error
