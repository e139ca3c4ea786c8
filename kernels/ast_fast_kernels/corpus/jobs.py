"""One machine: processes that make whole shards, one thread each, and outlive none of their files.

A decoder may crash, and the system may kill a process that takes too much memory. A shard whose
process ended is made again by another. If that ends too, the file at hand is tried by itself: if it
ends its process once more it counts as bad, and the shard is made without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ast_fast_kernels.cores import available_cores
from ast_fast_kernels.corpus.flush import Flusher
from ast_fast_kernels.corpus.plan import Plan
from ast_fast_kernels.corpus.records import ShardRecord
from ast_fast_kernels.corpus.work import Progress, Watch, make_shard, try_item
from ast_fast_kernels.errors import InputError

TOLD_EVERY = 0.25
"""Seconds between two messages of a process about the shard at hand."""
MOST_LOSSES = 4
"""Times that processes may end over a shard, or before their first, before the run ends."""

Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class _Task:
    """A shard to make, or first one of its items to try."""

    shard: int
    spoiled: Mapping[int, str]
    tried: int | None = None


def make_shards(
    plan: Plan, todo: Sequence[int], jobs: int, tell: Tell = lambda _: None
) -> Generator[ShardRecord, None, None]:
    """Make shards in processes of this machine, and yield their records as they are finished.

    When the iterator is closed, no process is left.

    Args:
        plan: The run's plan.
        todo: Numbers of the shards.
        jobs: Processes; 0 is one for each core that this process may use. One alone makes the
            shards in this process, which a decoder's crash then ends.
        tell: Is called now and then with the progress of a shard at hand.
    Raises:
        InputError: A shard ended its process time and again, and none of its files does alone.
        OSError: A shard cannot be written.
    """
    jobs = jobs or available_cores()
    if jobs == 1:
        with Flusher() as flusher:
            for k in todo:
                yield make_shard(plan, k, flusher, watch=_Counts(k, tell))
        return
    crew = _Crew(plan, tell)
    try:
        yield from crew.make(deque(todo), min(jobs, len(todo)))
    finally:
        crew.dismiss()


class _Counts(Watch):
    """Counts a shard's items, and tells of them now and then."""

    def __init__(self, shard: int, tell: Tell, at_hand: Any = None) -> None:
        self._shard, self._tell = shard, tell
        self._at_hand = at_hand
        self._files, self._seconds, self._bad = 0, 0.0, 0
        self._told = time.monotonic()

    def begins(self, index: int) -> None:
        if self._at_hand is not None:
            self._at_hand.value = index

    def ends(self, seconds: float, failed: Mapping[str, Any] | None) -> None:
        self._files += 1
        self._seconds += seconds
        self._bad += failed is not None
        now = time.monotonic()
        if now - self._told >= TOLD_EVERY:
            self._told = now
            self._tell(Progress(self._shard, self._files, self._seconds, self._bad))


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    at_hand: Any
    """Index of the item at hand, in memory that outlives the process; -1 before the first."""
    task: _Task | None = None
    has_begun: bool = False


class _Crew:
    """The processes of a run."""

    def __init__(self, plan: Plan, tell: Tell) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._plan, self._tell = plan, tell
        self._workers: list[_Worker] = []
        self._losses: Counter[int] = Counter()
        self._spoiled: dict[int, dict[int, str]] = defaultdict(dict)
        self._failed_starts = 0

    def make(self, todo: deque[int], jobs: int) -> Iterator[ShardRecord]:
        """Yield the records of shards as they come."""
        tasks = deque(_Task(k, {}) for k in todo)
        while tasks or any(worker.task for worker in self._workers):
            busy = sum(worker.task is not None for worker in self._workers)
            while len(self._workers) < min(jobs, len(tasks) + busy):
                self._workers.append(self._hire())
            for worker in self._workers:
                if worker.task is None and tasks:
                    worker.task = tasks.popleft()
                    worker.at_hand.value = -1
                    with contextlib.suppress(OSError):  # it has ended: seen below
                        worker.connection.send(worker.task)
            yield from self._listen(tasks)

    def dismiss(self) -> None:
        """End every process at once: what they write is not there before it is whole."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        at_hand = self._context.RawValue(ctypes.c_int64, -1)
        process = self._context.Process(
            target=_work, args=(theirs, self._plan, at_hand), daemon=True
        )
        with _interrupts_blocked():  # a terminal sends them to every process; ours ends the others
            process.start()
        theirs.close()
        return _Worker(process, ours, at_hand)

    def _listen(self, tasks: deque[_Task]) -> Iterator[ShardRecord]:
        """Wait for messages, and take them; hand out the tasks of processes that ended again."""
        by_connection = {worker.connection: worker for worker in self._workers}
        for ready in wait(list(by_connection)):
            worker = by_connection[ready]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._lose(worker, tasks)
                continue
            worker.has_begun = True
            self._failed_starts = 0
            if isinstance(message, Progress):
                self._tell(message)
            elif isinstance(message, BaseException):
                raise message
            else:
                task, worker.task = worker.task, None
                if message is not None:
                    yield message
                elif task is not None:  # the file that was tried is not to blame
                    tasks.appendleft(_Task(task.shard, task.spoiled))

    def _lose(self, worker: _Worker, tasks: deque[_Task]) -> None:
        """Go on without a process that ended."""
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        how, task = _how_it_ended(worker.process.exitcode), worker.task
        if not worker.has_begun and worker.at_hand.value < 0:
            self._failed_starts += 1
            if self._failed_starts > MOST_LOSSES:
                raise InputError(f"processes of this machine end before they begin ({how})")
        if task is None:
            return
        k, index = task.shard, worker.at_hand.value
        self._tell(Progress(k))
        if task.tried is not None and index == task.tried:
            self._spoiled[k][task.tried] = f"ended the decoder ({how})"
            self._losses[k] = 0
            tasks.appendleft(_Task(k, dict(self._spoiled[k])))
            return
        self._losses[k] += 1
        if self._losses[k] > MOST_LOSSES:
            raise InputError(
                f"shard {k} ended its process {self._losses[k]} times ({how}), and no file of it "
                "does so alone; if memory ran out, lower --jobs or --shard-size"
            )
        tried = index if self._losses[k] > 1 and index >= 0 else None
        tasks.appendleft(_Task(k, task.spoiled, tried))


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {-exit_code}"
    return f"exit code {exit_code}"


def _work(connection: Connection, plan: Plan, at_hand: Any) -> None:
    """Do the tasks that come, in a process of its own, until the other one has gone."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of our kernels; each process has one core
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError), Flusher() as flusher:
        while True:
            task: _Task = connection.recv()
            try:
                connection.send(_done(plan, task, flusher, connection, at_hand))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                error.add_note(traceback.format_exc())
                _send_error(connection, error)


def _send_error(connection: Connection, error: Exception) -> None:
    """Send an error, or its text if it cannot be pickled."""
    try:
        connection.send(error)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception:
        connection.send(RuntimeError("".join(traceback.format_exception(error))))


def _done(
    plan: Plan, task: _Task, flusher: Flusher, connection: Connection, at_hand: Any
) -> ShardRecord | None:
    if task.tried is not None:
        at_hand.value = task.tried
        try_item(plan, task.shard, task.tried)
        return None
    watch = _Counts(task.shard, connection.send, at_hand)
    return make_shard(plan, task.shard, flusher, watch=watch, spoiled=task.spoiled)


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C within the block, and for good in processes that are started in it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
