"""Memory for results: what the last results used, once their callers have dropped them.

malloc gives large blocks back to the system, at once (those beyond 32 MiB) or when many of them are
dropped together, and every page of a block that it fetches again costs a fault: where clips of a
batch were computed one by one, these took half of the time. So an array given here lies on a loan:
when the last array over it is gone, its memory waits for the next result of its size.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.simd import address_of, aligned

Float32Array = npt.NDArray[np.float32]

LEAST_BYTES = 2**17
"""Smaller blocks stay with malloc, which keeps them."""

MOST_BYTES = 2**26
"""Most memory that waits, in all; glibc's malloc keeps as much at the end of its heap."""


def lend(size: int) -> Float32Array:
    """Return `size` uninitialised float32, aligned to a cache line."""
    if size * FLOAT_BYTES < LEAST_BYTES:
        return aligned(size)
    whole = _rounded(size)
    if whole * FLOAT_BYTES > MOST_BYTES:
        return aligned(size)
    return np.asarray(_Loan(_waiting.take(whole)))[:size]


def _rounded(size: int) -> int:
    """Return a size raised by an eighth at most, so that clips of all lengths share a few sizes."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


class _Block:
    """An array's memory, and how numpy finds it."""

    def __init__(self, size: int) -> None:
        self.size, self.array = size, aligned(size)
        self.interface: dict[str, Any] = {
            "version": 3,
            "typestr": self.array.dtype.str,
            "shape": (size,),
            "data": (address_of(self.array), False),
        }


class _Waiting:
    """Blocks that wait for a result of their size; those of the size used last go last.

    Blocks come back wherever the last reference to an array ends, perhaps inside of these methods,
    and a fork may find another thread in them. So nobody waits for the lock: whoever does not get
    it leaves the memory to malloc.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: dict[int, list[_Block]] = {}

    def take(self, size: int) -> _Block:
        """Return a block of this size: one that waits, or else a new one."""
        if self._lock.acquire(blocking=False):
            try:
                if blocks := self._blocks.get(size):
                    return blocks.pop()
            finally:
                self._lock.release()
        return _Block(size)

    def put(self, block: _Block) -> None:
        """Have a block wait, and release others if all are more than MOST_BYTES."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            blocks = self._blocks.pop(block.size, [])
            blocks.append(block)
            self._blocks[block.size] = blocks
            while self.num_bytes() > MOST_BYTES:
                size, blocks = next(iter(self._blocks.items()))
                blocks.pop()
                if not blocks:
                    del self._blocks[size]
        finally:
            self._lock.release()

    def num_bytes(self) -> int:
        """Return how much memory waits."""
        return sum(size * len(blocks) for size, blocks in self._blocks.items()) * FLOAT_BYTES

    def start_anew(self) -> None:
        """Forget who held the lock: a fork does not copy other threads."""
        self._lock = threading.Lock()


_waiting = _Waiting()
os.register_at_fork(after_in_child=_waiting.start_anew)


class _Loan:
    """What every array over a block refers to; no array itself, so none can outlive it."""

    def __init__(self, block: _Block) -> None:
        self._block, self._waiting = block, _waiting
        self.__array_interface__ = block.interface

    def __del__(self) -> None:
        self._waiting.put(self._block)
