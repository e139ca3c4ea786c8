"""Kernels compiled ahead of time: nothing is left to compile, and a command line that fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ast_fast_kernels import warm
from ast_fast_kernels.testing.processes import run_program

SET = ["--set", "frame_length=2.0", "frame_shift=1.0", "num_mel_bins=8"]  # an FFT of 32
WARM = f"""
import sys
from ast_fast_kernels.warm import main
code = main(["--preset", "kaldi", *{SET!r}])
assert "torch" not in sys.modules
raise SystemExit(code)
"""
WARM_GRADIENT = f"""
from ast_fast_kernels.warm import main
raise SystemExit(main(["--preset", "kaldi", "--gradient", *{SET!r}]))
"""
USE = """
import logging, sys
import numpy as np
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
from ast_fast_kernels import FbankConfig, fbank
fields = {"frame_length": 2.0, "frame_shift": 1.0, "num_mel_bins": 8}
config = FbankConfig.preset("kaldi", **fields)
for dtype in (np.int16, np.float32):
    fbank(np.zeros((3, 999), dtype), config, lengths=[999, 0, 40])
    fbank(np.zeros(999, dtype), config)
"""
TRAIN = f"""{USE}
import torch
waveforms = torch.ones(3, 999, requires_grad=True)
fbank(waveforms, config, lengths=[999, 0, 40]).sum().backward()
"""


def test_a_process_after_it_compiles_nothing(tmp_path: Path) -> None:
    said = run_program(WARM, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    compiled, kept = ["compiling", "compiled"], ["kept", "kept", "ready:"]
    # What its helpers run for longer clips, and its own.
    assert [line.split()[0] for line in said] == [*compiled, *compiled, *kept]
    folders = {f"kept in {kernel.parent}" for kernel in tmp_path.rglob("*.nbc")}
    assert folders == {said[4], said[5]}
    said = run_program(WARM, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    assert [line.split()[0] for line in said] == kept
    assert "compil" not in run_program(USE, NUMBA_CACHE_DIR=str(tmp_path))
    said = run_program(WARM_GRADIENT, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    assert [line.split()[0] for line in said] == [*compiled, *kept]
    assert "compil" not in run_program(TRAIN, NUMBA_CACHE_DIR=str(tmp_path))


def test_kernels_that_cannot_be_kept_are_an_error(read_only_package) -> None:
    _, environment = read_only_package
    with pytest.raises(RuntimeError) as raised:
        run_program(WARM, NUMBA_CACHE_DIR="", **environment)
    said = str(raised.value)
    assert said.startswith("exit code 1: error: not kept on disk: the crew kernel, the fbank ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "kalid"], "argument --preset: invalid choice: 'kalid'"),
        (["--preset"], "argument --preset: expected at least one argument"),
        (["--sample-rate", "fast"], "argument --sample-rate: invalid float value: 'fast'"),
        (["--sample-rate", "-1"], "sample_frequency must be"),
        (["--set", "n_ff=512"], "--set must name a field of FbankConfig, got 'n_ff'"),
        (["--set", "n_fft"], "--set must be FIELD=VALUE, got 'n_fft'"),
        (["--set", "n_fft=many"], "n_fft must be"),
        (["--preset", "ast", "--set", "n_fft=8192"], "numba needs an FFT length of"),
        (["--mix", "--sample-rate", "8000"], "--sample-rate and --set change presets; --preset"),
        (["--attention", "48"], "numba needs a head_dim of 16, 32, 64, got 48"),
        (["--stem", "6"], "numba needs a width divisible by 4, got 6"),
        (["--preset", "ast", "--set", "frame_length=1e15"], "Unable to allocate "),
        (["--preset", "ast", "--set", "window_type=a\nb"], "window_type must be one of"),
        (["--all"], "unrecognized arguments: --all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_do_not_fit_end_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = warm.main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "ast_fast_kernels.warm", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "NUMBA_CACHE_DIR" in shown
