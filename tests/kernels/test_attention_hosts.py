"""Attention on the CPU in other people's processes: forks, pools, threads, limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import ast_fast_kernels
from ast_fast_kernels import _team, attention
from ast_fast_kernels.testing.processes import run_program

START = """
import os, signal, sys, threading
import torch
from ast_fast_kernels import attention
torch.set_num_threads(2)
QKV = torch.linspace(-3, 3, 6 * 60 * 3 * 2 * 16).sin().view(6, 60, 3, 2, 16)
def both(qkv=QKV, **given):
    leaf = qkv.detach().requires_grad_()
    out = attention(leaf, backend="numba", **given)
    grad = torch.ones(()).expand(out.shape)  # which only a copy makes dense
    return out.detach().numpy(), torch.autograd.grad(out, leaf, grad)[0].numpy()
def same(one, other):
    return all((a == b).all() for a, b in zip(one, other))
def forked(call, expected):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if same(call(), expected) else 3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_pool_computes_the_same(method: str) -> None:
    run_program(
        START
        + f"""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def work(index):
    torch.set_num_threads(2)
    return both()
if __name__ == "__main__":
    torch.ones(512, 512) @ torch.ones(512, 512)
    expected = both()
    context = multiprocessing.get_context({method!r})
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert all(same(result, expected) for result in pool.map(work, range(4)))
"""
    )


def test_data_loader_workers_compute_the_same() -> None:
    run_program(
        START
        + """
from torch.utils.data import DataLoader, Dataset
class Clips(Dataset):
    def __len__(self):
        return len(QKV)
    def __getitem__(self, index):
        return attention(QKV[index : index + 1], backend="numba")[0]
expected = both()[0]
found = torch.cat(list(DataLoader(Clips(), batch_size=2, num_workers=2))).numpy()
assert (found == expected).all()
"""
    )


def test_a_forked_child_needs_none_of_its_parents_threads() -> None:
    """Nor torch's: a fork does not copy them, and torch would wait for them for ever."""
    run_program(
        START
        + """
wide = torch.linspace(-3, 3, 6 * 300 * 3 * 2 * 32).sin().view(6, 300, 3, 2, 32)
calls = {
    "usual": both,
    "strided": lambda: both(wide[..., ::2]),
    "a gradient of 57,600 numbers from one": lambda: both(wide[..., :16]),
    "key lengths": lambda: both(key_lengths=[60, 1, 17, 30, 59, 2]),
}
torch.ones(512, 512) @ torch.ones(512, 512)  # torch starts its own
codes = {name: forked(call, call()) for name, call in calls.items()}
assert not any(codes.values()), codes
"""
    )


def test_a_child_of_a_parent_that_never_attended_computes() -> None:
    run_program(
        START
        + """
torch.ones(512, 512) @ torch.ones(512, 512)
child = os.fork()
if child == 0:
    signal.alarm(60)  # it may have to compile
    first = both()
    os._exit(0 if same(first, both()) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )


def test_children_forked_while_threads_compute_do_not_hang() -> None:
    run_program(
        START
        + """
expected = both()
stop, errors = threading.Event(), []
def work():
    try:
        while not stop.is_set():
            assert same(both(), expected)
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
codes = [forked(both, expected) for _ in range(20)]
stop.set()
for thread in threads: thread.join()
assert not any(codes) and not errors, (codes, errors)
"""
    )


def test_threads_that_call_at_once_compute_the_same() -> None:
    run_program(
        START
        + """
expected, right = both(), []
def work(threads):
    torch.set_num_threads(threads)
    for _ in range(20):
        if same(both(), expected):
            right.append(threads)
workers = [threading.Thread(target=work, args=(count,)) for count in (1, 2, 3, 2)]
for worker in workers: worker.start()
for worker in workers: worker.join()
assert sorted(right) == [1] * 20 + [2] * 40 + [3] * 20, right
"""
    )


def test_first_calls_in_threads_that_start_at_once(tmp_path: Path) -> None:
    run_program(
        START
        + """
results = []
threads = [threading.Thread(target=lambda: results.append(both())) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(results) == 4 and all(same(result, results[0]) for result in results)
""",
        NUMBA_CACHE_DIR=str(tmp_path),  # so that all four meet while it is compiled
    )


@pytest.mark.parametrize("called", [True, False], ids=["a-later-call", "a-first-call"])
def test_a_call_at_interpreter_exit_still_works(called: bool) -> None:
    printed = run_program(
        START
        + f"""
import atexit
import ast_fast_kernels.attention.numba_cpu
if {called}: both()
atexit.register(lambda: print(both()[1].shape))
"""
    )
    assert printed.strip() == "(6, 60, 3, 2, 16)"


def test_an_interrupt_ends_a_call_and_the_next_one_is_right() -> None:
    run_program(
        START
        + """
expected = both()
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGALRM, stop)
stopped = 0
for attempt in range(40):
    signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.00005 * attempt)
    try:
        while True: both()
    except Stop:
        stopped += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
assert stopped == 40, stopped
assert same(both(), expected)
"""
    )


def test_a_change_of_the_thread_count_changes_no_bit() -> None:
    run_program(
        START
        + """
expected = both()
for threads in (1, 2, 7, 1, 3):
    torch.set_num_threads(threads)
    torch.ones(512, 512) @ torch.ones(512, 512)
    assert same(both(), expected), threads
"""
    )


def test_plain_threads_give_the_same_bits_as_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    if _team._gomp_parallel() is None:
        pytest.skip("torch has no OpenMP here whose threads could be shared")
    qkv = torch.linspace(-3, 3, 5 * 70 * 3 * 3 * 32).sin().view(5, 70, 3, 3, 32).requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        out = attention(qkv, backend="numba")
        return out, torch.autograd.grad(out, qkv, torch.ones_like(out))[0]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = run()
        monkeypatch.setattr(_team, "_gomp_parallel", lambda: None)
        found = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_read_only_packages_and_no_home_are_no_obstacle(tmp_path: Path) -> None:
    # A file where each cache folder would be cannot be written into by anyone, root included.
    source = Path(ast_fast_kernels.__file__).parent
    package = tmp_path / "site" / "ast_fast_kernels"
    for path in source.rglob("*.py"):
        target = package / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        (target.parent / "__pycache__").touch()
    blocker = tmp_path / "file"
    blocker.touch()
    printed = run_program(
        START + "print(sys.modules['ast_fast_kernels'].__file__, both()[1].shape)",
        PYTHONPATH=str(tmp_path / "site"),
        PYTHONDONTWRITEBYTECODE="1",
        HOME=str(blocker),
        XDG_CACHE_HOME=str(blocker),
    )
    assert printed.startswith(str(tmp_path))
    assert printed.strip().endswith("(6, 60, 3, 2, 16)")
