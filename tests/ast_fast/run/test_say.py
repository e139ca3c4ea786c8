"""What a run prints before its first fold."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from ast_fast.run.say import say_what_runs


def said(cuda_graph: bool = False, **changes: Any) -> list[str]:
    data = {
        "synthesised": False,
        "is_stored": False,
        "root": Path("data"),
        "clips": [0] * 8,
        "class_names": ["x", "y"],
        "bad_files": (),
        "flaws": {},
    }
    model: Any = SimpleNamespace(parameters=lambda: [], num_patches=4)
    facts: Any = SimpleNamespace(
        kernels={"fbank": "numba", "attention": "numba"},
        device="cpu",
        cuda_graph=cuda_graph,
        threads=1,
        resumed=[],
    )
    out = io.StringIO()
    console = Console(file=out, soft_wrap=True, markup=False)
    dataset: Any = SimpleNamespace(**{**data, **changes})
    folder: Any = SimpleNamespace(path=Path("out"))
    say_what_runs(console, dataset, (1,), model, facts, folder)
    return out.getvalue().splitlines()


def test_ruined_audio_gets_one_line_for_each_kind() -> None:
    flaws = {"cancelled": ["a.wav"], "clipped": [f"{n}.wav" for n in range(2000)]}
    lines = said(flaws=flaws)
    assert lines[2:4] == [
        "         2000 files are clipped: over 1 % of the samples are beyond full scale "
        "(0.wav, 1.wav, 2.wav and 1997 more)",
        "         1 file is nearly silent: a channel is inverted, and the mean of all is taken "
        "(a.wav)",
    ]
    assert len(lines) == len(said()) + 2


def test_steps_replayed_as_a_graph_are_named() -> None:
    assert said()[3] == "kernels  FBANK by numba, attention by numba; cpu, 1 threads"
    replayed = said(cuda_graph=True)[3]
    assert replayed.endswith("; cpu, steps replayed as a CUDA graph, 1 threads")
