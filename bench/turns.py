"""Turns of a benchmark: candidates one after the other, each when the one before has gone quiet.

Needs nothing but the standard library, so that another interpreter's candidates can use it too.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PAUSE_SECONDS, MOST_PAUSES = 0.005, 60

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_KEPT = 32 << 20


def keep_freed_memory() -> None:
    """Make malloc keep what is freed as it does in a process that has run for a while.

    glibc raises these thresholds by itself as blocks are freed, to 32 MiB and twice that at most.
    Until it has, every call pays for fresh pages, and how soon it has depends on what ran before.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
            mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT)


def settle() -> None:
    """Return when this process's threads sleep.

    OpenMP's and OpenBLAS's threads go on spinning for a while after a parallel region, on a core
    that the next candidate would be measured on.
    """
    for _ in range(MOST_PAUSES):
        before = time.process_time()
        time.sleep(PAUSE_SECONDS)
        if time.process_time() - before < PAUSE_SECONDS / 10:
            return


@dataclass(frozen=True)
class Way:
    """One way of calling a library on all inputs of a case."""

    turn: Callable[[], float | None]
    """Runs every input once; returns the seconds it took where it has its own clock."""
    features: Callable[[], Any]
    """Runs every input once and returns the features, (clips, num_frames, num_mel_bins)."""
    threads: int
    """Threads inside one call, for torch and BLAS."""
    settle: Callable[[], None] = settle

    def seconds(self) -> float:
        """Return how long a turn takes."""
        begin = time.perf_counter()
        own = self.turn()
        return time.perf_counter() - begin if own is None else own
