"""Shards that appear whole or not at all, after what was written has been read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from ast_fast_kernels.corpus.formats.hashed import HashedFile
from ast_fast_kernels.corpus.formats.shard import Format, Shard
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.xxh3 import xxh3_of_file


def publish_shard(
    form: Format, folder: Path, index: int, parts: Iterable[Shard], *, durable: bool = True
) -> dict[str, str]:
    """Write a shard into a folder, verify it, and give its files their names.

    A killed process leaves the shard's files whole or absent; writing it again gives the same
    bytes.

    Args:
        form: The format.
        folder: An existing folder.
        index: Number of the shard, from 0.
        parts: Its rows, at least one part of them; each is written before the next is asked for.
        durable: Whether to wait until the files are on the disk; if not, a power cut can take them.
    Returns:
        The name of each file → the XXH3 of its bytes.
    Raises:
        OSError: A file could not be written, or was not read back as it was written.
    """
    names = form.file_names(index)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
    counted = _Counted(parts)
    with ExitStack() as stack:
        paths = [
            stack.enter_context(atomic_write(folder / name, durable=durable)) for name in names
        ]
        with ExitStack() as opened:
            files = [opened.enter_context(HashedFile(path)) for path in paths]
            form.write(files, counted)
        digests = [file.digest for file in files]
        if digests != list(map(xxh3_of_file, paths)) or len(form.open(paths)) != counted.rows:
            where = folder / names[0]
            raise OSError(f"{where}: what was written is not what was read back; check the disk")
        return dict(zip(names, digests, strict=True))


class _Counted:
    """Parts of a shard, and the number of their rows."""

    def __init__(self, parts: Iterable[Shard]) -> None:
        self._parts = parts
        self.rows = 0

    def __iter__(self) -> Iterator[Shard]:
        for part in self._parts:
            self.rows += len(part)
            yield part
