"""Attention's CPU kernels in other people's processes: threads, forks, pools, limits."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor

from ast_fast_kernels import attention
from ast_fast_kernels._cpu import team, threads
from ast_fast_kernels.testing.processes import run_program

TORCH_ONLY = """
import os, signal, sys, threading, time, traceback
from concurrent.futures import ThreadPoolExecutor
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch runs no backward in the fork of one that saw a GPU
import numpy as np, torch
torch.set_num_threads(2)
QKV = torch.linspace(-3, 3, 6 * 40 * 3 * 2 * 16).sin().view(6, 40, 3, 2, 16)
GRAD = torch.linspace(-5, 5, 6 * 40 * 2 * 16).cos().view(6, 40, 2, 16)
def both(qkv=QKV, grad=GRAD, **options):
    # Torch copies nothing here: in a forked process it would wait for its threads for ever.
    leaf = qkv.detach().requires_grad_()
    out = attention(leaf, backend="numba", **options)
    (gradient,) = torch.autograd.grad(out, leaf, grad)
    return out.detach().numpy(), gradient.numpy()
def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
def use_torchs_threads():
    torch.ones(512, 512) @ torch.ones(512, 512)
    (torch.zeros(1000, 1000) + 1.0).sum()
def exit_code_of_child(run):
    # 0 where it returns what is true, -14 where it hangs.
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if run() else 3)
        except BaseException:
            traceback.print_exc()
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

START = TORCH_ONLY + "from ast_fast_kernels import attention\n"


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Have the kernels on the disk: what has half a minute need not compile them."""
    qkv = torch.zeros(1, 1, 3, 1, 16, requires_grad=True)
    attention(qkv, backend="numba").sum().backward()


def forward_and_backward(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(5, 70, 3, 3, 32, generator=generator).requires_grad_()
    weight = torch.randn(5, 70, 3, 32, generator=generator)
    out = attention(qkv, backend="numba")
    return out.detach(), torch.autograd.grad(out, qkv, weight)[0]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loader_workers_compute_the_same(method: str) -> None:
    run_program(
        START
        + f"""
from torch.utils.data import DataLoader, Dataset
class Clips(Dataset):
    def __len__(self):
        return len(QKV)
    def __getitem__(self, index):
        torch.set_num_threads(1 + index % 2)  # torch itself sets 1 in a worker
        return both(QKV[index : index + 1], GRAD[index : index + 1])
if __name__ == "__main__":
    use_torchs_threads()
    before = both()  # the parent has used it, with threads
    loader = DataLoader(Clips(), batch_size=2, num_workers=2, multiprocessing_context={method!r})
    batches = list(loader)
    after = [torch.cat(parts).flatten(0, 1).numpy() for parts in zip(*batches)]
    assert same(after, before)
    assert same(both(), before)
"""
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_pool_computes_the_same(method: str) -> None:
    run_program(
        START
        + f"""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def part(first):
    torch.set_num_threads(2)
    return both(QKV[first : first + 3], GRAD[first : first + 3])
if __name__ == "__main__":
    use_torchs_threads()
    before = both()
    context = multiprocessing.get_context({method!r})
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        parts = list(pool.map(part, [0, 3]))
    assert same(map(np.concatenate, zip(*parts)), before)
    assert same(both(), before)
"""
    )


@pytest.mark.parametrize(
    "before",
    [
        "",
        "import ast_fast_kernels",
        "import ast_fast_kernels.attention.numba_cpu",
        "from ast_fast_kernels import attention; attention(QKV, backend='numba')",
        "from ast_fast_kernels import attention; both()",
    ],
    ids=["nothing", "imported", "kernels-imported", "forward-called", "both-called"],
)
def test_a_child_forked_after_torch_s_threads_ran_computes_the_same(
    before: str, tmp_path: Path
) -> None:
    """Whatever of this package its parent had seen by then."""
    run_program(
        TORCH_ONLY
        + f"""
{before}
use_torchs_threads()
def child():
    global attention
    from ast_fast_kernels import attention
    np.savez(sys.argv[1], *both())
    return True
code = exit_code_of_child(child)
assert code == 0, code
from ast_fast_kernels import attention
with np.load(sys.argv[1]) as saved:
    assert same(saved.values(), both())
""",
        str(tmp_path / "child.npz"),
    )


def test_a_forked_child_needs_none_of_its_parents_threads() -> None:
    """Which would copy and convert tensors of more than 32,768 elements, and do not exist there."""
    run_program(
        START
        + """
shape = (4, 100, 4, 32)
wide = torch.linspace(-3, 3, 2 * 3 * 51_200).sin().view(4, 100, 3, 4, 64)
qkv = torch.linspace(-3, 3, 3 * 51_200).sin().view(4, 100, 3, 4, 32)
grad = torch.linspace(-5, 5, 51_200).cos().view(shape)
lengths = [100, 1, 33, 64]
clips = torch.linspace(-3, 3, 40_000 * 48).sin().view(40_000, 1, 3, 1, 16)
calls = {
    "strided": lambda: both(wide[..., ::2], grad),
    "strided, by heads first": lambda: both(qkv.view(4, 4, 3, 100, 32).transpose(1, 3), grad),
    "expanded gradient": lambda: both(qkv, torch.ones(()).expand(shape)),
    "gradient of a mean over tokens": lambda: both(qkv, grad[:, :1].expand(shape)),
    "strided gradient": lambda: both(qkv, wide[:, :, 0, :, ::2]),
    "gradient by heads first": lambda: both(qkv, grad.view(4, 4, 100, 32).transpose(1, 2)),
    "list of key lengths": lambda: both(qkv, grad, key_lengths=lengths),
    "tensor of key lengths": lambda: both(qkv, grad, key_lengths=torch.tensor(lengths)),
    "strided, key lengths": lambda: both(wide[..., 1::2], grad, key_lengths=lengths),
    "many clips": lambda: both(clips, clips[:, :, 0]),
}
use_torchs_threads()
codes = {}
for name, call in calls.items():
    before = call()
    codes[name] = exit_code_of_child(lambda: same(call(), before))
assert not any(codes.values()), codes
"""
    )


def test_a_forked_child_takes_key_lengths_of_many_clips() -> None:
    """Of more than 32,768, whose conversion torch leaves to its threads."""
    run_program(
        START
        + """
clips = torch.linspace(-3, 3, 40_000 * 48).sin().view(40_000, 1, 3, 1, 16)
ones = torch.ones(40_000, dtype=torch.int64)
def call():
    return both(clips, clips[:, :, 0], key_lengths=ones)
before = call()
code = exit_code_of_child(lambda: same(call(), before))
assert code == 0, code
"""
    )


def test_threads_and_children_of_a_forked_child_compute_the_same() -> None:
    run_program(
        START
        + """
use_torchs_threads()
before = both()
def child():
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: same(both(), before), range(9)))
    return all(results) and exit_code_of_child(lambda: same(both(), before)) == 0
code = exit_code_of_child(child)
assert code == 0, code
assert same(both(), before)
"""
    )


def test_children_forked_while_threads_compute_and_compile_do_not_hang(tmp_path: Path) -> None:
    run_program(
        START
        + """
import numba
before = both()
numba.config.CACHE_DIR = sys.argv[1]  # so that the other head_dim is compiled meanwhile
stop, compiled = threading.Event(), threading.Event()
def compute():
    rounds = 0
    while not stop.is_set():
        assert same(both(), before)
        rounds += 1
    return rounds
def compile():
    both(torch.zeros(1, 2, 3, 1, 32), torch.zeros(1, 2, 1, 32))
    compiled.set()
with ThreadPoolExecutor(3) as pool:
    computing = [pool.submit(compute) for _ in range(2)]
    compiling = pool.submit(compile)
    codes = []
    while len(codes) < 20 or not (compiled.is_set() or compiling.done()):
        codes.append(exit_code_of_child(lambda: same(both(), before)))
        if codes[-1]:
            break
    stop.set()
compiling.result()
assert not any(codes), codes
assert all(thread.result() > 0 for thread in computing)
""",
        str(tmp_path),
    )


def test_a_call_at_interpreter_exit_still_works() -> None:
    printed = run_program(
        START
        + """
import atexit
before = both()
atexit.register(lambda: print(same(both(), before)))
"""
    )
    assert printed.strip() == "True"


def test_a_first_call_at_interpreter_exit_still_works() -> None:
    """Some versions of Python start no thread any more by then."""
    printed = run_program(
        START
        + """
import atexit
from ast_fast_kernels.attention import numba_cpu
def call():
    first = both()
    torch.set_num_threads(1)
    print(same(both(), first))
atexit.register(call)
"""
    )
    assert printed.strip() == "True"


def test_the_interpreter_exits_while_daemon_threads_call() -> None:
    """They run kernels on tensors that exist: torch's own functions abort the process then."""
    run_program(
        START
        + """
from ast_fast_kernels.attention import numba_cpu
out, stats = numba_cpu.launch_attention_fwd(QKV, None, 0.25)
dqkv = numba_cpu.launch_attention_bwd(GRAD, QKV, out, stats, None, 0.25)
written = out.data_ptr(), stats.data_ptr()
read_by_backward = *written, dqkv.data_ptr(), GRAD.data_ptr(), *GRAD.stride()[:3]
def call_for_ever():
    while True:
        numba_cpu._run("forward", QKV, None, 0.25, written)
        numba_cpu._run("backward", QKV, None, 0.25, read_by_backward)
def start():
    for _ in range(4):
        threading.Thread(target=call_for_ever, daemon=True).start()
for child in range(10):
    if os.fork() == 0:
        start()
        time.sleep(0.01 * child)
        break  # and the interpreter exits
else:
    codes = [os.wait()[1] for _ in range(10)]
    assert not any(codes), codes
    start()  # on torch's threads, which children lack
    time.sleep(0.05)
"""
    )


@pytest.mark.parametrize("threads", ["torch's", "plain"])
def test_an_interrupt_ends_a_call_and_the_next_one_is_right(threads: str) -> None:
    run_program(
        START
        + f"""
from ast_fast_kernels._cpu import team
if {threads!r} == "plain":
    team._gomp_parallel = lambda: None
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGALRM, stop)
before = both()
begin = time.perf_counter()
for _ in range(5): both()
seconds = (time.perf_counter() - begin) / 5
stopped = 0
for attempt in range(40):
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds * (attempt + 1) / 20)  # over two calls
        for _ in range(1000): both()
    except Stop:
        stopped += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert same(both(), before), attempt
assert stopped == 40, stopped
"""
    )


def test_threads_that_call_at_once_compute_the_same() -> None:
    run_program(
        START
        + """
before = both()
counts = (1, 2, 3, 2)
together = threading.Barrier(len(counts))
def right_rounds(count):
    together.wait(60)
    right = 0
    for _ in range(20):
        torch.set_num_threads(count)
        right += same(both(), before)
    return right
with ThreadPoolExecutor(len(counts)) as pool:
    right = list(pool.map(right_rounds, counts))  # raises what a thread raised
assert right == [20] * len(counts), right
"""
    )


def test_many_python_threads_call_at_once(two_threads: None) -> None:
    expected = forward_and_backward()
    results: list[tuple[Tensor, Tensor]] = []

    def call() -> None:
        results.extend(forward_and_backward() for _ in range(3))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 24
    assert all(map(torch.equal, result, expected) for result in results)


def test_python_threads_that_have_ended_leave_none_behind() -> None:
    """Each has a team of its own in libgomp, which ends with it."""
    run_program(
        START
        + """
before = both()
def tasks():
    return len(os.listdir("/proc/self/task"))
idle, right = tasks(), []
def call():
    torch.set_num_threads(2)
    right.append(same(both(), before))
for _ in range(20):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
assert right == [True] * 20, right
deadline = time.monotonic() + 10
while tasks() > idle + 2 and time.monotonic() < deadline:
    time.sleep(0.01)
assert tasks() <= idle + 2, (idle, tasks())
"""
    )


def test_backward_in_another_thread_than_forward(two_threads: None) -> None:
    qkv = torch.linspace(-3, 3, 4 * 33 * 3 * 2 * 16).sin().view(4, 33, 3, 2, 16).requires_grad_()
    weight = torch.linspace(-5, 5, 4 * 33 * 2 * 16).cos().view(4, 33, 2, 16)
    out = attention(qkv, backend="numba")
    (expected,) = torch.autograd.grad(out, qkv, weight, retain_graph=True)
    results: list[Tensor] = []
    thread = threading.Thread(
        target=lambda: results.extend(torch.autograd.grad(out, qkv, weight)), daemon=True
    )
    thread.start()
    thread.join(timeout=60)
    assert len(results) == 1
    assert torch.equal(results[0], expected)


def test_first_import_and_first_calls_in_threads(tmp_path: Path) -> None:
    run_program(
        TORCH_ONLY
        + """
together = threading.Barrier(4)
def work(_):
    global attention
    together.wait(60)
    from ast_fast_kernels import attention
    return both()
with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(work, range(4)))
assert all(same(result, both()) for result in results)
""",
        NUMBA_CACHE_DIR=str(tmp_path / "cache"),  # so that all four meet while it is compiled
    )


def test_read_only_packages_and_no_home_are_no_obstacle(
    read_only_package: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = read_only_package
    printed = run_program(
        START
        + """
import logging
logging.basicConfig()
import ast_fast_kernels
print(ast_fast_kernels.__file__)
before = both()
print(same(both(), before), *(array.shape for array in before))
""",
        **environment,
    )
    where, shapes = printed.splitlines()
    assert where.startswith(str(folder))
    assert shapes == "True (6, 40, 2, 16) (6, 40, 3, 2, 16)"


def test_a_change_of_the_thread_count_changes_no_bit() -> None:
    """Nor in a forked child, which has threads of another kind."""
    run_program(
        START
        + """
before = both()
def is_same_with_any():
    for threads in (1, 2, 7, 1, 3):
        torch.set_num_threads(threads)
        if not same(both(), before):
            return False
    return True
use_torchs_threads()
assert is_same_with_any()
use_torchs_threads()
code = exit_code_of_child(is_same_with_any)
assert code == 0, code
"""
    )


def test_fewer_threads_than_asked_for_do_all_the_work() -> None:
    run_program(
        START
        + """
before = both()
torch.set_num_threads(1)
assert same(both(), before)
""",
        OMP_THREAD_LIMIT="1",
    )


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_memory_beside_inputs_and_outputs_is_a_few_rows_a_token_and_thread(direction: str) -> None:
    """A mebibyte aside, forward: keys, values and a block's weights; backward: their gradients too.

    Those are a part's, and with more than one part each has the gradient of all queries. None of it
    grows with the clips or the heads beyond the threads, nor with the square of the tokens.
    """
    run_program(
        START
        + f"""
from ast_fast_kernels.attention import numba_cpu
from ast_fast_kernels.attention.numba_task import parts_of
from ast_fast_kernels._cpu.simd import host_lanes
from ast_fast_kernels.testing.processes import private_memory_limit
direction, threads = {direction!r}, 2
block = numba_cpu.QUERY_VECTORS[direction] * host_lanes()
torch.set_num_threads(threads)
both()  # threads are there
shapes = (1, 1, 1, 16), (4, 1500, 2, 16), (1, 6000, 1, 16), (64, 200, 4, 16)
for batch, tokens, heads, head_dim in shapes:
    parts, part = parts_of(tokens)
    if direction == "forward":
        floats = threads * (tokens + 64) * (2 * head_dim + block)
    else:
        floats = threads * (min(tokens, part) + 64) * (4 * head_dim + 2 * block)
        if parts > 1:
            floats += min(threads, batch * heads) * parts * tokens * head_dim
    beside = 4 * floats + 2**20
    qkv = torch.zeros(batch, tokens, 3, heads, head_dim)
    grad = torch.zeros(batch, tokens, heads, head_dim)
    for name, lengths in (("all", None), ("ragged", [tokens - tokens // 3] * batch)):
        what = f"{{name}} of {{tuple(qkv.shape)}}"
        leaf = qkv.detach().requires_grad_()
        if direction == "forward":
            given = 4 * (grad.numel() + 2 * batch * heads * tokens)
            with torch.no_grad(), private_memory_limit(given + beside, what):
                attention(leaf, key_lengths=lengths, backend="numba")
            continue
        out = attention(leaf, key_lengths=lengths, backend="numba")
        with private_memory_limit(4 * qkv.numel() + beside, what):
            torch.autograd.grad(out, leaf, grad)
"""
    )


def test_plain_threads_give_the_same_bits_as_torch_s(monkeypatch, two_threads: None) -> None:
    """As they do where torch has no libgomp."""
    if team._gomp_parallel() is None:
        pytest.skip("torch has no OpenMP here whose threads could be shared")
    expected = forward_and_backward()
    counts: list[int] = []
    call_at_once = threads.call_at_once

    def counted(run, times: int) -> None:
        counts.append(times)
        call_at_once(run, times)

    monkeypatch.setattr(threads, "call_at_once", counted)
    monkeypatch.setattr(team, "_gomp_parallel", lambda: None)
    assert all(map(torch.equal, forward_and_backward(), expected))
    assert counts == [2, 2]


def test_a_system_that_refuses_threads_is_no_obstacle(monkeypatch, two_threads: None) -> None:
    """To plain threads; where libgomp gets none, it ends the process, in torch's functions too."""
    expected = forward_and_backward()
    refused: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(team, "_gomp_parallel", lambda: None)
    monkeypatch.setattr(threads, "_helpers", 0)
    monkeypatch.setattr(threads, "_offers", SimpleQueue())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert all(map(torch.equal, forward_and_backward(), expected))
    assert len(refused) == 2
