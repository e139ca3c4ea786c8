"""Memory for results: what the last results used, once their callers have dropped them.

malloc gives large blocks back to the system, at once (those beyond 32 MiB) or when many of them are
dropped together, and every page of a block that it fetches again costs a fault: where clips of a
batch were computed one by one, these took half of the time. So an array given here lies on a loan:
when the last array over it is gone, its memory waits for the next result of its size.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from functools import lru_cache
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


def lend(*shape: int) -> Float32Array:
    """Return an uninitialised float32 array that begins a cache line."""
    array, _ = lend_at(*shape)
    return array


def lend_at(*shape: int) -> tuple[Float32Array, int]:
    """Return such an array, and its address."""
    size = math.prod(shape)
    if size * FLOAT_BYTES >= LEAST_BYTES:
        whole = _rounded(size)
        if whole * FLOAT_BYTES <= MOST_BYTES:
            block = _waiting.take(whole)
            loan = block.loan.from_address(block.address)
            loan.block, loan.waiting = block, _waiting
            return np.ndarray(shape, np.float32, loan), block.address
    array = aligned(size)
    return array.reshape(shape), address_of(array) if size else 0


def _rounded(size: int) -> int:
    """Return a size raised by an eighth at most, so that clips of all lengths share a few sizes."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


class _Block:
    """An array's memory, and what its loans are."""

    def __init__(self, size: int) -> None:
        self.size, self.array = size, aligned(size)
        self.address, self.loan = address_of(self.array), _loan_of(size)


class _Waiting:
    """Blocks that wait for a result of their size; those of the size used last go last.

    Blocks come back wherever the last reference to an array ends, perhaps inside of these methods,
    and a fork may find another thread in them. So nobody waits for the lock: whoever does not get
    it leaves the memory to malloc.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: dict[int, list[_Block]] = {}
        self._size = 0  # of all blocks, in floats; more after an interrupt

    def take(self, size: int) -> _Block:
        """Return a block of this size: one that waits, or else a new one."""
        if self._lock.acquire(blocking=False):
            try:
                if blocks := self._blocks.get(size):
                    block = blocks.pop()
                    self._size -= size
                    return block
            finally:
                self._lock.release()
        return _Block(size)

    def put(self, block: _Block) -> None:
        """Have a block wait, and release others if all are more than MOST_BYTES."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._size += block.size
            blocks = self._blocks.pop(block.size, None) or []
            blocks.append(block)
            self._blocks[block.size] = blocks
            if self._size * FLOAT_BYTES > MOST_BYTES:
                self._release()
        finally:
            self._lock.release()

    def _release(self) -> None:
        """Give the blocks of sizes that were used longest ago back to malloc."""
        while self.num_bytes() > MOST_BYTES:
            size, blocks = next(iter(self._blocks.items()))
            if blocks:
                blocks.pop()
            if not blocks:
                del self._blocks[size]
        self._size = self.num_bytes() // FLOAT_BYTES

    def num_bytes(self) -> int:
        """Return how much memory waits."""
        return sum(size * len(blocks) for size, blocks in self._blocks.items()) * FLOAT_BYTES

    def start_anew(self) -> None:
        """Forget who held the lock: a fork does not copy other threads."""
        self._lock = threading.Lock()


_waiting = _Waiting()
os.register_at_fork(after_in_child=_waiting.start_anew)


@lru_cache(maxsize=64)
def _loan_of(size: int) -> Any:
    """Return what every array over a block of this size refers to.

    It is memory of ctypes', as Python's own classes have none, and no array, whose views could
    outlive it: numpy gives these the array below.
    """
    return type("Loan", (ctypes.c_float * size,), {"__del__": _give_back})


def _give_back(loan: Any) -> None:
    loan.waiting.put(loan.block)
