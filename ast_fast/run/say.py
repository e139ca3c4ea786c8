"""What a run prints before its first fold, after its last, and when it ends early."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ast_fast.data.dataset import Dataset
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.run.facts import RunFacts, program
from ast_fast.run.folder import RunFolder
from ast_fast_kernels.audio.flaws import flaw_lines
from ast_fast_kernels.files.text import one_line


def say_what_runs(
    console: Console,
    dataset: Dataset,
    folds: tuple[int, ...],
    model: AudioSpectrogramTransformer,
    facts: RunFacts,
    folder: RunFolder,
) -> None:
    """Print the data, the model, the kernels and the output folder of the run."""
    say = console.print
    if dataset.synthesised:
        where = "synthesised (no --data was given): simple artificial sounds, not real audio"
    else:
        where = one_line(str(dataset.root))
    if dataset.is_stored:
        where += " (features of an extraction)"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"data     {where}")
    say(
        f"         {len(dataset.clips)} clips, {len(dataset.class_names)} classes, testing on "
        f"fold{'s' if len(folds) > 1 else ''} {' '.join(map(str, folds))}"
    )
    if dataset.bad_files:
        say(f"         {len(dataset.bad_files)} files that cannot be read are skipped")
    for line in flaw_lines(dataset.flaws):
        say(f"         {line}")
    say(f"model    {parameters:,} parameters, {model.num_patches} patches")
    how = ", steps replayed as a CUDA graph" if facts.cuda_graph else ""
    say(
        f"kernels  FBANK by {facts.kernels['fbank']}, attention by {facts.kernels['attention']}; "
        f"{facts.device}{how}, {facts.threads} threads"
    )
    say(f"out      {one_line(str(folder.path))}{' (resumed)' if facts.resumed else ''}")


def say_results(
    console: Console, report: Mapping[str, Any], folder: Path, *, synthesised: bool
) -> None:
    """Print each fold's accuracy and kernels, then accuracy, time and the path of the report.

    Args:
        console: Console to print on.
        report: Contents of report.json.
        folder: The run's folder.
        synthesised: Whether the data set was synthesised.
    """
    accuracy, timing = report["accuracy"], report["timing"]
    titles = ("FBANK" if op == "fbank" else op for op in report["kernels"])
    columns = ["fold", "accuracy", *(cell for op in titles for cell in (op, "error"))]
    folds = Table(*columns, box=None, padding=(0, 3, 0, 0))
    for fold, value in accuracy["per_fold"].items():
        cells = [fold, f"{100 * value:.1f} %"]
        for op in report["kernels"].values():
            check = op["per_fold"][fold]
            if check["speed_ratio"] is None:
                cells += [check["backend"], "not compared"]
            else:
                error = check["max_abs_error"]  # None where it is not finite
                shown = "not finite" if error is None else f"{error:.1e}"
                cells += [f"{check['speed_ratio']:.1f} x", shown]
        folds.add_row(*cells)
    console.print()
    console.print(folds)
    spread = f" ± {100 * accuracy['std']:.1f} over folds" if len(accuracy["per_fold"]) > 1 else ""
    of = ", on synthesised data" if synthesised else ""
    console.print(f"\naccuracy {100 * accuracy['mean']:.1f} %{spread}{of}")
    calibration = report["calibration"]
    if calibration["calibrated"] is not None:
        losses = (calibration[key]["loss"] for key in ("as_is", "calibrated"))
        console.print("loss     {:.3f}, calibrated {:.3f}".format(*losses))
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timing["stages"].items())
    console.print(f"time     {timing['total_seconds']:.1f} s: {stages}")
    console.print(f"report   {one_line(str(folder / 'report.html'))}")


def how_to_resume(folder: RunFolder | None) -> str:
    """Return what is kept of a run that ended early, and the command that resumes it."""
    if folder is None or not folder.holds_run:
        return "no run was started, and nothing is left behind"
    again = [*shlex.split(program(folder.ranks)), "--resume", "--out", str(folder.path)]
    return f"finished epochs are kept; resume with: {shlex.join(again)}"
