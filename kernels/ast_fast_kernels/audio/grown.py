"""An array that grows at its end, in little more memory than it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GROWTH = 16
"""Of how many parts one is added at least when there is no room left."""


class Grown:
    """Blocks put together along their first axis, each copied once.

    `numpy.concatenate` holds everything twice. Where memory is asked of the system in pages, an
    array grows without a copy.
    """

    def __init__(self) -> None:
        self._values: NDArray[Any] | None = None
        self._count = 0

    def add(self, block: NDArray[Any]) -> None:
        """Take a block of the first one's dtype and further dimensions."""
        if self._values is None:
            self._values = np.empty_like(block, order="C")
        end = self._count + len(block)
        if end > len(self._values):
            room = max(end, self._count + self._count // GROWTH)
            self._resize(room)
        self._values[self._count : end] = block
        self._count = end

    def take(self) -> NDArray[Any]:
        """Return what was put together; at least one block must have been."""
        assert self._values is not None, "there is no block"
        self._resize(self._count)
        return self._values

    def _resize(self, count: int) -> None:
        assert self._values is not None
        # no view of it exists: blocks are copied into it, and it is given away once
        self._values.resize((count, *self._values.shape[1:]), refcheck=False)
