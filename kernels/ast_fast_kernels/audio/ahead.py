"""Work on what comes next, in order, on several threads of which the caller is one.

A pool of futures would wake the caller for every item, though it has nothing to do but ask for the
next: with work of half a millisecond, that takes as long as a second thread saves. Here the caller
works too, unless the item that it needs is done.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Job(Generic[Item, Result]):
    """One item, and what came of it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.result: Result
        self.error: BaseException | None = None
        self.ended = threading.Lock()
        self.ended.acquire()

    def run(self, work: Callable[[Item], Result]) -> None:
        try:
            self.result = work(self.item)
        except BaseException as error:
            self.error = error
        finally:
            self.ended.release()


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result]:
    """Yield `work(item)` of each item, in order.

    At most `threads` + `ahead` results are under way or wait. Items are taken on the caller's
    thread. When the caller stops, the threads end after the item that each has begun.

    Args:
        work: Called by several threads at once.
        items: Taken as far as the work has come.
        threads: At least 1, the caller's own; that one works only when a result is asked for.
        ahead: Items beyond those that are worked on.
    Raises:
        Exception: What `work` raised for an item, once those before it are yielded.
    """
    if threads == 1:
        yield from map(work, items)
        return
    iterator = iter(items)
    waiting: SimpleQueue[_Job[Item, Result] | None] = SimpleQueue()
    under_way: deque[_Job[Item, Result]] = deque()
    helpers = [
        # daemons: an iterator that is never closed does not keep the interpreter from its end
        threading.Thread(target=_help, args=(work, waiting), name="ast-fast-files", daemon=True)
        for _ in range(threads - 1)
    ]
    try:
        for helper in helpers:
            helper.start()
        while True:
            for item in islice(iterator, threads + ahead - len(under_way)):
                job: _Job[Item, Result] = _Job(item)
                under_way.append(job)
                waiting.put(job)
            if not under_way:
                return
            first = under_way.popleft()
            _bring_about(first, work, waiting)
            if first.error is not None:
                raise first.error
            yield first.result
    finally:
        _take_back(waiting)
        for _ in helpers:
            waiting.put(None)
        for helper in helpers:
            if helper.ident is not None:
                helper.join()


def _help(work: Callable[[Item], Result], waiting: SimpleQueue[_Job[Item, Result] | None]) -> None:
    while (job := waiting.get()) is not None:
        job.run(work)


def _bring_about(
    needed: _Job[Item, Result],
    work: Callable[[Item], Result],
    waiting: SimpleQueue[_Job[Item, Result] | None],
) -> None:
    """Return when a job has ended; until then, do others that wait, or itself."""
    while not needed.ended.acquire(blocking=False):
        try:
            job = waiting.get_nowait()
        except Empty:
            needed.ended.acquire()
            return
        if job is not None:
            job.run(work)


def _take_back(waiting: SimpleQueue[_Job[Item, Result] | None]) -> None:
    try:
        while True:
            waiting.get_nowait()
    except Empty:
        return
