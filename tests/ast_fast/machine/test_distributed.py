"""Runs of several processes, as torchrun starts them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from ast_fast.data import synth
from ast_fast.machine.distributed import ALONE, Ranks, is_lost_peer, join_ranks
from ast_fast.training.checkpoint import load
from ast_fast_kernels.errors import InputError

SETTINGS = [
    "--audio.clip-seconds", "1", "--features.target-frames", "112",
    "--folds", "2", "--threads", "1", "--device", "cpu", "--training.amp", "off",
    "--training.epochs", "3", "--training.batch-size", "31", "--model.depth", "2",
    "--features.no-norm-per-sample", "--model.conditional-position",
    "--model.stem-widths", "8", "16", "--model.conv-depth", "1",
    "--augment.mix-probability", "1", "--augment.filter-db", "3",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The settings, and a third of the synthesised data set: fold 2 is trained on 80 clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth, "CLIPS_PER_FOLD", 2)
        data = synth.synthesise(tmp_path_factory.mktemp("data"), console=Console(quiet=True))
    return [*SETTINGS, "--data", str(data)]


def start(cache: Path, out: Path, *given: str, processes: int = 1) -> subprocess.Popen[str]:
    program = [sys.executable] if processes == 1 else TORCHRUN
    return subprocess.Popen(
        [*program, "-m", "ast_fast.cv", *given, "--out", str(out), "--cache", str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"},
    )


def run(cache: Path, out: Path, *given: str, processes: int = 1) -> str:
    process = start(cache, out, *given, processes=processes)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(arguments: list[str], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(cache, out, *arguments)
    return out


@pytest.fixture(scope="module")
def together(
    arguments: list[str], cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("together") / "run"
    return out, run(cache, out, *arguments, processes=2)


def history(out: Path) -> list[dict[str, float]]:
    with (out / "fold-2" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    timeless = {"seconds", "clips_per_second"}
    return [{k: float(v) for k, v in row.items() if v and k not in timeless} for row in rows]


def probabilities(out: Path) -> NDArray[np.float64]:
    with (out / "fold-2" / "predictions.csv").open(newline="") as file:
        return np.array([row[4:] for row in list(csv.reader(file))[1:]], np.float64)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_two_processes_train_as_one_does(alone: Path, together: tuple[Path, str]) -> None:
    """Same curve, tests, statistics and predictions; the batch of 31 splits unevenly."""
    here, there = history(together[0]), history(alone)
    assert len(here) == 3
    for row, expected in zip(here, there, strict=True):
        assert row == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(probabilities(together[0]), probabilities(alone), atol=1e-3)
    facts, expected_facts = (
        load(out / "fold-2" / "model.safetensors")[1] for out in (together[0], alone)
    )
    assert facts["statistics"] == expected_facts["statistics"]


def test_the_first_process_alone_prints_and_writes(together: tuple[Path, str]) -> None:
    out, printed = together
    assert printed.count("report   ") == 1
    assert printed.count("fold 2, epoch 1/3") == 1
    assert "Warning" not in printed
    assert read(out / "report.json")["accuracy"]["per_fold"].keys() == {"2"}
    info = read(out / "run.json")
    assert info["processes"] == 2
    assert info["command"].startswith("torchrun --nproc-per-node 2 -m ast_fast.cv ")
    assert sorted(path.name for path in (out / "fold-2").iterdir()) == [
        "history.csv",
        "manifest.json",
        "measured.json",
        "model.safetensors",
        "predictions.csv",
    ]


def test_a_killed_process_ends_the_job_which_resumes(
    arguments: list[str], alone: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(cache, out, *arguments, processes=2)
    try:
        while not (out / "fold-2" / "checkpoint.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.02)
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode != 0
    command = f"torchrun --nproc-per-node 2 -m ast_fast.cv --resume --out {out}"
    assert command in output, output
    assert "another process of this run has ended; " in output or "terminated; " in output
    run(cache, out, "--resume", processes=2)
    for row, expected in zip(history(out), history(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


def test_another_number_of_processes_may_not_resume(
    together: tuple[Path, str], cache: Path
) -> None:
    process = start(cache, together[0], "--resume")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert "processes was 2 and is now 1\n" in output


def test_bad_settings_end_the_job_with_their_error(cache: Path, tmp_path: Path) -> None:
    process = start(cache, tmp_path / "run", "--training.epochs", "0", processes=2)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "error: training.epochs must be at least 1, got 0" in output
    assert not (tmp_path / "run").exists()


def test_several_seeds_are_made_by_the_same_processes(
    arguments: list[str], cache: Path, tmp_path: Path
) -> None:
    given = [*arguments, "--training.epochs", "1", "--seeds", "0", "1"]
    given.remove("3")
    given.remove("--training.epochs")
    output = run(cache, tmp_path / "runs", *given, processes=2)
    assert output.count("over seeds 0 1 (") == 1
    assert read(tmp_path / "runs" / "seeds.json")["accuracy"]["per_seed"].keys() == {"0", "1"}


@pytest.mark.parametrize(("size", "count"), [(31, 2), (1, 2), (0, 3), (10, 3)])
def test_parts_cover_all_rows_once_and_evenly(size: int, count: int) -> None:
    parts = [np.arange(size)[Ranks(rank, count).part(size)] for rank in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_alone_shares_with_nobody() -> None:
    rows = np.ones((2, 3), np.float32)
    assert ALONE.is_first
    assert ALONE.sum(1.5, 2.0) == [1.5, 2.0]
    assert ALONE.gather(rows) is rows
    assert ALONE.same("x") == "x"


def test_a_lost_process_is_told_from_defects() -> None:
    assert is_lost_peer(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"))
    assert not is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_peer(ValueError("closed by peer"))


@pytest.fixture
def third_of_three(monkeypatch) -> list[str]:
    """A process that torchrun started on a machine with one GPU; what it meets the others by."""
    met: list[str] = []
    for name, value in (("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.distributed, "init_process_group", met.append)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    return met


def test_a_run_on_the_cpu_needs_no_gpu_for_each_process(third_of_three: list[str]) -> None:
    assert join_ranks(torch.device("cpu")) == Ranks(2, 3)
    assert third_of_three == ["gloo"]


def test_a_run_on_gpus_needs_one_for_each_process(third_of_three: list[str]) -> None:
    with pytest.raises(InputError, match="must be at most the 1 GPUs of this machine, got 3"):
        join_ranks(torch.device("cuda"))
    assert third_of_three == []
