"""torch.randn's float32 on a CPU: the same draws from the same generator, in vectors.

numba_mersenne.py has the arithmetic; this file has the generator's state, and the memory.
"""

from __future__ import annotations

import threading
from functools import cache

import torch
from torch import Tensor

from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels.fbank.numba_mersenne import (
    BLOCK,
    STATE,
    STATE_BYTES,
    compiled_normals,
    compiled_words,
)

LEAST = 16
"""Numbers from which on torch draws in this way."""

KEPT = 2**22
"""Most numbers whose memory a thread keeps: that of clips of 100 s."""


def draw(count: int, room: int = 0) -> Tensor:
    """Return what torch.randn(count) would, from torch's generator, which goes on as after it.

    Args:
        count: Numbers to draw.
        room: Numbers, at least, that may be read from the result's beginning on: those from
            `count` on mean nothing.
    Returns:
        Float32, shape (count,); a later call of the same thread overwrites it.
    """
    drawn = draw_words(count, room)
    if drawn.is_floating_point():
        return drawn
    compiled_normals(source_digest()).ctypes(drawn.data_ptr(), count)
    return drawn.view(torch.float32)


def draw_words(count: int, room: int = 0) -> Tensor:
    """Draw as `draw` does, but only the words, int32: `write_normals` makes normals of any part.

    Fewer than 16 numbers, and those of a generator that this file does not know, are normals of
    torch's own, float32.
    """
    if count < LEAST or not _is_known():
        normals = _empty(max(count, room))[:count]
        return torch.randn(count, dtype=torch.float32, device="cpu", out=normals)
    while True:
        before = torch.get_rng_state()
        after = before.clone()
        line = _memory(_line(count) + max(room - count, 0))
        first = _fill(after, line, count)
        # Another thread may have drawn meanwhile; its numbers are its own.
        if torch.equal(torch.get_rng_state(), before):
            torch.set_rng_state(after)
            return line.view(torch.int32)[first : first + count]


class _OfThread(threading.local):
    memory: Tensor | None = None


_of_thread = _OfThread()


def _memory(size: int) -> Tensor:
    """Return memory of a size, kept for the thread's next call."""
    kept = _of_thread.memory
    if kept is not None and kept.numel() >= size:
        return kept
    memory = _empty(size)
    _of_thread.memory = memory if size <= KEPT else None
    return memory


def _empty(size: int) -> Tensor:
    """Return uninitialised float32 on the CPU, whatever torch's defaults are."""
    return torch.empty(size, dtype=torch.float32, device="cpu")


def _line(count: int) -> int:
    """Return the words of memory that `count` normals need: whole states, and vectors beyond."""
    return (2 + (count + BLOCK) // STATE) * STATE + STATE + BLOCK


def _fill(state: Tensor, line: Tensor, count: int) -> int:
    """Draw into a line of memory by a state, which goes on; return where the words begin."""
    words = compiled_words(source_digest())
    first: int = words.ctypes(state.data_ptr(), line.data_ptr(), count)
    return first


@cache
def _is_known() -> bool:
    """Say whether torch's generator and its normals are those that this file knows.

    Two draws from a generator of its own are compared, the second from the middle of a state.
    """
    generator = torch.Generator().manual_seed(2**63 + 12345)
    state = generator.get_state()
    if state.numel() != STATE_BYTES:
        return False
    for count in (2003, 1024):
        line = _empty(_line(count))
        drawn = line[_fill(state, line, count) :][:count]
        compiled_normals(source_digest()).ctypes(drawn.data_ptr(), count)
        expected = torch.randn(count, generator=generator, dtype=torch.float32, device="cpu")
        close = torch.allclose(drawn, expected, rtol=1e-5, atol=1e-5)
        if not (close and torch.equal(state, generator.get_state())):
            return False
    return True
