"""The record of a finished shard: what a resumed run and the manifest are made of.

Its first line is JSON with all but the lines of the tables, and with a digest of those that follow.
They are the very lines of manifest.jsonl and failed.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ast_fast_kernels.corpus.manifest import ShardFiles
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.sealed import CHECKSUM, is_intact, sealed
from ast_fast_kernels.files.text import read_document
from ast_fast_kernels.files.xxh3 import xxh3_of


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

    manifest: Sequence[str]
    failed: Sequence[str]
    files: ShardFiles | None
    """Its line of shards.jsonl; None if no file was good, and there is no shard."""


def write_record(path: Path, record: ShardRecord, lines: ShardLines) -> None:
    """Write a shard's record, after the shard itself. A power cut can damage it.

    Args:
        path: The file.
        record: Its `rows` and `bad` are the numbers of lines.
        lines: Without line breaks.
    """
    files = None if lines.files is None else asdict(lines.files)
    body = "".join(f"{line}\n" for line in (*lines.manifest, *lines.failed))
    head = sealed({**vars(record), "files": files, "lines": xxh3_of(body.encode())})
    with atomic_write(path, durable=False) as temporary:
        temporary.write_text(f"{json.dumps(head)}\n{body}", encoding="ascii")


def read_record(path: Path) -> tuple[ShardRecord, ShardLines] | None:
    """Return a shard's record; None if there is none, or it is not intact."""
    try:
        first, _, body = read_document(path).partition("\n")
        head = json.loads(first)
        if not is_intact(head) or head.pop("lines") != xxh3_of(body.encode()):
            return None
        del head[CHECKSUM]
        files: Mapping[str, object] | None = head.pop("files")
        record = ShardRecord(**head)
        lines = body.splitlines()
        kept = ShardLines(
            lines[: record.rows],
            lines[record.rows :],
            None if files is None else ShardFiles(**files),  # type: ignore[arg-type]
        )
    except (FileNotFoundError, ValueError, AttributeError, TypeError, KeyError):
        return None
    return record, kept
