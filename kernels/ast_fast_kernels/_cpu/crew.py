"""Threads for calls that take less time than waking a team: compiled code hands them the work.

A helper waits in compiled code without the GIL: for `AWAKE` seconds after a call it looks for the
next one at full speed, then it sleeps. The caller never waits for one that has not begun: it takes
the work itself, and withdraws the offer. So a helper that sleeps, or whose core others use, costs a
call what waking it costs. A helper that another caller has is not waited for either.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from ast_fast_kernels._cpu.atomics import read_shared, swap_shared
from ast_fast_kernels._cpu.compile import callback, intrinsic, source_digest, stage
from ast_fast_kernels._cpu.lanes import ALIGNMENT
from ast_fast_kernels._cpu.simd import INTEGER_BYTES, address_of, integers_at
from ast_fast_kernels._cpu.threads import compile_lock

AWAKE = 0.0002
"""Seconds for which a helper looks for the next call before it sleeps."""

PATIENCE = 50e-6
"""Seconds for which a caller looks for a helper's end before it sleeps."""

MOST_HELPERS = 256

TURNS_ALONE = 32
"""Turns, of 10 to 50 ns, after which a helper that looks for work lets other programs go first: so
it is not interrupted when it has some."""

(
    ROLE, STATE, ASLEEP, RUN, TASK, CALLER, TURNS, THREAD, BESIDE, WAIT, POST, YIELD, GET_CPUS,
    SET_CPUS,
) = range(14)  # fmt: skip
"""Integers of a desk, where a helper gets its work: its role, what it does, whether it sleeps, a
compiled function and its argument, the caller, the turns for which it looks for work, its thread,
the CPU that it leaves to its caller; and the addresses of libc's functions for semaphores, to give
way, and to ask and say on which CPUs a thread may run."""

HELP, LEAD, TURN = range(3)
"""Roles."""

FREE, TAKEN, OFFERED, RUNNING, AWAITED, DONE = range(6)
"""A desk's states."""

WAKE, END, CPUS = 16, 24, 32
"""Where a desk's semaphores begin, and the bits of the CPUs for its helper, in integers."""

CPU_WORDS = 16
"""Integers of those bits: as many as C libraries have."""

DESK_BYTES = 512
"""No two desks share a cache line, nor a pair of lines that are fetched together."""

(
    _, HELPERS, DESKS, DESKS_END, CALLED, ARGUMENT, LOOKS, GET_CPU,
) = range(8)  # fmt: skip
"""Integers of a request: its role, how many helpers may come, from which desks, the compiled
function and its argument, the turns for which the caller looks for a helper's end, and the address
of libc's `sched_getcpu`."""


@intrinsic
def _pause(typing_context: Any) -> Any:
    """Let the core's other thread go first, as loops that wait should."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        triple, nothing = builder.module.triple, ir.VoidType()
        if triple.startswith(("x86_64", "i686")):
            kind = ir.FunctionType(nothing, [])
            name, given = "llvm.x86.sse2.pause", []
        elif triple.startswith(("aarch64", "arm64")):
            kind = ir.FunctionType(nothing, [ir.IntType(32)])
            name, given = "llvm.aarch64.hint", [ir.IntType(32)(1)]
        else:
            return context.get_dummy_value()
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
        return context.get_dummy_value()

    return types.void(), emit


def _caller(arity: int) -> Any:
    """Return what calls compiled code or a function of C, of integers and addresses, for an int."""

    def body(typing_context: Any, *given: Any) -> Any:
        if not all(isinstance(kind, types.Integer) for kind in given):
            return None

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            word = context.get_value_type(types.intp)
            kind = ir.FunctionType(ir.IntType(32), [word] * arity)
            return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

        return types.int32(*[types.intp] * (1 + arity)), emit

    wrappers: dict[int, Callable[..., Any]] = {
        0: lambda typing_context, function: body(typing_context, function),
        1: lambda typing_context, function, a: body(typing_context, function, a),
        3: lambda typing_context, function, a, b, c: body(typing_context, function, a, b, c),
    }
    return intrinsic(wrappers[arity])


_call_0, _call, _call_3 = _caller(0), _caller(1), _caller(3)


@stage
def _wait(desk: int, semaphore: int) -> None:
    """Sleep until a semaphore is posted, through signals."""
    while _call(integers_at(desk)[WAIT], desk + semaphore * INTEGER_BYTES) != 0:
        pass


@stage
def _post(desk: int, semaphore: int) -> None:
    _call(integers_at(desk)[POST], desk + semaphore * INTEGER_BYTES)


@stage
def _turn(turn: int, give_way: int) -> None:
    """Pass the time of one look at a desk; every few turns, give way where that has an address."""
    if give_way != 0 and turn % TURNS_ALONE == 0:
        _call_0(give_way)
    _pause()


@stage
def _keep_off(desk: int, cpu: int) -> None:
    """Have a helper run where this thread, its caller, may run now, but not on its caller's CPU.

    Where another one sleeps deeply, as a virtual machine's may, the system would let both share it.
    """
    words, size = integers_at(desk), CPU_WORDS * INTEGER_BYTES
    words[BESIDE] = cpu
    cpus = desk + CPUS * INTEGER_BYTES
    if _call_3(words[GET_CPUS], 0, size, cpus) != 0:
        return
    place, bit = CPUS + cpu // 64, cpu % 64
    words[place] = words[place] & ~(1 << bit)
    _call_3(words[SET_CPUS], words[THREAD], size, cpus)  # no CPU is left: an error, and no change


@stage
def _await(desk: int, looks: int) -> None:
    """Wait until a helper that has begun has ended, and take its desk."""
    turns = 0
    while not swap_shared(desk, STATE, DONE, TAKEN):
        if turns < looks:
            turns += 1
            _turn(turns, 0)
        elif swap_shared(desk, STATE, RUNNING, AWAITED):
            _wait(desk, END)


@stage
def _help_callers(desk: int) -> None:
    """Take what callers offer, forever."""
    words = integers_at(desk)
    while True:
        turns = 0
        while read_shared(desk, STATE) != OFFERED:
            if turns < words[TURNS]:
                turns += 1
                _turn(turns, words[YIELD])
                continue
            swap_shared(desk, ASLEEP, 0, 1)
            # Whoever ends the sleep: the caller, who then posts, or this thread, who then
            # has nothing to wait for.
            if read_shared(desk, STATE) != OFFERED or not swap_shared(desk, ASLEEP, 1, 0):
                _wait(desk, WAKE)
        if swap_shared(desk, STATE, OFFERED, RUNNING):
            _call(words[RUN], words[TASK])
            if not swap_shared(desk, STATE, RUNNING, DONE):
                swap_shared(desk, STATE, AWAITED, DONE)
                _post(desk, END)


@stage
def _call_with_helpers(address: int) -> None:
    """Make a request's call, and offer it to helpers meanwhile."""
    request = integers_at(address)
    wanted, desk = request[HELPERS], request[DESKS]
    cpu = _call_0(request[GET_CPU])
    while wanted > 0 and desk < request[DESKS_END]:
        words = integers_at(desk)
        if swap_shared(desk, STATE, FREE, TAKEN):
            words[RUN], words[TASK] = request[CALLED], request[ARGUMENT]
            words[CALLER] = address
            if cpu != words[BESIDE] and 0 <= cpu < CPU_WORDS * 64:
                _keep_off(desk, cpu)
            swap_shared(desk, STATE, TAKEN, OFFERED)
            if swap_shared(desk, ASLEEP, 1, 0):
                _post(desk, WAKE)
            wanted -= 1
        desk += DESK_BYTES
    _call(request[CALLED], request[ARGUMENT])
    asked_end, desk = desk, request[DESKS]
    while desk < asked_end:
        words = integers_at(desk)
        if words[CALLER] == address:
            if not swap_shared(desk, STATE, OFFERED, TAKEN):
                _await(desk, request[LOOKS])
            words[CALLER] = 0
            swap_shared(desk, STATE, TAKEN, FREE)
        desk += DESK_BYTES


@cache
def _compiled(digest: str) -> Any:
    """Return the compiled loop of a desk or a request, or of turns to be timed: by its role."""

    def crew(address: int) -> None:
        digest  # noqa: B018 - as in the other kernels
        words = integers_at(address)
        if words[ROLE] == HELP:
            _help_callers(address)
        elif words[ROLE] == LEAD:
            _call_with_helpers(address)
        else:
            for turn in range(words[1]):
                _turn(turn, words[2])

    with compile_lock:
        return callback(types.void(types.intp), crew)


def compile_loops() -> None:
    """Compile what helpers run, where there are any."""
    if is_available():
        _compiled(source_digest())


class _Crew:
    """A process's helpers, and their desks: memory that is never freed, as they may outlive all."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.most = MOST_HELPERS  # until the first one is needed
        self.desks = self.turns = self.looks = 0

    def start(self, count: int) -> None:
        """Start helpers until there are `count`, one for each CPU but the caller's at most."""
        if self.count >= min(count, self.most) or not self.lock.acquire(blocking=False):
            return  # another thread starts them, or a signal handler calls meanwhile
        try:
            if not self.desks:
                self._open()
            while self.count < min(count, self.most):
                if not self._start_one():
                    self.most = self.count
        finally:
            self.lock.release()

    def _open(self) -> None:
        """Make the desks, and measure how long a turn takes."""
        libc = _libc()
        assert libc is not None
        self.turns = int(AWAKE / _seconds_of_turn(libc.give_way))
        self.looks = int(PATIENCE / _seconds_of_turn(0))
        memory = np.zeros(ALIGNMENT + MOST_HELPERS * DESK_BYTES, np.uint8)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
        self.most = min(_num_cpus() - 1, MOST_HELPERS)
        self.desks = -(-address_of(memory) // ALIGNMENT) * ALIGNMENT

    def _start_one(self) -> bool:
        """Start one more, unless the system refuses.

        A thread of C's alone: Python waits for none of its own that never ends, and a library may
        have replaced Python's by coroutines. It gets no signals, which are Python's to handle.
        """
        libc = _libc()
        assert libc is not None
        desk = self.desks + self.count * DESK_BYTES
        words = _words_at(desk, WAKE)
        words[ROLE], words[STATE] = HELP, TAKEN
        words[TURNS], words[BESIDE] = self.turns, -1
        words[WAIT], words[POST], words[YIELD] = libc.wait, libc.post, libc.give_way
        words[GET_CPUS], words[SET_CPUS] = libc.get_cpus, libc.set_cpus
        for semaphore in (WAKE, END):
            if libc.init(desk + semaphore * INTEGER_BYTES, 0, 0) != 0:
                return False
        loop = _compiled(source_digest()).address
        self.count += 1  # after an interrupt, a desk that stays taken
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _signals_of_others())
            error = libc.create(desk + THREAD * INTEGER_BYTES, None, loop, desk)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if error:
            self.count -= 1
            return False
        words[STATE] = FREE
        return True


def _signals_of_others() -> set[signal.Signals]:
    """Return every signal but those that tell of a thread's own errors."""
    own = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
    return signal.valid_signals() - set(own)


class Request:
    """A compiled function with its argument, for calls by several threads, again and again."""

    def __init__(self, worker: Any, address: int, threads: int) -> None:
        libc = _libc()
        assert libc is not None  # `is_available`
        self._lead, self._helpers = _compiled(source_digest()).ctypes, threads - 1
        numbers = (LEAD, self._helpers, 0, 0, worker.address, address, 0, libc.get_cpu)
        self._memory = array("q", numbers)
        self._address, _ = self._memory.buffer_info()
        self._crew: _Crew | None = None
        self._count = 0

    def run(self) -> None:
        """Call the function on this thread, and meanwhile on helpers that are free."""
        if self._crew is not _crew or self._count < self._helpers:
            self._meet(_crew)
        self._lead(self._address)

    def _meet(self, crew: _Crew) -> None:
        """Ask the process's helpers, of which there may be more by now, or others after a fork."""
        crew.start(self._helpers)
        count, request = crew.count, self._memory
        request[DESKS], request[DESKS_END] = crew.desks, crew.desks + count * DESK_BYTES
        request[LOOKS] = crew.looks
        self._crew, self._count = crew, count


def _words_at(address: int, count: int) -> Any:
    return (ctypes.c_uint64 * count).from_address(address)


def _num_cpus() -> int:
    """Return how many CPUs the process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return 1


def _seconds_of_turn(give_way: int) -> float:
    """Return what a turn takes, by the shortest of a few rows: others may use this CPU."""
    turns = 500
    loop, memory = _compiled(source_digest()), array("q", (TURN, turns, give_way))
    address, _ = memory.buffer_info()
    shortest = math.inf
    for _ in range(10):
        begun = time.perf_counter()
        loop.ctypes(address)
        shortest = min(shortest, time.perf_counter() - begun)
    return shortest / turns


class _Libc(NamedTuple):
    """The functions `pthread_create` and `sem_init`, and addresses of others."""

    create: Any
    init: Any
    wait: int
    post: int
    give_way: int  # `sched_yield`
    get_cpu: int
    get_cpus: int  # `sched_getaffinity`
    set_cpus: int  # `pthread_setaffinity_np`


@cache
def _libc() -> _Libc | None:
    """Return what helpers need of the C library; None where it has none of it."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    libc.pthread_create.argtypes = (ctypes.c_void_p,) * 4
    libc.sem_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    functions = (
        libc.sem_wait, libc.sem_post, libc.sched_yield, libc.sched_getcpu, libc.sched_getaffinity,
        libc.pthread_setaffinity_np,
    )  # fmt: skip
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    return _Libc(libc.pthread_create, libc.sem_init, *addresses)


def is_available() -> bool:
    """Say whether there are helpers: on Linux, one for each CPU but the caller's."""
    return _libc() is not None


_crew = _Crew()


def _start_anew() -> None:
    """Forget the parent's threads, which a fork does not copy."""
    global _crew
    _crew = _Crew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
