"""Times that can be compared: candidates take turns, so that a drifting machine drifts for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved_medians(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    synchronise: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Return each candidate's median time in seconds, after one round that is not counted.

    Args:
        candidates: What to time, by name; called in turn, `rounds` + 1 times each.
        rounds: Counted rounds.
        synchronise: Waits for a device before the clock is read, such as torch.cuda.synchronize.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            if synchronise is not None:
                synchronise()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}
