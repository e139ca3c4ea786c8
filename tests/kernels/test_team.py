"""Threads for short calls: asked where they win."""

from __future__ import annotations

import pytest

from ast_fast_kernels._cpu.team import Pace
from ast_fast_kernels.testing.processes import run_program


def calls(pace: Pace, count: int, alone: float, more: float, gap: float = 0.0) -> list[bool]:
    """Make calls of a hundred items, and return which of them used more threads."""
    used, now = [], max(pace._ended, 0.0)
    for _ in range(count):
        now += gap
        tries = pace.tries_more(now)
        begun, now = now, now + (more if tries else alone)
        pace.note(tries, begun, now, 100)
        used.append(tries)
    return used


def test_threads_that_win_are_asked_from_the_second_trial_on() -> None:
    used = calls(Pace(), 100, alone=1e-3, more=6e-4)
    assert used == [False] * Pace.FIRST + [True] * (100 - Pace.FIRST)


def test_threads_that_lose_are_asked_ever_more_rarely() -> None:
    pace = Pace()
    assert sum(calls(pace, 1000, alone=5e-4, more=5e-3)) == 8  # after 8, 8, 64 and 512 others
    used = calls(pace, 20_000, alone=5e-4, more=5e-3)
    assert sum(used) <= 2 * (1 + 20_000 // Pace.MOST)
    used = calls(pace, Pace.MOST + 100, alone=5e-4, more=3e-4)  # by now they would win
    assert all(used[Pace.MOST :])


def test_one_slow_call_wakes_threads_and_does_not_send_them_away() -> None:
    pace = Pace()
    calls(pace, 50, alone=5e-4, more=3e-4)
    assert calls(pace, 1, alone=5e-4, more=5e-3) == [True]
    assert all(calls(pace, 50, alone=5e-4, more=3e-4))


def test_threads_that_sleep_by_now_are_not_asked() -> None:
    pace = Pace()
    calls(pace, 50, alone=5e-4, more=3e-4)
    assert not any(calls(pace, 50, alone=5e-4, more=3e-4, gap=2 * Pace.AWAKE))
    used = calls(pace, 50, alone=5e-4, more=3e-4)  # it takes ten calls to be worth waking them
    assert not any(used[:10])
    assert all(used[11:])


@pytest.mark.parametrize("torch", ["import torch; torch.set_num_threads(2)", ""])
def test_one_clip_is_the_same_on_two_threads(torch: str) -> None:
    """With torch's own threads and without them; each of them takes some of the clip."""
    run_program(
        f"""
{torch}
import numpy as np
from ast_fast_kernels import fbank
from ast_fast_kernels._cpu.team import Pace
from ast_fast_kernels.fbank import numba_cpu
asked, more = [], []
Pace.tries_more = lambda pace, now: more[-1]
run_items = numba_cpu.run_items
def note(worker, numbers, threads, team, **kept):
    asked.append((numbers[0], threads))
    run_items(worker, numbers, threads, team, **kept)
numba_cpu.run_items = note
rng = np.random.default_rng(0)
for num_samples in (20_000, 40_007, 80_000):
    waveform = rng.normal(0, 0.1, num_samples).astype(np.float32)
    results = []
    for tries in (False, True, True):
        more.append(tries)
        results.append(fbank(waveform, backend="numba"))
    chunks, threads = asked[-1]
    assert asked[-3] == (1, 1) and threads == 2 and chunks >= 4, asked
    assert all((result == results[0]).all() for result in results)
""",
        OMP_NUM_THREADS="2",
    )
