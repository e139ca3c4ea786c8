"""Plain threads for kernels that release the GIL.

Numba's own layers abort when two Python threads call parallel code at once, or after a fork; a
pool of ordinary threads does neither. Work is split into one range a thread, so a result never
depends on how many there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise

compile_lock = threading.Lock()
"""Held while a kernel is compiled; a fork waits for it, since compilers hold locks of their own."""

_pool_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def parallel_for(run: Callable[[int, int], None], count: int, grain: int, threads: int) -> None:
    """Call `run(first, last)` over ranges that cover 0..count, at most `threads` at once.

    The calling thread takes the first range. Ranges hold at least `grain` items, where there are
    enough. Returns or raises only when every range has ended: they write to the caller's arrays.
    """
    parts = min(threads, count // grain)
    if parts <= 1:
        run(0, count)
        return
    bounds = [count * part // parts for part in range(parts + 1)]
    others: list[Future[None]] = []
    try:
        for first, last in pairwise(bounds[1:]):
            others.append(_submit(run, first, last))
        run(bounds[0], bounds[1])
    finally:
        _wait(others)
    for other in others:
        other.result()


def _submit(run: Callable[[int, int], None], first: int, last: int) -> Future[None]:
    try:
        return _executor().submit(run, first, last)
    except RuntimeError:  # the interpreter is shutting down and starts no thread any more
        run(first, last)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _wait(futures: list[Future[None]]) -> None:
    """Wait for all, through any number of interrupts; the last one is raised then."""
    interrupt: KeyboardInterrupt | None = None
    while True:
        try:
            wait(futures)
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ast-fast")
        return _pool


def _start_anew() -> None:
    """Forget the parent's threads, which a fork does not copy."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()
    compile_lock.release()


os.register_at_fork(
    before=compile_lock.acquire, after_in_parent=compile_lock.release, after_in_child=_start_anew
)
