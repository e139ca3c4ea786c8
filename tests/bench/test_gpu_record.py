"""The GPU's record, run on toy sizes in the interpreter: its logic, not its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "bench.gpu_record", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """The record, and the table that was printed."""
    path = tmp_path_factory.mktemp("record") / "gpu.json"
    done = run("--tiny", "--out", str(path))
    assert done.returncode == 0, done.stderr
    assert not list(path.parent.glob("*.partial"))
    return json.loads(path.read_text()), done.stdout


def test_every_kernel_is_held_to_float64(ran: tuple[dict, str]) -> None:
    errors = ran[0]["errors"]
    assert len(errors) >= 10
    for op in ("attention", "layer norm", "gelu", "fbank"):
        assert any(name.startswith(op) for name in errors), op
    assert all(row["holds"] and 0 < row["error"] <= row["bound"] for row in errors.values())


def test_every_comparison_has_its_candidates(ran: tuple[dict, str]) -> None:
    times = ran[0]["times"]
    assert {"triton", "triton, int16", "torch eager"} <= times["fbank, 2 clips"]["seconds"].keys()
    attention = times["attention (1, 17, 2, 16) forward"]
    assert {"flash", "cudnn", "efficient", "triton"} == {
        *attention["seconds"],
        *attention["cannot"],
    }
    for name in ("training step", "fold's epoch"):
        assert times[name]["seconds"].keys() == {"triton", "torch", "transformers"}
    assert all(seconds > 0 for row in times.values() for seconds in row["seconds"].values())


def test_the_record_says_where_it_is_from(ran: tuple[dict, str]) -> None:
    record, shown = ran
    assert {"command", "commit", "date", "device", "platform", "seconds", "versions"} <= {*record}
    assert record["times_mean_something"] is False
    assert "TIMES MEAN NOTHING" in shown.upper()
    for name in (*record["errors"], *record["times"]):
        assert name in shown


def test_the_tests_on_the_gpu_are_part_of_it(ran: tuple[dict, str]) -> None:
    tests = ran[0]["tests"]
    assert tests["failed"] == []
    assert tests["counts"] == {"skipped": tests["collected"]}  # there is no GPU here
    assert tests["collected"] > 200


def test_an_error_that_is_too_large_fails_the_command(monkeypatch, tmp_path, capsys) -> None:
    from bench import gpu_record

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for step in ("measure_fbank", "measure_attention", "measure_block", "measure_training"):
        monkeypatch.setattr(gpu_record, step, lambda recorder: None)
    monkeypatch.setattr(
        gpu_record, "check_kernels", lambda recorder: recorder.check("one", 2.0, 1.0)
    )
    out = tmp_path / "gpu.json"
    assert gpu_record.main(["--tiny", "--no-tests", "--out", str(out)]) == 1
    assert "IS TOO LARGE" in capsys.readouterr().out
    assert json.loads(out.read_text())["errors"]["one"]["holds"] is False


def test_a_step_that_ends_it_leaves_the_steps_before(monkeypatch, tmp_path) -> None:
    from bench import gpu_record

    def taken_back(recorder) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(
        gpu_record, "check_kernels", lambda recorder: recorder.check("one", 1.0, 2.0)
    )
    monkeypatch.setattr(gpu_record, "measure_fbank", taken_back)
    out = tmp_path / "gpu.json"
    with pytest.raises(KeyboardInterrupt):
        gpu_record.main(["--tiny", "--no-tests", "--out", str(out)])
    assert not out.exists()
    left = json.loads(out.with_suffix(".partial").read_text())
    assert left["errors"]["one"]["holds"] is True


def test_a_record_that_could_not_be_written_is_refused_at_once(
    monkeypatch, tmp_path, capsys
) -> None:
    from bench import gpu_record

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for path in (tmp_path / "no" / "gpu.json", tmp_path):
        with pytest.raises(SystemExit) as ended:
            gpu_record.main(["--tiny", "--out", str(path)])
        assert ended.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"--out must be a file in a folder that can be written to, got {path}" in line


@pytest.mark.parametrize(
    ("arguments", "interpret", "words"),
    [
        ([], "0", "this needs a CUDA GPU; --tiny tries the steps without one"),
        (["--tiny"], "0", "--tiny needs TRITON_INTERPRET=1"),
        ([], "1", "TRITON_INTERPRET=1 is for --tiny: a GPU would not be used"),
    ],
    ids=["no-gpu", "tiny", "interpreted"],
)
def test_what_it_cannot_do_here_it_says(
    arguments: list[str], interpret: str, words: str, monkeypatch, capsys
) -> None:
    import torch

    from bench import gpu_record

    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_record.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
