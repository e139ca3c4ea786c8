"""Helpers in compiled code: they share calls, sleep, and stand in nobody's way."""

from __future__ import annotations

import sys

import pytest

from ast_fast_kernels.testing.processes import run_program

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="helpers need Linux")

START = """
import os, threading, time
import numpy as np
from ast_fast_kernels._cpu import crew
crew._num_cpus = lambda: 4  # whatever the machine has
crew._start_anew()
from ast_fast_kernels import fbank
from ast_fast_kernels._cpu.team import Pace
rng = np.random.default_rng(0)
WAVE = rng.normal(0, 0.1, 80_000).astype(np.float32)
ALONE = fbank(WAVE, backend="numba")
Pace.tries_more = lambda pace, now, items: True
def is_right():
    return (fbank(WAVE, backend="numba") == ALONE).all()
def threads():
    return {int(name) for name in os.listdir("/proc/self/task")}
OTHERS = threads()
def helpers():
    return threads() - OTHERS
"""


def run(program: str) -> None:
    run_program(START + program, OMP_NUM_THREADS="3")


def test_helpers_are_as_many_as_asked_and_take_some_of_the_work() -> None:
    run(
        """
from ast_fast_kernels.fbank.numba_kernel import BATCH
from ast_fast_kernels._cpu.team import NEXT_WORKER
from ast_fast_kernels.fbank import again
came = []
for _ in range(300):
    assert is_right()
    came.append(again.of_thread.passed.task._memory[NEXT_WORKER])
assert len(helpers()) == 2
assert 1 < max(came) <= 3, came
"""
    )


def test_threads_that_call_at_once_share_the_helpers() -> None:
    run(
        """
results = []
def call():
    for _ in range(50):
        results.append(is_right())
callers = [threading.Thread(target=call) for _ in range(6)]
for caller in callers: caller.start()
for caller in callers: caller.join()
assert len(results) == 300 and all(results)
assert crew._crew.count == 2
assert all(crew._words_at(crew._crew.desks + i * crew.DESK_BYTES, 2)[crew.STATE] == crew.FREE
           for i in range(2))
"""
    )


def test_helpers_sleep_between_calls_and_come_again() -> None:
    run(
        """
for _ in range(5):
    assert is_right()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05
"""
    )


def test_a_child_forked_in_a_row_of_calls_has_helpers_of_its_own() -> None:
    run(
        """
stop = []
def call():
    while not stop: assert is_right()
caller = threading.Thread(target=call)
caller.start()
for _ in range(5):
    assert is_right()
    child = os.fork()
    if child == 0:
        right = all(is_right() for _ in range(20))
        os._exit(0 if right and crew._crew.count <= 2 else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
stop.append(True)
caller.join()
"""
    )


def test_a_system_without_more_threads_or_at_its_exit_needs_no_helpers() -> None:
    run(
        """
import atexit, errno
libc = crew._libc()
crew._libc = lambda: libc._replace(create=lambda *_: errno.EAGAIN)
assert is_right() and not helpers()
crew._libc = lambda: libc
crew._start_anew()
atexit.register(lambda: os.write(1, b"right" if is_right() else b"wrong"))
"""
    )


def test_an_interrupt_ends_a_call_and_the_next_one_is_right() -> None:
    run(
        """
import signal
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGALRM, stop)
stopped = 0
for attempt in range(40):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.00005 * attempt)
        for _ in range(20): fbank(WAVE, backend="numba")
    except Stop:
        stopped += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
assert stopped > 20, stopped
assert is_right()
"""
    )


def test_helpers_are_no_threads_of_python_and_get_no_signals() -> None:
    """So neither coroutines in the place of threads nor a program's own `sigwait` meet them."""
    run(
        """
import signal
threading.Thread.start = None
assert is_right() and len(helpers()) == 2
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
for helper in helpers():
    with open(f"/proc/self/task/{helper}/status") as lines:
        (blocked,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigBlk"))
    assert blocked >> signal.SIGTERM - 1 & 1 and not blocked >> signal.SIGSEGV - 1 & 1
"""
    )


def test_helpers_keep_to_their_callers_cpus_and_off_its_own() -> None:
    run(
        """
cpus = os.sched_getaffinity(0)
def masks():
    assert all(is_right() for _ in range(20))
    return [os.sched_getaffinity(helper) for helper in helpers()]
for mask in masks():
    assert mask <= cpus and len(mask) == max(len(cpus) - 1, 1)
for cpu in list(cpus)[:4]:  # the others are taken away
    for thread in threads(): os.sched_setaffinity(thread, {cpu})
    assert masks() == [{cpu}] * 2
"""
    )
