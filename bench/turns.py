"""Turns of a benchmark: each candidate runs after the threads of the one before have gone to sleep.

Uses only the standard library, so that candidates in another interpreter can use it too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PAUSE_SECONDS, MOST_PAUSES = 0.005, 60


def settle() -> None:
    """Wait until this process's threads sleep.

    Threads of OpenMP and OpenBLAS keep spinning for a while after a parallel region, on a core that
    the next candidate needs.
    """
    for _ in range(MOST_PAUSES):
        before = time.process_time()
        time.sleep(PAUSE_SECONDS)
        if time.process_time() - before < PAUSE_SECONDS / 10:
            return


def medians_of_calls(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of calls that have run before; a round may take minutes."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            settle()
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


@dataclass(frozen=True)
class Way:
    """One way of calling a library on all inputs of a case."""

    turn: Callable[[], float | None]
    """Runs every input once; returns the seconds if it has its own clock, else None."""
    features: Callable[[], Any]
    """Runs every input once and returns the features, (clips, num_frames, num_mel_bins)."""
    threads: int
    """Threads inside one call, for torch and BLAS."""
    settle: Callable[[], None] = settle

    def seconds(self) -> float:
        """Run a turn and return its seconds."""
        begin = time.perf_counter()
        own = self.turn()
        return time.perf_counter() - begin if own is None else own
