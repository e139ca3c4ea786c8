"""The tables of a finished extraction, one JSON object a line, in the order of the input.

`manifest.jsonl` has a line a row, `shards.jsonl` a line a shard, `failed.jsonl` a line a bad file.
They are written and read as streams: a corpus of a million files has a manifest of 200 MB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Any

from ast_fast_kernels.corpus.formats.shard import Shard
from ast_fast_kernels.files.atomic import atomic_write

MANIFEST = "manifest.jsonl"
SHARDS = "shards.jsonl"
FAILED = "failed.jsonl"
SETTINGS = "extract.toml"
"""Written last: where it is, the output is complete."""

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class ShardFiles:
    """A line of shards.jsonl: what a finished shard consists of."""

    shard: int
    """Its number, from 0; a shard whose files were all bad has no line."""
    rows: int
    frames: int
    files: Mapping[str, str]
    """Name of each file → the XXH3 of its bytes, in 128 bits."""


def manifest_lines(index: int, shard: Shard, digests: Sequence[str], first: int = 0) -> list[str]:
    """Return the lines of the manifest that a shard has, or a part of one.

    Each column has one type, so that any reader of JSON lines makes a table of them: a further
    column of type json is text here too.

    Args:
        index: Number of the shard, from 0.
        shard: Its rows.
        digests: Of each row's audio, as bytes of the file.
        first: Number of the first row in the shard.
    """
    frames, further = shard.num_frames.tolist(), shard.as_stored()
    lines = []
    for row, path in enumerate(shard.path):
        # put together here: json makes itself an encoder for each line
        key = "" if shard.key is None else f'"key":{_quoted(shard.key[row])},'
        seconds = float(shard.seconds[row])
        line = (
            f'{{"path":{_quoted(path)},{key}"shard":{index},"row":{first + row},'
            f'"frames":{frames[row]},"seconds":{seconds!r},"digest":"{digests[row]}"'
        )
        more = line_of({name: values[row] for name, values in further.items()}) if further else "{}"
        lines.append(line + ("}" if more == "{}" else "," + more[1:]))
    return lines


def line_of(row: Mapping[str, Any]) -> str:
    """Return a line of JSON, in ASCII, without its end.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    return _ENCODER.encode(row)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="ascii") as file:
        for line in lines:
            file.write(line + "\n")


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
