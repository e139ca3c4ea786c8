"""Shards that appear whole or not at all, after what was written has been read back."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ast_fast_kernels.corpus.formats.shard import Format, Rows, Shard
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.sealed import digest_of_file


def publish_shard(form: Format, folder: Path, index: int, shard: Shard) -> dict[str, str]:
    """Write a shard into a folder, verify it, and give its files their names.

    A killed process leaves the shard's files whole or absent; writing it again gives the same
    bytes.

    Args:
        form: The format.
        folder: An existing folder.
        index: Number of the shard, from 0.
        shard: Its rows.
    Returns:
        The name of each file → the SHA-256 of its bytes.
    Raises:
        OSError: A file could not be written, or was not read back as it was written.
    """
    names = form.file_names(index)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
    with ExitStack() as stack:
        paths = [stack.enter_context(atomic_write(folder / name)) for name in names]
        form.write(paths, shard)
        if not _holds(form.open(paths), shard):
            where = folder / names[0]
            raise OSError(f"{where}: what was written is not what was read back; check the disk")
        return {name: digest_of_file(path) for name, path in zip(names, paths, strict=True)}


def _holds(rows: Rows, shard: Shard) -> bool:
    """Return whether rows read back are those of a shard, bit for bit."""
    if len(rows) != len(shard):
        return False
    return all(
        np.array_equal(_bits(rows[row]), _bits(written))
        for row, written in enumerate(shard.features)
    )


def _bits(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float16 | np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")
