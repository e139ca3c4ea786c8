"""Compiled code on the threads that torch keeps: its OpenMP team.

After one of torch's operators, its threads spin for some milliseconds while they wait for the next
one; another thread that needs their cores gets half of them. So work between torch's operators runs
on torch's threads, by `GOMP_parallel` of the library that torch loaded: the function behind every
parallel region that gcc compiles. The plain threads of `threads.py` do the same work if there is no
such library, if the process was forked (a fork does not copy the team), or if many threads may call
at once.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import re
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu import threads as plain_threads
from ast_fast_kernels._cpu.compile import callback, intrinsic
from ast_fast_kernels._torch.forks import was_forked
from ast_fast_kernels._torch.tracing import is_loaded

NEXT_ITEM, NEXT_WORKER, HEADER = 0, 1, 2
"""Integers at the front of a task's memory, for `take`: the next item, the next worker's number."""

_logger = logging.getLogger("ast_fast_kernels")


def run_items(
    worker: Any, numbers: tuple[int, ...], threads: int, team: int, *, shared: bool = False
) -> None:
    """Run a compiled worker on several threads, each until no item is left.

    torch's whole team is started, as torch does: for a smaller one, libgomp would end the other
    threads, and torch's next operator would start them again. So a worker takes an item first; it
    takes its own number only if it got one.

    Args:
        worker: The result of `compile_worker`.
        numbers: What the worker finds after the header.
        threads: How many threads may find an item.
        team: Number of torch's threads; the caller has memory for each of them.
        shared: Whether calls outside the main thread use the threads of `threads.py`. If many
            threads call at once, as in a server, each would otherwise start a team.
    """
    task = array("q", (*[0] * HEADER, *numbers))  # numpy takes longer to return an address
    address, _ = task.buffer_info()
    if threads <= 1:
        worker.ctypes(address)
        return
    if is_loaded() and not (was_forked() or (shared and not _is_main_thread())):
        parallel = _gomp_parallel()
        if parallel is not None:
            parallel(worker.address, address, team, 0)
            return

    plain_threads.call_at_once(partial(worker.ctypes, address), threads)


class Pace:
    """Whether more threads make a short call faster: what the calls before it took.

    Threads that sleep, or whose cores others use, come late. So they are asked where a call takes
    much longer than waking one, or in a row of calls that has lasted as long as that takes; and
    where they lose twice in a row (the first call may have woken them), the next calls are made
    without them: for 10 ms, then eight times as long after each trial that fails.
    """

    FIRST = 8
    """Calls without more threads before a trial, which tell what they take."""

    PAUSE, LONGEST_PAUSE = 0.01, 5.0
    """Seconds without another trial after the first one that fails, and the most of them."""

    AWAKE = 0.0002
    """Seconds for which a thread is awake after a call (`crew.AWAKE`), and to wake one."""

    LONG = 0.0003
    """Seconds of a call without more threads from which it pays to wake one."""

    def __init__(self) -> None:
        self._least = math.inf  # seconds for each item, without more threads
        self._row_began = self._ended = self._until = -math.inf
        self._left, self._pause = self.FIRST, self.PAUSE
        self._has_lost = False

    def tries_more(self, now: float, items: int) -> bool:
        """Say whether a call of so many items, at `perf_counter`'s time, uses more threads."""
        if now - self._ended >= self.AWAKE:
            self._row_began = now
        if self._left > 0 or now < self._until:
            return False
        return now - self._row_began >= self.AWAKE or self._least * items >= self.LONG

    def note(self, more: bool, begun: float, ended: float, items: int) -> None:
        """Take down what a call of so many items took, and whether it used more threads."""
        seconds = (ended - begun) / items
        self._ended = ended
        if not more:
            self._left = max(self._left - 1, 0)
            self._least = min(self._least, seconds)
        elif seconds < self._least:
            self._pause, self._has_lost = self.PAUSE, False
        elif not self._has_lost:
            self._has_lost = True
        else:
            self._left, self._has_lost = self.FIRST, False
            self._until = ended + self._pause
            self._pause = min(8 * self._pause, self.LONGEST_PAUSE)
            self._least = math.inf  # others may use the machine by now


_alone: set[int] = set()
"""Identifiers of the threads whose calls use no others."""


@contextmanager
def alone() -> Iterator[None]:
    """Have this thread's calls use no other threads, as where threads share whole files."""
    thread = threading.get_ident()
    if thread in _alone:
        yield
        return
    _alone.add(thread)
    try:
        yield
    finally:
        _alone.discard(thread)


def team_size() -> int:
    """Return how many threads a call may use: torch's number, if torch is loaded.

    Otherwise the first number in OMP_NUM_THREADS; else Numba's, which is NUMBA_NUM_THREADS or the
    CPUs that the process may use.
    """
    if _alone and threading.get_ident() in _alone:
        return 1
    global _torch_threads
    if _torch_threads is None:
        if not is_loaded():
            return _threads_without_torch()
        import torch

        _torch_threads = torch.get_num_threads
    return _torch_threads()


_torch_threads: Callable[[], int] | None = None


@cache
def _threads_without_torch() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    threads: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return threads


def compile_worker(function: Callable[[int], None]) -> Any:
    """Compile a function that gets a task's address and takes items from it by `take`."""
    with plain_threads.compile_lock:
        return callback(types.void(types.intp), function)


@intrinsic
def take(typing_context: Any, address: Any, slot: Any) -> Any:
    """Return an integer of a task and raise it by one, atomically."""
    if not (isinstance(address, types.Integer) and isinstance(slot, types.Integer)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        kind = context.get_value_type(types.intp)
        pointer = builder.gep(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return builder.atomic_rmw("add", pointer, kind(1), "seq_cst")

    return types.intp(types.intp, types.intp), emit


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


@cache
def _gomp_parallel() -> Any:
    """Return torch's `GOMP_parallel(function, data, threads, flags)`; None if it has none."""
    beside_torch = str(Path(sys.modules["torch"].__file__ or "").parent)
    for library in sorted(_loaded_openmp(), key=lambda path: not path.startswith(beside_torch)):
        try:
            function = ctypes.CDLL(library).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
        return function
    _logger.info("torch's OpenMP was not found: kernels run on threads of their own")
    return None


def _loaded_openmp() -> set[str]:
    """Return the OpenMP libraries that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return set()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "omp" in line}
    return {path for path in paths if re.match(r"lib[gi]?omp\b|libiomp5", Path(path).name)}
