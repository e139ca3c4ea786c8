"""Reads back what an extraction wrote: features at random, without copies."""

from __future__ import annotations

import operator
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from ast_fast_kernels.corpus.formats.shard import Format, Rows, Stored, load_format
from ast_fast_kernels.corpus.manifest import MANIFEST, SETTINGS, SHARDS, ShardFiles, read_lines
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.files.sealed import digest_of_file
from ast_fast_kernels.files.text import read_document
from ast_fast_kernels.files.xxh3 import xxh3_of_file

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


class FeatureStore:
    """The features that an extraction wrote, read at random and without a copy.

    Shards are mapped into memory when a row of theirs is first read, so opening costs little and
    memory stays flat however large the corpus is. It is a dataset for torch's `DataLoader`, with
    `collate` as its `collate_fn`; a worker process, forked or spawned, maps the shards itself.

    Args:
        folder: The output of `python -m ast_fast_kernels.extract`, in the format arrow, npy or
            lhotse.
        verify: Whether to compare every file with its digest first, which reads all of them.
    Raises:
        InputError: The folder holds no finished extraction, its format is parquet, or a file is
            missing or damaged; the message names it.
    """

    def __init__(self, folder: str | os.PathLike[str], *, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.settings: Mapping[str, Any] = _read_settings(self.folder)
        """What extract.toml holds: the tables input, output, features, versions and result."""
        output = self.settings["output"]
        self.dtype: np.dtype[np.float16 | np.float32] = np.dtype(output["dtype"])
        self.width: int = output["width"]
        """Mel bins of a frame, or values of a vector."""
        self.ragged: bool = output["ragged"]
        """Whether a row has frames, (num_frames, width); else it is a vector, (width,)."""
        self._format: Format = load_format(output["format"])
        if not self._format.mapped:
            raise InputError(
                f"{self.folder} must hold arrow, npy or lhotse, whose rows can be read at random, "
                f"got {output['format']}; read its files with pyarrow or pandas"
            )
        self._files = _read_shards(self.folder, verify=verify)
        self._shards: list[Rows | None] = [None] * len(self._files)
        rows = [shard.rows for shard in self._files]
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: SupportsIndex) -> Stored:
        """Return a row's features: read-only, (num_frames, width) or (width,).

        Raises:
            IndexError: There is no such row.
            InputError: Its shard is damaged.
        """
        row = operator.index(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row must be from {-len(self)} to {len(self) - 1}, got {row}")
        row %= len(self)
        which = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._shard(which)[row - int(self._starts[which])]

    def __iter__(self) -> Iterator[Stored]:
        return map(self.__getitem__, range(len(self)))

    def __repr__(self) -> str:
        shape = f"(num_frames, {self.width})" if self.ragged else f"({self.width},)"
        return f"FeatureStore({str(self.folder)!r}: {len(self)} rows {shape} {self.dtype})"

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        """Pickle the folder only: whoever unpickles it maps the files itself."""
        return FeatureStore, (self.folder,)

    @cached_property
    def num_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each row (1 for a vector), shape (len(store),). Opens every shard."""
        counts = [self._shard(which).num_frames for which in range(len(self._files))]
        return np.concatenate([np.zeros(0, np.int32), *counts])

    @cached_property
    def table(self) -> pa.Table:
        """The manifest: path, key, shard, row, frames, seconds, digest, and further columns.

        Row i belongs to `store[i]`. The digest is of the audio's bytes.
        """
        from ast_fast_kernels.corpus.table import read_table  # loads pyarrow

        try:
            table = read_table(self.folder / MANIFEST, self.settings["output"].get("columns", {}))
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error
        if len(table) != len(self):
            raise InputError(
                f"{self.folder / MANIFEST} must have a line for each of the {len(self)} rows, "
                f"got {len(table)}"
            )
        return table

    @property
    def paths(self) -> list[str]:
        """The audio file of each row."""
        return self.table["path"].to_pylist()  # type: ignore[no-any-return]

    @property
    def config(self) -> FbankConfig:
        """The conventions of the filterbank that made the features.

        Raises:
            ValueError: A model made them, or this version does not know a field.
        """
        features = self.settings["features"]
        if features.get("kind") != "fbank":
            raise ValueError(f"{self.folder} holds no log-mel features: {features.get('kind')}")
        return FbankConfig(**features["fbank"])

    @cached_property
    def silence(self) -> float:
        """The value that `collate` pads with: of a silent frame, or 0 if no filterbank made it."""
        is_fbank = self.settings["features"].get("kind") == "fbank"
        return self.config.log_silence if is_fbank else 0.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the list of shards, which has the XXH3 of every file."""
        return digest_of_file(self.folder / SHARDS)

    def pad(
        self, rows: Sequence[Stored], num_frames: int | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return rows as one float32 array, padded with silence behind their ends.

        Args:
            rows: Features with frames.
            num_frames: Frames of the result, to which longer rows are cut; None takes the longest.
        Returns:
            Features, (len(rows), num_frames, width); and the frames of each that are not padding.
        """
        lengths = np.array([len(features) for features in rows], np.int64)
        most = int(lengths.max(initial=0)) if num_frames is None else num_frames
        lengths = np.minimum(lengths, most)
        padded = np.full((len(rows), most, self.width), self.silence, np.float32)
        for target, features, length in zip(padded, rows, lengths, strict=True):
            target[:length] = features[:length]
        return padded, lengths

    def collate(self, rows: Sequence[Stored]) -> tuple[Tensor, Tensor]:
        """Return `pad(rows)` as tensors; vectors are stacked and have length 1.

        For `torch.utils.data.DataLoader(store, collate_fn=store.collate)`. Needs torch.
        """
        import torch

        if self.ragged:
            padded, lengths = self.pad(rows)
        else:
            padded = np.stack(rows).astype(np.float32)
            lengths = np.ones(len(rows), np.int64)
        return torch.from_numpy(padded), torch.from_numpy(lengths)

    def _shard(self, which: int) -> Rows:
        """Return the rows of a shard, mapped by its first use."""
        rows = self._shards[which]
        if rows is None:
            files = self._files[which]
            paths = [self.folder / name for name in files.files]
            try:
                rows = self._format.open(paths)
            except (ValueError, OSError) as error:
                raise InputError(f"{error}; extract it again") from error
            if len(rows) != files.rows:
                raise InputError(
                    f"{paths[0]} must have {files.rows} rows, got {len(rows)}; extract it again"
                )
            self._shards[which] = rows
        return rows


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        settings = tomllib.loads(read_document(path))
    except FileNotFoundError:
        raise InputError(
            f"{folder} must be the output of a finished extraction, which has {SETTINGS}; "
            "python -m ast_fast_kernels.extract --resume finishes one"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    missing = {"format", "dtype", "width", "ragged"} - settings.get("output", {}).keys()
    if missing or "features" not in settings:
        raise InputError(f"{path} must have the tables output and features, as extract writes them")
    return settings


def _read_shards(folder: Path, *, verify: bool) -> list[ShardFiles]:
    """Return the shards of an extraction, after checking that every file is there."""
    try:
        shards = [ShardFiles(**line) for line in read_lines(folder / SHARDS)]
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{folder / SHARDS} cannot be read: {error}") from error
    for shard in shards:
        for name, digest in shard.files.items():
            path = folder / name
            if not path.is_file():
                raise InputError(f"{path} is missing; copy it too, or extract it again")
            if verify and xxh3_of_file(path) != digest:
                raise InputError(f"{path} is damaged: its digest is another; extract it again")
    return shards
