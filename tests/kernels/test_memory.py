"""Memory of results: lent, and taken back when the last array over it is gone."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from ast_fast_kernels import fbank
from ast_fast_kernels._cpu import memory
from ast_fast_kernels._cpu.memory import LEAST_BYTES, MOST_BYTES, lend
from ast_fast_kernels.testing.processes import run_program

LEAST = LEAST_BYTES // 4
"""Fewest floats that are on a loan."""


@pytest.fixture(autouse=True)
def waiting(monkeypatch: pytest.MonkeyPatch) -> memory._Waiting:
    """Blocks of the test's own."""
    monkeypatch.setattr(memory, "_waiting", memory._Waiting())
    return memory._waiting


@pytest.mark.parametrize("size", [1, 15, LEAST - 1, LEAST, LEAST + 1, 63_744, MOST_BYTES // 4 + 1])
def test_a_loan_is_as_long_as_asked_and_begins_a_cache_line(size: int) -> None:
    array = lend(size)
    assert (array.shape, array.dtype) == ((size,), np.float32)
    assert array.ctypes.data % 64 == 0
    array[:] = 1.0
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_the_next_result_takes_what_the_last_one_left(waiting: memory._Waiting) -> None:
    first = lend(63_744)
    address = first.ctypes.data
    del first
    assert waiting.num_bytes() > 0
    again = lend(63_000)  # of about the same size
    assert again.ctypes.data == address
    assert waiting.num_bytes() == 0


@pytest.mark.parametrize(
    "keep",
    [
        lambda array: array.reshape(2, -1)[1:, ::3],
        lambda array: memoryview(array),
        lambda array: torch.from_numpy(array).view(2, -1)[1],
        lambda array: array.base,
        lambda array: np.asarray(array.base)[5:],
    ],
    ids=["view", "memoryview", "tensor", "base", "view-of-base"],
)
def test_memory_stays_lent_while_anything_sees_it(keep, waiting: memory._Waiting) -> None:
    array = lend(LEAST)
    address = array.ctypes.data
    seen = keep(array)
    del array
    assert lend(LEAST).ctypes.data != address
    before = waiting.num_bytes()
    del seen
    assert waiting.num_bytes() > before


def test_no_more_waits_than_the_bound_and_the_size_used_last_stays(
    waiting: memory._Waiting,
) -> None:
    small = [lend(LEAST) for _ in range(4)]
    del small
    quarter = MOST_BYTES // 16
    large = [lend(quarter) for _ in range(6)]
    del large
    assert waiting.num_bytes() == MOST_BYTES
    assert {size: len(blocks) for size, blocks in waiting._blocks.items()} == {quarter: 4}


def test_who_does_not_get_the_lock_waits_for_nothing(waiting: memory._Waiting) -> None:
    array = lend(LEAST)
    with waiting._lock:  # as in a process forked meanwhile, or a collection inside of `put`
        del array
        assert lend(LEAST).shape == (LEAST,)
    assert waiting.num_bytes() == 0
    child = memory._Waiting()
    child._lock.acquire()
    child.start_anew()
    child.put(memory._Block(LEAST))
    assert child.num_bytes() == LEAST_BYTES


def test_threads_lend_and_return_at_once(waiting: memory._Waiting) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            arrays = [lend(LEAST + i) for i in range(3)]
            for array in arrays:
                array[::1000] = number
            wrong.extend(number for array in arrays if (array[::1000] != number).any())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong
    assert waiting.num_bytes() <= MOST_BYTES


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_a_result_that_is_kept_is_not_written_to_again(kind) -> None:
    waveform = kind(np.random.default_rng(0).normal(0, 0.1, (2, 80_000)).astype(np.float32))
    first = fbank(waveform, backend="numba")
    kept, part = first + 0.0, first[1, 100:]
    del first
    for _ in range(3):
        fbank(0.5 * waveform, backend="numba")
    assert (part == kept[1, 100:]).all()


@pytest.mark.parametrize("kind", ["np.asarray", "torch.from_numpy"], ids=["array", "tensor"])
def test_results_that_follow_dropped_ones_cost_no_page_faults(kind: str) -> None:
    """Neither do those that malloc would give back: many at once, and one beyond 32 MiB."""
    printed = run_program(f"""
import resource
import numpy as np, torch
from ast_fast_kernels import fbank
torch.set_num_threads(1)
waves = np.random.default_rng(0).normal(0, 0.1, (140, 80000)).astype(np.float32)
clips, batch = [{kind}(wave) for wave in waves[:64]], {kind}(waves)
def one_by_one():
    return [fbank(clip, backend="numba") for clip in clips]
def together():
    return fbank(batch, backend="numba")
for call in (one_by_one, together):
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults)
""")
    # 64 results of 255 kB have 3,984 pages, and 140 have 8,715.
    assert all(int(faults) < 200 for faults in printed.split()), printed
