"""The kernel in other people's processes: threads, forks, pools, limits; each in one of its own."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import torch

from ast_fast_kernels import fbank
from ast_fast_kernels._cpu import threads as plain_threads
from ast_fast_kernels.testing.processes import run_program

START = """
import os, sys, threading
import numpy as np, torch
from ast_fast_kernels import FbankConfig, fbank
torch.set_num_threads(2)
WAVES = np.random.default_rng(0).normal(0, 0.1, (16, 80000)).astype(np.float32)
def expected():
    return fbank(WAVES, backend="numba")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loader_workers_compute_the_same(method: str) -> None:
    run_program(
        START
        + f"""
from torch.utils.data import DataLoader, Dataset
class Clips(Dataset):
    def __len__(self):
        return len(WAVES)
    def __getitem__(self, index):
        assert torch.get_num_threads() == 1
        features = fbank(np.stack([WAVES[index]] * 4), backend="numba")
        names = [t.name for t in threading.enumerate() if t.name.startswith("ast-fast")]
        assert not names, names  # asked for one thread, so none of its own
        return features[0]
if __name__ == "__main__":
    before = expected()  # the parent has used it, with threads
    loader = DataLoader(Clips(), batch_size=4, num_workers=2, multiprocessing_context={method!r})
    after = torch.cat(list(loader)).numpy()
    assert (before == after).all()
    assert (before == expected()).all()
""",
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_pool_computes_the_same(method: str) -> None:
    run_program(
        START
        + f"""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def one(index):
    torch.set_num_threads(2)
    return fbank(WAVES[index : index + 8], backend="numba")
if __name__ == "__main__":
    before = expected()
    context = multiprocessing.get_context({method!r})
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        after = np.concatenate(list(pool.map(one, [0, 8])))
    assert (before == after).all()
""",
    )


def test_a_forked_child_computes_the_same() -> None:
    # Compares with numpy: torch's own threads do not survive a fork.
    run_program("""
import os, torch
from ast_fast_kernels import fbank
torch.set_num_threads(2)
waveform = torch.linspace(-1, 1, 4 * 80000).sin().view(4, 80000)
expected = fbank(waveform, backend="numba").numpy()
child = os.fork()
if child == 0:
    os._exit(0 if (fbank(waveform, backend="numba").numpy() == expected).all() else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")


def test_children_forked_while_threads_compute_do_not_hang() -> None:
    run_program("""
import os, threading, torch
from ast_fast_kernels import FbankConfig, fbank
torch.set_num_threads(2)
waveform = torch.zeros(2, 80000)
stop = threading.Event()
def work(config):
    while not stop.is_set():
        fbank(waveform, config, backend="numba")
# One length is compiled already, the others while children are forked.
fbank(waveform, backend="numba")
threads = [
    threading.Thread(target=work, args=(FbankConfig(n_fft=n_fft),)) for n_fft in (512, 1024, 2048)
]
for thread in threads:
    thread.start()
codes = []
for _ in range(40):
    child = os.fork()
    if child == 0:
        fbank(waveform, backend="numba")
        os._exit(0)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
raise SystemExit(any(codes))
""")


def test_a_call_at_interpreter_exit_still_works() -> None:
    printed = run_program("""
import atexit, torch
from ast_fast_kernels import fbank
torch.set_num_threads(2)
waveform = torch.zeros(8, 80000)
fbank(waveform, backend="numba")
atexit.register(lambda: print(fbank(waveform, backend="numba").shape))
""")
    assert printed.strip() == "torch.Size([8, 498, 128])"


def test_a_forked_child_needs_none_of_its_parents_threads() -> None:
    """Nor torch's: a fork does not copy them, and torch would wait for them for ever."""
    run_program(
        START
        + """
import signal
lengths = [80000, 0, 399, 400, 8000, 79999, 1, 80000] * 2
calls = {
    "int16": lambda: fbank((WAVES * 20000).astype(np.int16)),
    "strided": lambda: fbank(np.repeat(WAVES, 2, axis=1)[:, ::2]),
    "ragged": lambda: fbank(WAVES, lengths=lengths),
}
for name in ("ast", "kaldi", "seed", "librosa", "melspectrogram", "python_speech_features",
             "vggish", "whisper", "lhotse", "nemo"):
    config = FbankConfig.preset(name)
    calls[name] = lambda config=config: fbank(WAVES, config)
    calls[f"{name}, ragged"] = lambda config=config: fbank(WAVES, config, lengths=lengths)
(torch.zeros(1000, 1000) + 1.0).sum()  # torch starts its own
codes = {}
for name, call in calls.items():
    before = call()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(0 if np.array_equal(call(), before) else 3)
    codes[name] = os.waitpid(child, 0)[1]
assert not any(codes.values()), codes
""",
    )


def test_the_interpreter_exits_while_daemon_threads_call() -> None:
    """They call the kernel itself: torch's own functions abort the process then."""
    run_program(
        START
        + """
import time
from ast_fast_kernels.fbank import numba_cpu
expected()
out = torch.empty(16, 498, 128)
waves, config = torch.from_numpy(WAVES), FbankConfig()
def call_for_ever():
    while True:
        numba_cpu.fbank_numba(waves, config, out)
for child in range(10):
    if os.fork() == 0:
        for _ in range(4):
            threading.Thread(target=call_for_ever, daemon=True).start()
        time.sleep(0.01 * child)
        break  # and the interpreter exits
else:
    codes = [os.wait()[1] for _ in range(10)]
    raise SystemExit(any(codes))
""",
    )


def test_a_first_call_at_interpreter_exit_still_works() -> None:
    """Some versions of Python start no thread any more by then."""
    printed = run_program(
        START
        + """
import atexit
from ast_fast_kernels.fbank import numba_cpu
atexit.register(lambda: print(expected().shape))
""",
    )
    assert printed.strip() == "(16, 498, 128)"


def test_it_is_called_as_often_as_asked() -> None:
    seen: list[int] = []
    plain_threads.call_at_once(lambda: seen.append(threading.get_ident()), 7)
    assert len(seen) == 7


def test_an_error_in_a_helper_is_raised_by_the_caller() -> None:
    begun = threading.Event()

    def run() -> None:
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(10)
        else:
            begun.set()
            raise ValueError("helper")

    with pytest.raises(ValueError, match="helper"):
        plain_threads.call_at_once(run, 2)


def test_an_interrupt_waits_until_helpers_have_stopped_writing() -> None:
    ended = threading.Event()
    begun = threading.Event()

    def run() -> None:
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        ended.wait(0.2)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        plain_threads.call_at_once(run, 2)
    assert ended.is_set()


def test_a_helper_that_is_busy_is_not_waited_for() -> None:
    """Nor do offers to it pile up."""
    busy, free = threading.Event(), threading.Event()

    def hold() -> None:
        if threading.current_thread().name.startswith("ast-fast"):
            busy.set()
        assert free.wait(10)

    count = plain_threads._helpers + 2
    holder = threading.Thread(target=plain_threads.call_at_once, args=(hold, count))
    holder.start()
    try:
        assert busy.wait(10)
        done: list[int] = []
        for _ in range(1000):
            plain_threads.call_at_once(lambda: done.append(1), 10)
        assert len(done) == 10_000
        assert plain_threads._offers.qsize() <= plain_threads._helpers
    finally:
        free.set()
        holder.join()


def test_an_offer_of_a_call_that_has_ended_stands_in_nobodys_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plain_threads, "_offers", SimpleQueue())
    monkeypatch.setattr(plain_threads, "_helpers", 1)
    ended, next_one, late = (plain_threads._Share(deque()) for _ in range(3))
    next_one.tasks.append(lambda: None)
    plain_threads._offers.put(ended)
    plain_threads._offer([next_one])
    plain_threads._offer([late])  # the one helper there is has work to come to
    assert plain_threads._offers.get_nowait() is next_one
    assert plain_threads._offers.empty()


def test_a_call_leaves_nothing_of_its_arrays_behind() -> None:
    array = np.zeros(100)
    kept = weakref.ref(array)

    def work(array: np.ndarray = array) -> None:
        array[:] = 1.0

    plain_threads.call_at_once(work, 2)
    assert array.all()
    del work, array
    deadline = time.monotonic() + 10
    while kept() is not None and time.monotonic() < deadline:
        time.sleep(0.001)  # a helper may come late, and find nothing
    assert kept() is None


def test_a_system_that_refuses_threads_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    helpers = plain_threads._helpers
    done: list[int] = []
    plain_threads.call_at_once(lambda: done.append(1), helpers + 20)
    assert len(done) == helpers + 20
    assert plain_threads._helpers == helpers


def test_a_change_of_the_thread_count_changes_no_bit() -> None:
    run_program(
        START
        + """
before = expected()
for threads in (1, 2, 7, 1, 3):
    torch.set_num_threads(threads)
    assert (before == expected()).all()
""",
    )


def test_many_python_threads_call_at_once() -> None:
    waveform = 0.1 * torch.randn(4, 80000, generator=torch.Generator().manual_seed(0))
    expected = fbank(waveform, backend="numba")
    results: list[torch.Tensor] = []

    def call() -> None:
        results.extend(fbank(waveform, backend="numba") for _ in range(5))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 40
    assert all(torch.equal(result, expected) for result in results)


def test_first_import_and_first_calls_in_threads(tmp_path: Path) -> None:
    run_program(
        """
import threading
results = []
def work():
    import numpy as np
    from ast_fast_kernels import fbank
    results.append(fbank(np.ones((8, 80000), np.float32), backend="numba"))
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(results) == 4
assert all((result == results[0]).all() for result in results)
""",
        NUMBA_CACHE_DIR=str(tmp_path / "cache"),  # so that all four meet while it is compiled
    )


def test_eight_callers_share_the_helpers_of_one() -> None:
    run_program(
        START
        + """
before = expected()
first = threading.Thread(target=expected)  # which the main thread's helpers are not for
first.start()
first.join()
tasks = lambda: len(os.listdir("/proc/self/task"))
idle, most, results = tasks(), [0], []
def call():
    for _ in range(10):
        results.append((fbank(WAVES, backend="numba") == before).all())
        most[0] = max(most[0], tasks())
threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(results) == 80 and all(results)
# Two threads asked for: the one helper there was already, and none for each caller.
assert most[0] <= idle + 8, (idle, most)
""",
    )


def test_the_main_thread_is_helped_by_torchs_own() -> None:
    run_program(
        START
        + """
torch.ones(1000, 1000).exp()  # torch starts its own
fbank(WAVES[:1], backend="numba")  # Numba has one too
tasks = lambda: len(os.listdir("/proc/self/task"))
before = tasks()
for _ in range(3):
    expected()
assert tasks() == before
""",
    )


@pytest.mark.parametrize("threads", [2, 3])
def test_no_more_work_at_once_than_asked(threads: int) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.1)
        with lock:
            running -= 1

    plain_threads.call_at_once(work, threads + 3)  # more helpers than the next call wants
    most = 0
    plain_threads.call_at_once(work, threads)
    assert most == threads


def test_an_interrupt_ends_a_call_and_the_next_one_is_right() -> None:
    run_program(
        START
        + """
import signal
before = expected()
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGALRM, stop)
stopped = 0
for attempt in range(40):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.00005 * attempt)
        for _ in range(5): expected()
    except Stop:
        stopped += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
assert stopped > 20, stopped
assert (before == expected()).all()
""",
    )


def test_an_interrupt_between_two_configs_mixes_nothing_of_them() -> None:
    run_program(
        START
        + """
from ast_fast_kernels.fbank import numba_cpu
torch.set_num_threads(1)
before = expected()
sizes = numba_cpu._buffer_sizes
def interrupted(*_):
    raise KeyboardInterrupt
numba_cpu._buffer_sizes = interrupted
try:
    fbank(WAVES, FbankConfig(n_fft=2048, num_mel_bins=64), backend="numba")
except KeyboardInterrupt:
    numba_cpu._buffer_sizes = sizes
assert numba_cpu._buffer_sizes is sizes
assert (before == expected()).all()
""",
    )


def test_read_only_packages_and_no_home_are_no_obstacle(
    read_only_package: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = read_only_package
    printed = run_program(
        """
import logging, numpy as np
logging.basicConfig()
import ast_fast_kernels
print(ast_fast_kernels.__file__)
print(ast_fast_kernels.fbank(np.zeros((1, 16000), np.float32), backend="numba").shape)
""",
        **environment,
    )
    where, shape = printed.splitlines()
    assert where.startswith(str(folder))
    assert shape == "(1, 98, 128)"


LIMITED = """
from ast_fast_kernels.testing.processes import private_memory_limit
def limited(what, run):
    with private_memory_limit(2 * 2**20, what):  # a mebibyte a thread
        run()
"""


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_memory_beside_input_and_output_is_a_mebibyte_a_thread(dtype: str) -> None:
    run_program(
        START
        + LIMITED
        + f"""
expected()  # threads and tables are there
for shape in ((1, 400), (1, 80000), (64, 80000), (4096, 1600), (3, 3_000_000)):
    for config in (FbankConfig(), FbankConfig.preset("whisper"), FbankConfig.preset("nemo")):
        waves = np.zeros(shape, {dtype!r})
        strided = np.zeros((shape[0], 2 * shape[1]), {dtype!r})[:, ::2]
        out = np.zeros((shape[0], config.num_frames(shape[1]), config.num_mel_bins), np.float32)
        lengths = np.full(shape[0], shape[1] - shape[1] // 3)
        fbank(waves[:, :400], config, backend="numba")
        for name, wave, extra in (
            ("contiguous", waves, {{}}),
            ("strided", strided, {{}}),
            ("ragged", waves, {{"lengths": lengths}}),
        ):
            limited(
                f"{{name}} {{shape}}",
                lambda: fbank(wave, config, out=out, backend="numba", **extra),
            )
""",
    )


def test_ten_hours_in_one_call(tmp_path: Path) -> None:
    run_program(
        START
        + LIMITED
        + f"""
config = FbankConfig(num_mel_bins=4)
samples = 36_000 * 16_000
waves = np.memmap({str(tmp_path / "clip")!r}, np.int16, "w+", shape=(1, samples))  # sparse: silence
waves[0, -8000:] = np.arange(8000)
shape = (1, config.num_frames(samples), 4)
out = np.memmap({str(tmp_path / "out")!r}, np.float32, "w+", shape=shape)
expected()
fbank(waves[:, :400], config, backend="numba")
limited("ten hours", lambda: fbank(waves, config, out=out, backend="numba"))
end = fbank(np.asarray(waves[:, -16000:]), config, backend="numba")
assert (out[0, -end.shape[1] :] == end[0]).all()
assert (out[0, 1000] == np.float32(config.log_silence)).all()
""",
    )
