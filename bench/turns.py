"""Turns of a benchmark: candidates one after the other, each when the one before has gone quiet.

Needs nothing but the standard library, so that another interpreter's candidates can use it too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PAUSE_SECONDS, MOST_PAUSES = 0.005, 60


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
