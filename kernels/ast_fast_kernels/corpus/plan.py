"""A run's plan: what every shard holds, and all that its bytes depend on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_fast_kernels.corpus.extractor import Extractor
from ast_fast_kernels.corpus.formats.shard import ColumnType, DtypeName, FormatName
from ast_fast_kernels.corpus.items import Item

RUN = ".run"
"""Folder inside the output that holds what a run needs to be resumed; gone when it is finished."""
INPUT = "input.jsonl"
"""The input as it was found when the run began, one item a line."""
UNFLUSHED = ".unflushed.json"
"""End of a record's name while a power cut could take its shard."""


@dataclass(frozen=True)
class Plan:
    """All that a process needs to make any shard: picklable, and small for any corpus."""

    out: Path
    """Folder of the output."""
    root: Path
    """Folder at which the items' relative paths begin."""
    extractor: Extractor
    format: FormatName
    dtype: DtypeName
    """What features are stored as."""
    types: Mapping[str, ColumnType]
    """Type of each further column of the input, in their order."""
    has_keys: bool
    """Whether the input names its items."""
    offsets: Sequence[int]
    """Where each shard's first item is in the list of the input, in bytes; then the list's end."""
    num_items: int
    facts: Mapping[str, Any]
    """What a reader of a shard should know, as JSON can hold it."""

    @property
    def num_shards(self) -> int:
        """Number of shards, including any whose files all turn out to be bad."""
        return len(self.offsets) - 1

    @property
    def run(self) -> Path:
        """The folder of what a run needs to be resumed."""
        return self.out / RUN

    def record_path(self, k: int) -> Path:
        """Return where a finished shard's record lies while the run is under way."""
        return self.run / f"shard-{k:06d}.json"

    def unflushed_path(self, k: int) -> Path:
        """Return where it lies until the shard is on the disk."""
        return self.run / f"shard-{k:06d}{UNFLUSHED}"

    def items(self, k: int) -> list[Item]:
        """Return the items of a shard, in order."""
        begin, end = self.offsets[k], self.offsets[k + 1]
        with (self.run / INPUT).open("rb") as file:
            file.seek(begin)
            lines = file.read(end - begin).decode().split("\n")
        return [Item.from_line(line) for line in lines[:-1]]

    def resolve(self, path: str) -> str:
        """Return where a file of the input lies."""
        return os.path.join(self.root, path)
