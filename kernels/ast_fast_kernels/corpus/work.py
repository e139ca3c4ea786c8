"""Make one shard: read its items, decode them, extract their rows, write the shard and record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.corpus.flush import Flusher
from ast_fast_kernels.corpus.formats import Shard, load_format, publish_shard
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.corpus.manifest import ShardFiles, line_of, manifest_lines
from ast_fast_kernels.corpus.parts import Part, Parts, Row
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


def make_shard(
    plan: Plan,
    k: int,
    flusher: Flusher,
    *,
    watch: Watch | None = None,
    spoiled: Mapping[int, str] | None = None,
) -> ShardRecord:
    """Make a shard and its record; files that are there already are replaced.

    The same bytes come out whoever makes it and however often. Every file exists whole or not at
    all, the record last.

    Args:
        plan: The run's plan.
        k: Number of the shard.
        flusher: Sees to it that the shard reaches the disk.
        watch: Is told of each item.
        spoiled: Index within the shard → why an item is not to be read: it ended its process.
    Raises:
        OSError: The shard cannot be written, or one before could not be flushed.
    """
    plan.record_path(k).unlink(missing_ok=True)  # it is of the files that are replaced
    failed: list[dict[str, Any]] = []
    made = _Made(k, _Rows(plan, k, watch or Watch(), spoiled or {}, failed))
    parts = iter(made)
    files, paths = None, []
    if (first := next(parts, None)) is not None:
        form = load_format(plan.format)
        written = publish_shard(form, plan.out, k, chain((first,), parts), durable=False)
        paths = [plan.out / name for name in written]
        files = ShardFiles(k, len(made.seconds), made.frames, written)
    record = ShardRecord(k, len(made.seconds), len(failed), sum(made.seconds))
    lines = ShardLines(made.manifest, list(map(line_of, failed)), files)
    write_record(plan.unflushed_path(k), record, lines)
    flusher.add(paths, plan.unflushed_path(k))
    return record


def try_item(plan: Plan, k: int, index: int) -> None:
    """Read one item of a shard and extract its row, to see whether that ends this process."""
    item = plan.items(k)[index]
    with suppress(BadAudioError):
        rows_of(plan.extractor, [Reader(plan).read(item)])


class _Made:
    """The parts of a shard, and what is to be known of those that were made."""

    def __init__(self, k: int, parts: Iterable[Part]) -> None:
        self._k, self._parts = k, parts
        self.manifest: list[str] = []
        self.seconds: list[float] = []
        self.frames = 0

    def __iter__(self) -> Iterator[Shard]:
        for part in self._parts:
            shard = part.shard
            self.manifest += manifest_lines(self._k, shard, part.digests, len(self.manifest))
            self.seconds += shard.seconds
            self.frames += int(shard.num_frames.sum())
            yield shard


class _Rows:
    """The rows of a shard's good items, in parts; the lines of the others go to `failed`."""

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
        self._parts = Parts(plan)

    def __iter__(self) -> Iterator[Part]:
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
        yield from self._taken()

    def _taken(self) -> list[Part]:
        part = self._parts.take()
        return [] if part is None else [part]

    def _extract(self, waiting: list[tuple[Item, Waveform]]) -> Iterator[Part]:
        if not waiting:
            return
        rows = rows_of(self._plan.extractor, [waveform for _, waveform in waiting])
        for (item, waveform), features in zip(waiting, rows, strict=True):
            seconds = waveform.seconds
            if not len(features):
                self._fail(item, f"is too short for one frame: {seconds:.4g} s")
                continue
            if not self._parts.has_room(features):
                yield from self._taken()
            try:
                self._parts.add(Row(item, seconds, waveform.digest), features)
            except ValueError as error:
                self._fail(item, f"cannot be stored: {error}")
                continue
            self._watch.ends(seconds, None)

    def _fail(self, item: Item, reason: str) -> None:
        line = failed_line(item, reason)
        self._failed.append(line)
        self._watch.ends(0.0, line)


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
