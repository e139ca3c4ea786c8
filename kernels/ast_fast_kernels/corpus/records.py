"""The sealed record of a finished shard: what a resumed run and the manifest are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_fast_kernels.corpus.manifest import ShardFiles
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.sealed import CHECKSUM, is_intact, sealed
from ast_fast_kernels.files.text import read_document


@dataclass(frozen=True)
class ShardRecord:
    """What a finished shard came to."""

    shard: int
    rows: int
    bad: int
    seconds: float
    """Of audio, in its rows."""


@dataclass(frozen=True)
class ShardLines:
    """A shard's lines of the output's tables."""

    manifest: Sequence[Mapping[str, Any]]
    failed: Sequence[Mapping[str, Any]]
    files: ShardFiles | None
    """Its line of shards.jsonl; None if no file was good, and there is no shard."""


def write_record(path: Path, record: ShardRecord, lines: ShardLines) -> None:
    """Write a shard's record, after the shard itself."""
    files = None if lines.files is None else vars(lines.files)
    tables = {"manifest": lines.manifest, "failed": lines.failed, "files": files}
    document = {**vars(record), **tables}  # `asdict` would copy every line
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(sealed(document)), encoding="ascii")


def read_record(path: Path) -> tuple[ShardRecord, ShardLines] | None:
    """Return a shard's record; None if there is none, or it is not intact."""
    try:
        document = json.loads(read_document(path))
        if not is_intact(document):
            return None
        del document[CHECKSUM]
        files = document.pop("files")
        lines = ShardLines(
            document.pop("manifest"),
            document.pop("failed"),
            None if files is None else ShardFiles(**files),
        )
        return ShardRecord(**document), lines
    except (FileNotFoundError, ValueError, AttributeError, TypeError, KeyError):
        return None
