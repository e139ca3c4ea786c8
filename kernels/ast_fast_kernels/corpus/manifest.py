"""The tables of a finished extraction, one JSON object a line, in the order of the input.

`manifest.jsonl` has a line a row, `shards.jsonl` a line a shard, `failed.jsonl` a line a bad file.
They are written and read as streams: a corpus of a million files has a manifest of 200 MB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ast_fast_kernels.corpus.formats.shard import Shard
from ast_fast_kernels.files.atomic import atomic_write

MANIFEST = "manifest.jsonl"
SHARDS = "shards.jsonl"
FAILED = "failed.jsonl"


@dataclass(frozen=True)
class ShardFiles:
    """A line of shards.jsonl: what a finished shard consists of."""

    shard: int
    """Its number, from 0; a shard whose files were all bad has no line."""
    rows: int
    frames: int
    files: Mapping[str, str]
    """Name of each file → the SHA-256 of its bytes."""

    @classmethod
    def of(cls, index: int, shard: Shard, files: Mapping[str, str]) -> Self:
        """Return the line of a shard that `publish_shard` wrote as `files`."""
        return cls(index, len(shard), int(shard.num_frames.sum()), dict(files))


def manifest_lines(index: int, shard: Shard, digests: Sequence[str]) -> list[dict[str, Any]]:
    """Return a shard's lines of the manifest.

    Args:
        index: Number of the shard, from 0.
        shard: Its rows.
        digests: Of each row's audio, as bytes of the file.
    """
    frames = shard.num_frames.tolist()
    lines = []
    for row, path in enumerate(shard.path):
        line: dict[str, Any] = {"path": path}
        if shard.key is not None:
            line["key"] = shard.key[row]
        line |= {"shard": index, "row": row, "frames": frames[row]}
        line |= {"seconds": shard.seconds[row], "digest": digests[row]}
        line |= {name: values[row] for name, values in shard.columns.items()}
        lines.append(line)
    return lines


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, whole or not at all.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="ascii") as file:
        for line in lines:
            file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines.

    Raises:
        ValueError: A line is no JSON object; the message names the file and the line.
    """
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                raise ValueError(f"{path}, line {number} must be a JSON object")
            yield line
