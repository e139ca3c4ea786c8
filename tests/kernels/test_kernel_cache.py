"""Compiled kernels on disk: what is damaged is not run, and one process compiles for all."""

from __future__ import annotations

import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from ast_fast_kernels import mix
from ast_fast_kernels._cpu import disk
from ast_fast_kernels._cpu.simd import integers_at
from ast_fast_kernels._cpu.team import compile_worker
from ast_fast_kernels.mix import numba_cpu


def answer(number: int) -> int:
    """Compile or load a kernel that writes a number, and return what it writes."""

    def kernel(address: int) -> None:
        integers_at(address)[0] = number

    kernel.__module__ = "ast_fast_kernels.test"
    kernel.__qualname__ = "kernel"
    task = np.zeros(1, np.int64)
    compile_worker(kernel).ctypes(task.ctypes.data)
    return int(task[0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that this process uses."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A function that returns what was logged since it was last called."""
    caplog.set_level(logging.INFO, "ast_fast_kernels")
    disk._say_unusable.cache_clear()
    disk.say_uncached.cache_clear()

    def take() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return take


def the_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.nbc")
    return path


def damaged(whole: bytes) -> dict[str, bytes]:
    """What can happen to a file."""
    choose = random.Random(0)
    found = {"empty": b"", "garbage": b"garbage", "appended to": whole + b"\0"}
    for place in choose.sample(range(8 * len(whole)), 500):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        found[f"bit {place}"] = bytes(flipped)
    for length in choose.sample(range(len(whole)), 100):
        found[f"first {length} bytes"] = whole[:length]
    return found


def test_no_damage_is_taken_for_a_whole_file(folder: Path) -> None:
    answer(1)
    path = the_file(folder)
    whole = path.read_bytes()
    assert disk._read_whole(path) == whole[disk.DIGEST_BYTES :]
    assert len(damaged(whole)) == 603
    for name, contents in damaged(whole).items():
        path.write_bytes(contents)
        assert disk._read_whole(path) is None, name


class Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def test_results_are_the_same_after_a_bit_of_their_kernel_flipped(
    folder: Path, said: Callable[[], list[str]]
) -> None:
    waveforms = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32)
    indices, factors = torch.tensor([[0, 1]]), torch.tensor([[0.3, 0.7]])

    def mixed() -> bytes:
        numba_cpu._worker.cache_clear()
        return mix(waveforms, indices, indices, factors, backend="numba").numpy().tobytes()

    expected = mixed()
    path = the_file(folder)
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 4
    path.write_bytes(held)
    said()
    assert mixed() == expected
    assert len(said()) == 3
    assert mixed() == expected
    assert said() == []


@pytest.mark.parametrize("kind", ["bit", "truncated", "appended to", "foreign", "swapped"])
def test_a_damaged_kernel_is_said_compiled_and_replaced(
    kind: str, folder: Path, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    assert answer(1) == 1
    path = the_file(folder)
    whole = path.read_bytes()
    witness = tmp_path / "unpickled"
    match kind:
        case "bit":
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 16]) + whole[middle + 1 :])
        case "truncated":
            path.write_bytes(whole[:-100])
        case "appended to":
            path.write_bytes(whole + b"more")
        case "foreign":
            path.write_bytes(pickle.dumps(Exploit(witness)))
        case "swapped":  # whole, but another kernel's
            path.unlink()
            answer(2)
            the_file(folder).rename(path)
    said()
    assert answer(1) == 1
    first, *compiled = said()
    assert first == f"the cached kernel {path} is damaged; it is compiled again"
    assert [line.split()[0] for line in compiled] == ["compiling", "compiled"]
    assert disk._read_whole(path)
    assert not witness.exists()
    assert answer(1) == 1
    assert said() == []


def test_a_whole_file_is_taken_and_nothing_else_is_left(
    folder: Path, said: Callable[[], list[str]]
) -> None:
    answer(1)
    litter = the_file(folder).with_name(f"{the_file(folder).name}.1.tmp")
    litter.write_bytes(b"of a killed process")
    shutil.copy(the_file(folder), folder / "kept")
    the_file(folder).unlink()
    said()
    answer(1)
    assert len(said()) == 2
    assert answer(1) == 1
    assert said() == []
    assert [path.name for path in folder.rglob("*") if path.is_file()].count("kept") == 1
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 2


def test_a_folder_that_can_only_be_read_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    """As in a container's image."""
    answer(1)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk.os, "open", refuse)
    said()
    assert answer(1) == 1
    assert said() == []
    assert answer(2) == 2
    uncached, *compiled = said()
    assert uncached.startswith("compiled kernels are not cached on disk: none can be written of ")
    assert uncached.endswith("; NUMBA_CACHE_DIR names another folder")
    assert len(compiled) == 2


def test_a_full_disk_keeps_the_kernel(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    def refuse(path: Path, contents: bytes) -> None:
        with path.open("wb") as file:
            file.write(contents[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert answer(1) == 1
    assert said()[-1].endswith("[Errno 28] No space left on device")
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_what_cannot_be_read_is_compiled(folder: Path, said: Callable[[], list[str]]) -> None:
    answer(1)
    path = the_file(folder)
    path.unlink()
    path.mkdir()  # a folder in its place can be neither read nor replaced
    said()
    assert answer(1) == 1
    first, *_, last = said()
    assert first == (f"the cached kernel {path} is not a regular file; it is compiled again")
    assert last.startswith(f"compiled kernels are not cached on disk: {path}: ")


HOLD = """
import fcntl, os, signal, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
signal.pause()
"""


@pytest.fixture
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `answer(1)`'s kernel, which is not on the disk."""
    answer(1)
    path = the_file(folder)
    path.unlink()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, f"{path}.lock"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_process_waits_until_the_one_that_compiles_is_killed(
    holder: subprocess.Popen[str], said: Callable[[], list[str]]
) -> None:
    said()
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(answer(1)))
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()
    (waiting,) = said()
    assert waiting == "waiting for another process that compiles the test kernel for number 1"
    holder.kill()
    thread.join(30.0)
    assert answers == [1]
    assert [line.split()[0] for line in said()] == ["compiling", "compiled"]


def test_a_process_that_is_stopped_is_not_waited_for_for_ever(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    holder.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(disk, "LONGEST_WAIT", 0.2)
    said()
    assert answer(1) == 1
    assert [line.split()[0] for line in said()] == ["waiting", "waited", "compiling", "compiled"]


MANY = """
import logging, sys, time
import numpy as np
from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels._cpu.simd import integers_at
from ast_fast_kernels._cpu.team import compile_worker

class Slow(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        time.sleep(0.5)  # a kernel for an example compiles in less time than processes differ by

logging.basicConfig(handlers=[Slow(sys.stdout)], level=logging.INFO, format="%(message)s")
def build(number):
    def kernel(address):
        integers_at(address)[0] = number
    kernel.__module__ = "ast_fast_kernels.fbank.numba_kernel"
    return kernel
print("ready", flush=True)
sys.stdin.readline()
task = np.zeros(1, np.int64)
compile_worker(build(42)).ctypes(task.ctypes.data)
print(task[0])
"""


def test_one_of_many_processes_compiles(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    (tmp_path / "many.py").write_text(MANY)
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "many.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0] for process in processes]
    kernel = "the fbank kernel for number 42"
    assert not any(process.returncode for process in processes)
    assert "".join(printed).count(f"compiling {kernel}\n") == 1
    waiting = [
        text.count(f"waiting for another process that compiles {kernel}") for text in printed
    ]
    assert max(waiting) == 1
    assert sum(waiting) >= 1
    assert all(text.endswith("42\n") for text in printed)


def test_a_pipe_in_place_of_a_kernel_is_not_waited_for(
    folder: Path, said: Callable[[], list[str]]
) -> None:
    assert answer(6) == 6
    path = the_file(folder)
    path.unlink()
    os.mkfifo(path)
    said()
    assert answer(6) == 6
    assert said()[0] == (f"the cached kernel {path} is not a regular file; it is compiled again")
    assert path.is_file()
