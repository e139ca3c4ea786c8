"""Shards in Lhotse's Shar format: a list of cuts and a tar of their features.

`CutSet.from_shar(in_dir=...)` takes every file of a folder for one of a shard, so these have one of
their own. A tar is read from its beginning to its end, or at random: its members are not
compressed.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ast_fast_kernels.corpus.formats.hashed import HashedFile
from ast_fast_kernels.corpus.formats.mapped import array_at, map_file, npy_header
from ast_fast_kernels.corpus.formats.shard import Shard, Stored

OF_A_CUT = ("supervisions", "recording", "channel")
"""Further columns that become fields of the cut; the others become its custom fields."""


class SharFormat:
    """Shar: `cuts.000000.jsonl.gz` and `features.000000.tar`, in a folder `shar`."""

    mapped = True

    def file_names(self, index: int) -> tuple[str, ...]:
        """Return the names of the cuts and of their features."""
        return f"shar/cuts.{index:06d}.jsonl.gz", f"shar/features.{index:06d}.tar"

    def write(self, files: Sequence[HashedFile], parts: Iterable[Shard]) -> None:
        """Write both files.

        Raises:
            ValueError: The rows are vectors, or the facts lack the sample rate or the frame shift.
        """
        cuts, tar = files
        with gzip.GzipFile(filename="", mode="wb", fileobj=cuts, mtime=0) as zipped:
            for part in parts:
                _check(part)
                for row, features in enumerate(part.features):
                    manifest = _features_manifest(part, row)
                    zipped.write(_json_line(_cut(part, row, manifest)))
                    header = npy_header(features.shape, part.dtype)
                    values = np.ascontiguousarray(features).reshape(-1).view(np.uint8).data
                    _add(tar, f"{_cut_id(part, row)}.npy", header, values)
                    _add(tar, f"{_cut_id(part, row)}.json", _json_line(manifest))
        tar.write(bytes(2 * tarfile.BLOCKSIZE))
        tar.write(bytes(-tar.tell() % tarfile.RECORDSIZE))

    def open(self, paths: Sequence[Path]) -> SharRows:
        """Map the tar."""
        return SharRows(paths[1])


class SharRows:
    """Features of a tar of .npy files, as views of its mapped pages."""

    def __init__(self, path: Path) -> None:
        data = map_file(path)
        try:
            with tarfile.open(fileobj=pa.BufferReader(data), mode="r:") as tar:
                starts = [member.offset_data for member in tar if member.name.endswith(".npy")]
            self._arrays: list[Stored] = [array_at(data, start) for start in starts]
        except (tarfile.TarError, ValueError, OSError) as error:
            raise ValueError(f"{path} must be a tar of .npy files: {error}") from error

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, row: int) -> Stored:
        return self._arrays[row]

    @cached_property
    def num_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each row."""
        return np.array([len(array) for array in self._arrays], np.int32)


def _check(shard: Shard) -> None:
    missing = [name for name in ("sample_rate", "frame_shift") if name not in shard.facts]
    if missing or not shard.ragged:
        what = " and ".join(missing) if missing else "frames"
        raise ValueError(f"format lhotse needs features with {what}; use --format arrow")


def _cut_id(shard: Shard, row: int) -> str:
    """Return the name of a cut; Lhotse compares it with the member's path as pathlib has it."""
    return str(PurePosixPath(shard.path[row] if shard.key is None else shard.key[row]))


def _recording_id(shard: Shard, row: int) -> str:
    """Return a recording's name: that of its supervisions, with which Lhotse compares it."""
    said = shard.columns.get("supervisions")
    named = [given["recording_id"] for given in (said and said[row]) or ()]
    return named[0] if named else shard.path[row]


def _features_manifest(shard: Shard, row: int) -> dict[str, Any]:
    return {
        "type": "kaldi-fbank",
        "num_frames": len(shard.features[row]),
        "num_features": shard.width,
        "frame_shift": shard.facts["frame_shift"] / 1000,
        "sampling_rate": shard.facts["sample_rate"],
        "start": 0,
        "duration": shard.seconds[row],
        "storage_type": "shar",
        "storage_path": "",
        "storage_key": "",
        "recording_id": _recording_id(shard, row),
        "channels": 0,
    }


def _cut(shard: Shard, row: int, features: dict[str, Any]) -> dict[str, Any]:
    given = {name: values[row] for name, values in shard.columns.items()}
    known = {name: given.pop(name) for name in OF_A_CUT if given.get(name) is not None}
    return {
        "id": _cut_id(shard, row),
        "start": 0,
        "duration": shard.seconds[row],
        "channel": 0,
        "supervisions": [],
        "features": features,
        "custom": {"path": shard.path[row], **given},
        "type": "MonoCut",
        **known,
    }


def _json_line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode("ascii") + b"\n"


def _add(tar: HashedFile, name: str, *pieces: bytes | memoryview) -> None:
    """Append a member, of nobody and of the beginning of time; `tarfile` would copy its bytes."""
    member = tarfile.TarInfo(name)
    member.size = sum(map(len, pieces))
    tar.write(member.tobuf(tarfile.PAX_FORMAT))
    for piece in pieces:
        tar.write(piece)
    tar.write(bytes(-member.size % tarfile.BLOCKSIZE))
