"""How a run ends early: signals, a full disk or memory, lost processes."""

from __future__ import annotations

import errno
import signal
import threading
from typing import Any, Self

from safetensors import SafetensorError

from ast_fast.machine.device import is_out_of_memory
from ast_fast.machine.distributed import is_lost_peer
from ast_fast.training.observers import Observer


class Terminated(KeyboardInterrupt):
    """SIGTERM, with which schedulers and `timeout` end a run; treated as Ctrl-C."""


class Interrupts(Observer):
    """Ends a run on Ctrl-C or SIGTERM (as `Terminated`), at the latest after the current step.

    Python ignores an exception that a signal's handler raises in a finalizer or in a callback from
    C. So it is raised again after the next step. Outside the main thread, nothing changes.
    """

    def __init__(self) -> None:
        self._came: KeyboardInterrupt | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_step(self, *_: object) -> None:
        """Raise a signal's exception again if it was lost."""
        if self._came is not None:
            raise self._came

    def _stop(self, number: int, _: object) -> None:
        self._came = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        raise self._came


def why_it_ended(error: BaseException) -> str | None:
    """Return why a run without a defect ended; None if the error may be a defect."""
    reason = exhausted_resource(error)
    if reason is None and is_lost_peer(error):
        return "another process of this run has ended"
    return reason


def exhausted_resource(error: BaseException) -> str | None:
    """Return what ran out, disk or memory, and what to do; None for any other error."""
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (isinstance(error, SafetensorError) and "No space left" in text):
        return "the disk is full: free some space"
    if is_out_of_memory(error):
        return "out of memory: lower training.batch_size or the model's size"
    return None
