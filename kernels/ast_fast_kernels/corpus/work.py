"""Make one shard: read its items, decode them, extract their rows, write the shard and record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.corpus.formats import Shard, load_format, publish_shard, to_dtype
from ast_fast_kernels.corpus.inputs.columns import typed
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.corpus.manifest import ShardFiles, manifest_lines
from ast_fast_kernels.corpus.plan import Plan
from ast_fast_kernels.corpus.reading import Reader, Waveform, rows_of
from ast_fast_kernels.corpus.records import ShardLines, ShardRecord, write_record


class Watch:
    """Is told how a shard comes on; this one does nothing."""

    def begins(self, index: int) -> None:
        """Note that an item is about to be read; its index is that within the shard."""

    def ends(self, seconds: float, failed: Mapping[str, Any] | None) -> None:
        """Note that an item is done: its seconds of audio, or its line of failed.jsonl."""


@dataclass(frozen=True)
class Progress:
    """How far a shard at hand is."""

    shard: int
    files: int = 0
    seconds: float = 0.0
    """Of audio."""
    bad: int = 0


@dataclass(frozen=True)
class Row:
    """An item's features as they are stored, and what is known of its audio."""

    item: Item
    features: NDArray[Any]
    seconds: float
    digest: str


def make_shard(
    plan: Plan, k: int, *, watch: Watch | None = None, spoiled: Mapping[int, str] | None = None
) -> ShardRecord:
    """Make a shard and its record; files that are there already are replaced.

    The same bytes come out whoever makes it and however often. Every file exists whole or not at
    all, the record last.

    Args:
        plan: The run's plan.
        k: Number of the shard.
        watch: Is told of each item.
        spoiled: Index within the shard → why an item is not to be read: it ended its process.
    Raises:
        OSError: The shard cannot be written.
    """
    failed: list[dict[str, Any]] = []
    rows = list(_Rows(plan, k, watch or Watch(), spoiled or {}, failed))
    shard = _shard(plan, rows)
    manifest: list[dict[str, Any]] = []
    files = None
    if rows:
        written = publish_shard(load_format(plan.format), plan.out, k, shard)
        files = ShardFiles.of(k, shard, written)
        manifest = manifest_lines(k, shard, [row.digest for row in rows])
    record = ShardRecord(k, len(rows), len(failed), sum(shard.seconds))
    write_record(plan.record_path(k), record, ShardLines(manifest, failed, files))
    return record


def try_item(plan: Plan, k: int, index: int) -> None:
    """Read one item of a shard and extract its row, to see whether that ends this process."""
    item = plan.items(k)[index]
    with suppress(BadAudioError):
        rows_of(plan.extractor, [Reader(plan).read(item)])


class _Rows:
    """The rows of a shard's good items; the lines of the others go to `failed`."""

    def __init__(
        self,
        plan: Plan,
        k: int,
        watch: Watch,
        spoiled: Mapping[int, str],
        failed: list[dict[str, Any]],
    ) -> None:
        self._plan, self._k = plan, k
        self._watch, self._spoiled, self._failed = watch, spoiled, failed

    def __iter__(self) -> Iterator[Row]:
        extractor, reader = self._plan.extractor, Reader(self._plan)
        waiting: list[tuple[Item, Waveform]] = []
        for index, item in enumerate(self._plan.items(self._k)):
            self._watch.begins(index)
            if extractor.is_random:
                np.random.seed([self._k, index])  # noqa: NPY002 - what dither draws from
            try:
                if reason := self._spoiled.get(index) or item.bad:
                    raise BadAudioError(reason)
                waiting.append((item, reader.read(item)))
            except BadAudioError as error:
                self._fail(item, str(error))
                continue
            if len(waiting) == extractor.batch_size:
                yield from self._extract(waiting)
                waiting = []
        yield from self._extract(waiting)

    def _extract(self, waiting: list[tuple[Item, Waveform]]) -> Iterator[Row]:
        if not waiting:
            return
        plan = self._plan
        rows = rows_of(plan.extractor, [waveform for _, waveform in waiting])
        for (item, waveform), features in zip(waiting, rows, strict=True):
            seconds = waveform.seconds
            if not len(features):
                self._fail(item, f"is too short for one frame: {seconds:.4g} s")
                continue
            try:
                stored = to_dtype(features, plan.dtype)
            except ValueError as error:
                self._fail(item, f"cannot be stored: {error}")
                continue
            self._watch.ends(seconds, None)
            yield Row(item, stored, seconds, waveform.digest)

    def _fail(self, item: Item, reason: str) -> None:
        line = failed_line(item, reason)
        self._failed.append(line)
        self._watch.ends(0.0, line)


def _shard(plan: Plan, rows: list[Row]) -> Shard:
    columns = {
        name: [typed(row.item.columns.get(name), kind) for row in rows]
        for name, kind in plan.types.items()
    }
    return Shard(
        [row.item.path for row in rows],
        [row.features for row in rows],
        [row.seconds for row in rows],
        width=plan.extractor.width,
        dtype=plan.dtype,
        ragged=plan.extractor.ragged,
        key=[row.item.key or "" for row in rows] if plan.has_keys else None,
        columns=columns,
        types=plan.types,
        facts=plan.facts,
    )


def failed_line(item: Item, reason: str) -> dict[str, Any]:
    """Return an item's line of failed.jsonl."""
    line: dict[str, Any] = {"path": item.path}
    if item.path_bytes is not None:
        line["path_bytes"] = item.path_bytes
    if item.key is not None:
        line["key"] = item.key
    if item.start or item.duration is not None:
        line |= {"start": item.start, "duration": item.duration}
    return {**line, "reason": reason}
