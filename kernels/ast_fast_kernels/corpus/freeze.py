"""Write an input down as it is found, so that a run can be resumed: one item a line, in shards."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from ast_fast_kernels.corpus.formats.shard import ColumnType
from ast_fast_kernels.corpus.inputs import ColumnTypes, Input
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.text import one_name

SHARD_BYTES = 512 * 2**20
"""Bytes of audio files after which a shard ends, however few they are: it is what a kill costs."""
FIRST_SIZE = 32
"""Most items of the first shards, so that a small corpus keeps every process busy."""
OF_ONE_SIZE = 16
"""Shards after which the most items of a shard double, up to its limit."""
MOST_DOUBLINGS = 32
SPAN_BYTES = 32000
"""Counted for a second of a span: those of 16 kHz and 16 bits."""


@dataclass(frozen=True)
class Frozen:
    """An input that was written down."""

    types: dict[str, ColumnType]
    has_keys: bool
    offsets: list[int]
    """Where each shard's first item is in the list, in bytes; then the list's end."""
    num_items: int
    digest: str
    """SHA-256 of the list."""


def freeze(
    given: Input, path: Path, shard_size: int, advance: Callable[[int], None] = lambda _: None
) -> Frozen:
    """Write the items of an input to a list, whole or not at all.

    A shard ends after `shard_size` items (the first ones sooner), or as soon as its files have
    SHARD_BYTES. Memory holds 8 bytes for an item's key, and 8 for a shard.

    Args:
        given: The input.
        path: The list.
        shard_size: Most items of a shard.
        advance: Is called with the number of items that were read since.
    Raises:
        InputError: There is no item, two have one key, only some have one, a column's text is not
            valid Unicode or its number not finite, or the input itself cannot be read.
    """
    types, keys = ColumnTypes(given.has_cells), _Keys()
    offsets, end, num_items = [0], 0, 0
    in_shard = weight = 0
    digest = sha256()
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for item in map(_checked, given.items):
            doublings = min((len(offsets) - 1) // OF_ONE_SIZE, MOST_DOUBLINGS)
            most = min(shard_size, FIRST_SIZE << doublings)
            if in_shard == most or (in_shard and weight >= SHARD_BYTES):
                offsets.append(end)
                in_shard = weight = 0
            types.add(item.columns)
            keys.add(item)
            line = _encoded(item)
            file.write(line)
            digest.update(line)
            end += len(line)
            num_items, in_shard = num_items + 1, in_shard + 1
            weight += _weight(item, given.root)
            advance(1)
        if not num_items:
            raise InputError("INPUT must hold audio, got none")
        offsets.append(end)
        file.flush()
        keys.check(lambda: _keys_in(temporary))
    return Frozen(types.types, keys.are_used, offsets, num_items, digest.hexdigest())


def _checked(item: Item) -> Item:
    """Return an item as it is written down: with its span as columns, and a name in Unicode."""
    if item.start or item.duration is not None:
        span = {"start": item.start, "duration": item.duration}
        known = {name: float(value) for name, value in span.items() if value is not None}
        item = replace(item, columns={**known, **item.columns})
    if "\0" in item.path:
        return replace(item, bad="has a name with a NUL, as no file has")
    try:
        item.path.encode()
    except UnicodeEncodeError:
        name = _bytes_of(item.path)
        return replace(
            item,
            path=name.decode(errors="replace"),
            path_bytes=name.hex(),
            bad="has a name that is not UTF-8",
        )
    return item


def _bytes_of(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:  # half a character that JSON wrote: no byte of a file's name
        return name.encode(errors="surrogatepass")


def _encoded(item: Item) -> bytes:
    try:
        return item.to_line().encode() + b"\n"
    except ValueError as error:  # of UTF-8, or of JSON
        raise InputError(
            f"the columns of {one_name(item.path)} must be valid Unicode and finite: {error}"
        ) from error


def _weight(item: Item, root: Path) -> int:
    """Return about how many bytes of audio an item has; 0 if nobody knows."""
    if item.duration is not None:
        return int(item.duration * SPAN_BYTES)
    if item.size is not None:
        return item.size
    try:
        return os.stat(os.path.join(root, item.path)).st_size
    except (OSError, ValueError):
        return 0


class _Keys:
    """Finds keys that occur twice, of any number of items, by 8 bytes of each one's digest."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._num_items = 0

    @property
    def are_used(self) -> bool:
        return len(self._digests) > 0

    def add(self, item: Item) -> None:
        if item.key is not None:
            found = sha256(item.key.encode(errors="surrogatepass")).digest()
            self._digests.append(int.from_bytes(found[:8], "little"))
        self._num_items += 1
        if len(self._digests) not in (0, self._num_items):
            raise InputError(
                f"every item of the input must have a key, or none; see {one_name(item.path)}, "
                f"item {self._num_items}"
            )

    def check(self, keys: Callable[[], Iterator[str]]) -> None:
        """Raise if two of the keys are the same; read them again where digests are."""
        digests = np.sort(np.frombuffer(self._digests, np.uint64))
        twice = set(digests[1:][digests[1:] == digests[:-1]].tolist())
        seen: set[str] = set()
        for key in keys() if twice else ():
            if key in seen:
                raise InputError(f"keys of the input must differ, got {one_name(key)} twice")
            if int.from_bytes(sha256(key.encode()).digest()[:8], "little") in twice:
                seen.add(key)


def _keys_in(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for line in file:
            yield Item.from_line(line).key or ""
