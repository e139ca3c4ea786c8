"""What a shard holds and what a format does with it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ast_fast_kernels.corpus.formats.hashed import HashedFile

Stored = npt.NDArray[np.float16] | npt.NDArray[np.float32]
FormatName = Literal["arrow", "npy", "parquet", "lhotse"]
DtypeName = Literal["float16", "float32"]
ColumnType = Literal["string", "int64", "float64", "bool", "json"]
"""Type of a further column; `json` is text that holds one JSON value."""
OWN_COLUMNS = frozenset(
    {"path", "key", "num_frames", "seconds", "features", "shard", "row", "frames", "digest"}
)
"""Columns of a shard or of its manifest; no further column can be called so."""


@dataclass(frozen=True)
class Shard:
    """Rows of one shard, or a part of them, in the order of the input; a bad file has none.

    Every list has one entry a row.
    """

    path: list[str]
    """Audio files, as the input names them; valid Unicode."""
    features: list[Stored]
    """Arrays of `dtype`, (num_frames, width) if `ragged`, else (width,)."""
    seconds: list[float]
    """Durations of the audio."""
    width: int
    """Mel bins of a frame, or length of a vector."""
    dtype: DtypeName = "float16"
    """What the features are stored as."""
    ragged: bool = True
    """Whether each row has frames; False: each row is one vector."""
    key: list[str] | None = None
    """Names of the utterances, if the input has any."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Further columns of the input, each with one value (or None) a row."""
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    """Types of the further columns, the same in every shard; a column without one is a string."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a reader should know, as JSON can hold it. Lhotse's Shar needs `sample_rate`, in
    Hz, and `frame_shift`, in milliseconds."""
    values: Stored | None = None
    """The features of all rows one behind the other, if they lie so in memory; one dimension."""

    def __post_init__(self) -> None:
        taken = sorted(OWN_COLUMNS & self.columns.keys())
        if taken:
            raise ValueError(f"a further column cannot be called {', '.join(taken)}")

    def __len__(self) -> int:
        return len(self.path)

    @cached_property
    def num_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each row; 1 for a vector."""
        if not self.ragged:
            return np.ones(len(self), np.int32)
        return np.array([len(rows) for rows in self.features], np.int32)

    def type_of(self, column: str) -> ColumnType:
        """Return the type of a further column."""
        return self.types.get(column, "string")

    def as_stored(self) -> dict[str, list[Any]]:
        """Return the further columns, with text where their type is text."""
        return {
            name: [_as_stored(value, self.type_of(name)) for value in values]
            for name, values in self.columns.items()
        }


def _as_stored(value: Any, kind: ColumnType) -> Any:
    if value is None or kind not in ("string", "json"):
        return value
    return str(value) if kind == "string" else json.dumps(value, sort_keys=True)


class Rows(Protocol):
    """Features of a shard read back, mapped where the format allows it."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Stored: ...

    @property
    def num_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each row; 1 for a vector."""
        ...


class Format(Protocol):
    """One way to lay a shard out in files."""

    mapped: bool
    """Whether `open` maps the files, so that rows are read at random without copies."""

    def file_names(self, index: int) -> tuple[str, ...]:
        """Return the names of shard number `index`'s files, counted from 0."""
        ...

    def write(self, files: Sequence[HashedFile], parts: Iterable[Shard]) -> None:
        """Write a shard into `files`, in the order of `file_names`.

        Args:
            files: Empty ones.
            parts: The rows, at least one part of them; a part's arrays may change when the next is
                asked for.
        """
        ...

    def open(self, paths: Sequence[Path]) -> Rows:
        """Return the rows of a shard's files.

        Raises:
            ValueError: The files do not hold a shard; the message names one.
            OSError: A file cannot be read.
        """
        ...


FORMATS: Mapping[FormatName, str] = {
    "arrow": "ast_fast_kernels.corpus.formats.arrow:ArrowFormat",
    "npy": "ast_fast_kernels.corpus.formats.npy:NpyFormat",
    "parquet": "ast_fast_kernels.corpus.formats.parquet:ParquetFormat",
    "lhotse": "ast_fast_kernels.corpus.formats.shar:SharFormat",
}
"""Format → its class, loaded on first use."""


def load_format(name: FormatName) -> Format:
    """Return the format of a name.

    Raises:
        ValueError: There is no such format.
        ImportError: It needs a library that is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(get_args(FormatName))}, got {name!r}")
    module, _, attribute = FORMATS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        what = f"format {name} needs {error.name}: pip install 'ast-fast-kernels[extract]'"
        raise ImportError(what, name=error.name) from error
