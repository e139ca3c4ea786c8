"""Plain threads for kernels that release the GIL.

Numba's own layers abort when two Python threads call parallel code at once, or after a fork; plain
threads do not. The calls of a kernel take its work from memory that they share, so a result never
depends on their number. The caller makes calls until all are made, and waits only for helpers that
have begun. If no helper comes (all are busy, or the interpreter is shutting down), the caller does
everything, so nothing here can hang.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

compile_lock = threading.Lock()
"""Held while a kernel is compiled. A fork waits for it, because compilers hold their own locks."""

Tasks = deque[Callable[[], None]]


def call_at_once(run: Callable[[], None], times: int) -> None:
    """Call `run` `times` times, on the caller's thread and any helpers that are free.

    Returns or raises only when every call that has begun has ended: calls write to the caller's
    arrays.
    """
    tasks: Tasks = deque([run] * times)
    shares = [_Share(tasks) for _ in range(times - 1)]
    try:
        _start_helpers(len(shares))
        _offer(shares)
        _work(tasks)
    finally:
        tasks.clear()  # after an interrupt no more calls begin
        _wait(shares)
    for share in shares:
        if share.error is not None:
            raise share.error


def _work(tasks: Tasks) -> None:
    while True:
        try:
            task = tasks.popleft()  # atomic, as `clear` is
        except IndexError:
            return
        task()


class _Share:
    """What one helper may take of a call's work."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.begun = self.ended = False
        self.done = threading.Lock()
        self.done.acquire()
        self.error: BaseException | None = None

    def work(self) -> None:
        self.begun = True  # set before it looks for work: a caller that left none may miss it
        try:
            _work(self.tasks)
        except BaseException as error:
            self.tasks.clear()
            self.error = error
        finally:
            self.ended = True
            self.done.release()


def _wait(shares: list[_Share]) -> None:
    """Wait for all shares that have begun, through any interrupts; then raise the last of these."""
    interrupt: BaseException | None = None
    for share in shares:
        while share.begun and not share.ended:
            try:
                share.done.acquire()
            except BaseException as error:  # whatever a signal handler raises
                interrupt = error
    if interrupt is not None:
        raise interrupt


_helpers = 0
_helpers_lock = threading.Lock()
_offers: SimpleQueue[_Share] = SimpleQueue()


def _start_helpers(count: int) -> None:
    """Start helpers until there are `count`, or the system refuses more."""
    global _helpers
    if _helpers >= count:
        return
    with _helpers_lock:
        while _helpers < count:
            _helpers += 1
            try:
                # A daemon: it waits for work forever, so nothing can join it.
                threading.Thread(
                    target=_help, args=(_offers,), name=f"ast-fast-{_helpers}", daemon=True
                ).start()
            except RuntimeError:  # no more threads, or the interpreter is shutting down
                _helpers -= 1
                return


def _offer(shares: list[_Share]) -> None:
    for share in shares:
        if _offers.qsize() >= _helpers and not _withdraw_ended():
            return  # all are busy: offers would pile up
        _offers.put(share)


def _withdraw_ended() -> bool:
    """Make room by taking back the oldest offer, unless its call still has work.

    A short call ends before a helper has woken; its offer must not block the next call's.
    """
    try:
        oldest = _offers.get_nowait()
    except Empty:  # a helper was faster
        return True
    has_ended = not oldest.tasks
    if not has_ended:
        _offers.put(oldest)
    return has_ended


def _help(offers: SimpleQueue[_Share]) -> None:
    while True:
        offers.get().work()


def _start_anew() -> None:
    """Forget the parent's threads, which a fork does not copy."""
    global _helpers, _helpers_lock, _offers
    _helpers, _helpers_lock, _offers = 0, threading.Lock(), SimpleQueue()
    compile_lock.release()


os.register_at_fork(
    before=compile_lock.acquire, after_in_parent=compile_lock.release, after_in_child=_start_anew
)
