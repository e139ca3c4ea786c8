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


def medians_of_calls(
    benchmark: Any, calls: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Time calls that have run before, in turns, the last of them by pytest-benchmark too.

    A round may take minutes, so that nothing runs beside the turns.

    Returns:
        The median seconds of each, and what it returned at last.
    """
    *others, last = calls
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    outputs: dict[str, Any] = {}

    def turn(name: str) -> None:
        begin = time.perf_counter()
        outputs[name] = calls[name]()
        seconds[name].append(time.perf_counter() - begin)

    def before_the_last() -> None:
        for name in others:
            settle()
            turn(name)
        settle()

    benchmark.pedantic(turn, args=(last,), setup=before_the_last, rounds=rounds)
    return {name: statistics.median(times) for name, times in seconds.items()}, outputs


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
