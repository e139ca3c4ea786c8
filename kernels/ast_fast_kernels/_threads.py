"""Plain threads for kernels that release the GIL.

Numba's own layers abort when two Python threads call parallel code at once, or after a fork; a
pool of ordinary threads does neither. Work is split into one range a thread, so a result never
depends on how many there are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise


def num_threads() -> int:
    """Return how many threads a call may use: torch's number, where torch is loaded."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else len(os.sched_getaffinity(0))


def parallel_for(run: Callable[[int, int], None], count: int, grain: int, threads: int) -> None:
    """Call `run(first, last)` over ranges that cover 0..count, at most `threads` at once.

    The calling thread takes the first range. Ranges hold at least `grain` items, where there are
    enough. An exception in any of them is raised here, after all have ended.
    """
    parts = max(1, min(threads, count // grain))
    bounds = [count * part // parts for part in range(parts + 1)]
    others = [_pool(os.getpid()).submit(run, first, last) for first, last in pairwise(bounds[1:])]
    try:
        run(bounds[0], bounds[1])
    finally:
        for other in others:
            other.exception()
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return this process's pool; a forked child makes its own, the parent's threads are gone."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ast-fast")
