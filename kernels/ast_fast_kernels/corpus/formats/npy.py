"""Shards as .npy files: the values of all rows one behind the other, and where each row begins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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

    def write(self, paths: Sequence[Path], shard: Shard) -> None:
        """Create both files; the rows are not copied."""
        ends = np.cumsum(shard.num_frames, dtype=np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), ends])
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(shard.dtype)),
            "fortran_order": False,
            "shape": (int(offsets[-1]), shard.width),
        }
        with paths[0].open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for rows in shard.features:
                file.write(np.ascontiguousarray(rows).data)
        np.save(paths[1], offsets if shard.ragged else offsets[:0])

    def open(self, paths: Sequence[Path]) -> NpyRows:
        """Map the values and read the offsets."""
        return NpyRows(load_npy(paths[0], mapped=True), load_npy(paths[1]), paths)


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


def load_npy(path: Path, *, mapped: bool = False) -> npt.NDArray[Any]:
    """Return the array of an .npy file.

    Raises:
        ValueError: It holds none; the message names it.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} must be an array in numpy's format: {error}") from error
