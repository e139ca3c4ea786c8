"""Many machines: Ray's actors make shards, and write them into the output themselves.

Only numbers of shards, and what they came to, pass through Ray. An actor has one shard at hand; if
it is lost, with its process or its whole machine, another makes the shard. This is Ray's core: Ray
Data moves blocks of rows between processes, and here there are none to move.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ast_fast_kernels.console import complain
from ast_fast_kernels.cores import available_cores
from ast_fast_kernels.corpus.jobs import Tell
from ast_fast_kernels.corpus.maker import Expected, Greeting, Maker
from ast_fast_kernels.corpus.plan import Plan
from ast_fast_kernels.corpus.records import ShardRecord
from ast_fast_kernels.errors import InputError

HIRING_SECONDS = 2.0
"""Between two looks at whether the cluster has grown or shrunk."""
PATIENCE_SECONDS = 60.0
"""Without an actor, before this is said."""
MOST_LOSSES = 5
"""Times that a shard may be lost, or that actors may die at their start, before the run ends."""
CONNECT_SECONDS = 5.0
GPU_SHARE = 1 / 8
"""Least share of a GPU that an actor takes: as many decode for it at once."""
STORE_BYTES = 100 * 2**20
"""Ray's object store on this machine alone: little goes through it."""


@contextmanager
def connected(address: str, jobs: int) -> Iterator[None]:
    """Be connected to a Ray cluster within the block.

    Args:
        address: `auto` for the cluster of this machine or of RAY_ADDRESS, `local` for one of this
            machine alone that lasts as long as the block, or host:port of a head node.
        jobs: Processes of a cluster of this machine alone; 0 is one for each core that this
            process may use.
    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise InputError(
            "--ray needs Ray, which is not installed; pip install 'ast-fast-kernels[ray]'"
        ) from error
    if ray.is_initialized():
        yield  # the caller's own connection
        return
    _check_address(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"num_cpus": jobs or available_cores(), "object_store_memory": STORE_BYTES}
        options |= {"include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise _no_cluster(address, reason) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise at once if nobody listens where a cluster should be; Ray would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise _no_cluster(address, "it is not host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, getattr(error, "strerror", None) or str(error)) from error


def _no_cluster(address: str, reason: str) -> InputError:
    return InputError(
        "--ray must be auto, local, or host:port of a Ray cluster that this machine is part of, "
        f"got {address!r}: {reason}"
    )


def make_shards(
    plan: Plan, todo: Sequence[int], jobs: int, tell: Tell
) -> Generator[ShardRecord, None, None]:
    """Make shards on the cluster that this process is connected to, and yield their records.

    They come as they are finished, not in order. When the iterator is closed, no actor is left.

    Args:
        plan: The run's plan; its folder and the input are seen by all machines.
        todo: Numbers of the shards.
        jobs: Most actors at once; 0 is as many as the cluster has CPUs, at any time.
        tell: Is not called: an actor is heard of when its shard is finished.
    Raises:
        InputError: A machine does not see the files or has other versions, or a shard was lost time
            and again.
        OSError: A shard cannot be written.
    """
    if not todo:
        return
    crew = _Crew(importlib.import_module("ray"), plan, Expected.of(plan, todo[0]), jobs)
    try:
        yield from crew.make(deque(todo))
    finally:
        crew.dismiss()


class _Crew:
    """The actors of a run: those that start, those that wait for a shard, those that make one."""

    def __init__(self, ray: Any, plan: Plan, expected: Expected, jobs: int) -> None:
        self._ray = ray
        self._needs_gpu = plan.extractor.needs_gpu
        self._given = (self._ray.put(plan), self._ray.put(expected))
        self._jobs = jobs
        self._starting: dict[Any, Any] = {}  # greeting → actor
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}  # record → actor, shard
        self._losses: Counter[int] = Counter()
        self._failed_starts = 0
        self._rounding: str | None = None
        self._last_hiring = -HIRING_SECONDS
        self._last_greeting = time.monotonic()

    def make(self, todo: deque[int]) -> Iterator[ShardRecord]:
        """Yield the records of shards as they come."""
        while todo or self._busy:
            self._hire(len(todo) + len(self._busy))
            while todo and self._idle:
                actor, k = self._idle.pop(), todo.popleft()
                self._busy[actor.make.remote(k, self._losses[k] > 1)] = actor, k
            for ref in self._finished():
                if ref in self._starting:
                    self._welcome(ref)
                    continue
                record = self._result(ref, todo)
                if record is not None:
                    yield record

    def dismiss(self) -> None:
        """End every actor; return when those at work are gone, or after a few seconds."""
        at_work = [actor for actor, _ in self._busy.values()]
        for actor in [*self._starting.values(), *self._idle, *at_work]:
            with suppress(Exception):  # the cluster itself may be gone
                self._ray.kill(actor)
        if self._busy:
            with suppress(Exception):
                self._ray.wait(list(self._busy), num_returns=len(self._busy), timeout=5)

    def _hire(self, most: int) -> None:
        """Ask for actors while there are fewer than CPUs, and than shards to make."""
        if time.monotonic() - self._last_hiring < HIRING_SECONDS:
            return
        self._last_hiring = time.monotonic()
        resources = self._ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0.0)
        share = 0.0
        if self._needs_gpu:
            share = min(1.0, max(GPU_SHARE, gpus / max(1, cpus)))
            cpus = min(cpus, int(gpus / share))
        here = len(self._starting) + len(self._idle) + len(self._busy)
        maker = self._ray.remote(Maker).options(
            num_cpus=1, num_gpus=share, scheduling_strategy="SPREAD", max_restarts=0
        )
        for _ in range(min(self._jobs or cpus, most) - here):
            hired = maker.remote(*self._given)
            self._starting[hired.greet.remote()] = hired
        if self._idle or self._busy:
            self._last_greeting = time.monotonic()
        elif time.monotonic() - self._last_greeting > PATIENCE_SECONDS:
            self._last_greeting = time.monotonic()
            kind = "GPU" if self._needs_gpu else "CPU"
            complain("note", f"no {kind} of the cluster is free yet: it has {cpus}")

    def _finished(self) -> list[Any]:
        """Wait for what comes first; return all that is there then."""
        awaited = [*self._starting, *self._busy]
        if not awaited:
            time.sleep(HIRING_SECONDS)
            return []
        if not self._ray.wait(awaited, num_returns=1, timeout=HIRING_SECONDS)[0]:
            return []
        done: list[Any] = self._ray.wait(awaited, num_returns=len(awaited), timeout=0)[0]
        return done

    def _welcome(self, ref: Any) -> None:
        """Take an actor that has greeted, if it can make the driver's shards."""
        actor = self._starting.pop(ref)
        try:
            greeting: Greeting = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if getattr(error, "actor_init_failed", False) or self._failed_starts > MOST_LOSSES:
                raise InputError(f"--ray: {_where(error)} cannot be used: {_why(error)}") from error
            return
        if greeting.problem is not None:
            raise InputError(f"--ray: {greeting.problem}, on {greeting.node}")
        self._failed_starts = 0
        if self._rounding not in (None, greeting.rounding):
            complain(
                "note",
                f"{greeting.node} rounds otherwise than the first machine did: the last bits of a "
                "shard depend on who made it",
            )
        self._rounding = self._rounding or greeting.rounding
        self._idle.append(actor)

    def _result(self, ref: Any, todo: deque[int]) -> ShardRecord | None:
        """Return a shard's record; None if it was lost, and is to be made again."""
        actor, k = self._busy.pop(ref)
        try:
            record: ShardRecord = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, OSError | InputError) else error from None
        except self._ray.exceptions.RayError as error:
            with suppress(Exception):
                self._ray.kill(actor)  # it may only have been out of reach
            self._losses[k] += 1
            if self._losses[k] > MOST_LOSSES:
                raise InputError(
                    f"shard {k} was lost {self._losses[k]} times, with its process or its machine: "
                    f"{_why(error)}"
                ) from error
            complain("note", f"shard {k} was lost with its process or machine; it is made again")
            todo.appendleft(k)
            return None
        self._idle.append(actor)
        return record


def _where(error: Exception) -> str:
    """Return the machine that an error of Ray is of."""
    found = re.search(r"ip[=:] ?([0-9a-fA-F.:]+)", str(error))
    return found[1] if found else "a machine"


def _why(error: Exception) -> str:
    """Return the last line of an error of Ray, which names the cause."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
