"""The rows of a shard as they come, in parts of some MiB: each is written before the next is made.

So a shard of any size takes the memory of a part, and its values are in one array from the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.corpus.formats import Shard, to_dtype
from ast_fast_kernels.corpus.inputs.columns import typed
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.corpus.plan import Plan

PART_VALUES = 2**21
"""Most values of a part of several rows: 4 MiB of float16, which is a record batch of Arrow."""


@dataclass(frozen=True)
class Row:
    """What is known of an item's audio."""

    item: Item
    seconds: float
    digest: str


@dataclass(frozen=True)
class Part:
    """Some rows of a shard, one behind the other."""

    shard: Shard
    digests: list[str]
    """Of each row's audio."""


class Parts:
    """Collects rows until they are a part.

    Args:
        plan: The run's plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._room: NDArray[Any] = np.empty(PART_VALUES, plan.dtype)
        self._values = self._room
        self._used = 0
        self._rows: list[Row] = []
        self._features: list[NDArray[Any]] = []

    def has_room(self, features: NDArray[Any]) -> bool:
        """Return whether the part takes features besides those that it has."""
        return not self._rows or self._used + features.size <= PART_VALUES

    def add(self, row: Row, features: NDArray[np.float32]) -> None:
        """Add a row, for which there is room.

        Raises:
            ValueError: Its features cannot be stored.
        """
        end = self._used + features.size
        if end > len(self._values):
            self._values = np.empty(features.size, self._plan.dtype)
        out = self._values[self._used : end].reshape(features.shape)
        self._features.append(to_dtype(features, self._plan.dtype, out))
        self._rows.append(row)
        self._used = end

    def take(self) -> Part | None:
        """Return the part, and begin another in the same memory; None if it has no rows."""
        rows = self._rows
        if not rows:
            return None
        plan = self._plan
        columns = {
            name: [typed(row.item.columns.get(name), kind) for row in rows]
            for name, kind in plan.types.items()
        }
        shard = Shard(
            [row.item.path for row in rows],
            self._features,
            [row.seconds for row in rows],
            width=plan.extractor.width,
            dtype=plan.dtype,
            ragged=plan.extractor.ragged,
            key=[row.item.key or "" for row in rows] if plan.has_keys else None,
            columns=columns,
            types=plan.types,
            facts=plan.facts,
            values=self._values[: self._used],
        )
        self._values, self._used = self._room, 0
        self._rows, self._features = [], []
        return Part(shard, [row.digest for row in rows])
