"""Threads for short calls: asked where they win."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ast_fast_kernels._cpu.team import Pace, alone, team_size
from ast_fast_kernels.testing.processes import run_program


def calls(
    pace: Pace, count: int, alone: float, more: float, gap: float = 0.0, items: int = 100
) -> list[bool]:
    """Make calls of so many items, and return which of them used more threads."""
    used, now = [], max(pace._ended, 0.0)
    for _ in range(count):
        now += gap
        tries = pace.tries_more(now, items)
        begun, now = now, now + (more if tries else alone)
        pace.note(tries, begun, now, items)
        used.append(tries)
    return used


def test_threads_that_win_are_asked_from_the_second_trial_on() -> None:
    used = calls(Pace(), 100, alone=1e-3, more=6e-4)
    assert used == [False] * Pace.FIRST + [True] * (100 - Pace.FIRST)


def test_threads_that_lose_are_asked_ever_more_rarely() -> None:
    pace = Pace()
    used = calls(pace, 20_000, alone=5e-4, more=5e-3)
    assert 0 < sum(used) <= 2 * 5  # after 10, 80, 640 and 5,000 ms
    calls(pace, 1 + int(Pace.LONGEST_PAUSE / 5e-4), alone=5e-4, more=5e-3)
    used = calls(pace, 12_000, alone=5e-4, more=3e-4)  # by now they would win
    assert all(used[10_100:])


def test_one_slow_call_wakes_threads_and_does_not_send_them_away() -> None:
    pace = Pace()
    calls(pace, 50, alone=5e-4, more=3e-4)
    assert calls(pace, 1, alone=5e-4, more=5e-3) == [True]
    assert all(calls(pace, 50, alone=5e-4, more=3e-4))


def test_a_long_call_wakes_threads_and_a_short_one_does_not() -> None:
    pace = Pace()
    calls(pace, 50, alone=5e-4, more=3e-4)
    asleep = 2 * Pace.AWAKE
    assert all(calls(pace, 50, alone=5e-4, more=3e-4, gap=asleep))
    assert not any(calls(pace, 50, alone=1e-4, more=6e-5, gap=asleep, items=20))
    used = calls(pace, 50, alone=1e-4, more=6e-5, items=20)  # a row of calls is worth waking them
    assert not used[0]
    assert all(used[3:])


NO_CREW = "from ast_fast_kernels._cpu import crew; crew.is_available = lambda: False"


@pytest.mark.parametrize("start", ["import torch; torch.set_num_threads(2)", "", NO_CREW])
def test_one_clip_is_the_same_on_two_threads(start: str) -> None:
    """With torch and without it; each thread may take some of the clip."""
    run_program(
        f"""
{start}
import numpy as np
from ast_fast_kernels import fbank
from ast_fast_kernels._cpu.team import Pace
from ast_fast_kernels.fbank import numba_cpu
from ast_fast_kernels.fbank.numba_kernel import COUNT
more, chunks = [], []
Pace.tries_more = lambda pace, now, items: more[-1]
fill, run_items = numba_cpu._Task.fill, numba_cpu.run_items
def note(task, *places):
    fill(task, *places)
    chunks.append(task._memory[COUNT])
def note_items(worker, numbers, threads, team, **kept):
    run_items(worker, numbers, threads, team, **kept)
    chunks.append(numbers[0])
numba_cpu._Task.fill, numba_cpu.run_items = note, note_items
rng = np.random.default_rng(0)
for num_samples in (20_000, 40_007, 80_000):
    waveform = rng.normal(0, 0.1, num_samples).astype(np.float32)
    results = []
    for tries in (False, True, True):
        more.append(tries)
        results.append(fbank(waveform, backend="numba"))
    assert chunks[-3] == 1 and chunks[-1] == chunks[-2] >= 4, chunks
    assert all((result == results[0]).all() for result in results)
""",
        OMP_NUM_THREADS="2",
    )


def test_a_thread_that_is_alone_uses_no_other_and_others_do() -> None:
    everywhere = team_size()
    with alone():
        with alone():
            assert team_size() == 1
        assert team_size() == 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(team_size).result() == everywhere
    assert team_size() == everywhere
