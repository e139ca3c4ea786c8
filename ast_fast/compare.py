"""Compare finished runs fold by fold: `python -m ast_fast.compare runs/a runs/b …`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table
from scipy import stats

from ast_fast.report.build import calibrated_loss
from ast_fast.report.metrics import mean_and_std
from ast_fast.report.page import page_environment
from ast_fast.run.verified import read_finished
from ast_fast.settings.agree import NOT_COMPARED, PRETRAINED
from ast_fast_kernels.console import RunConsole, check_paths, fail, parse_options
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.text import one_line, one_name

PROGRAM = "python -m ast_fast.compare"

CONFIDENCE = 0.95

UNKNOWN = "not known then"
"""Shown for a setting that an earlier version's run did not have."""


@dataclass(frozen=True)
class Options:
    """Compare finished runs on the same data: differences of accuracy, paired by fold."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUNS ...")]
    """Folders of finished runs; each is compared with the first."""
    html: Path | None = None
    """HTML page to write the comparison to."""


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences and its confidence interval, as shares of 1."""

    mean: float
    low: float
    high: float

    @property
    def shown(self) -> str:
        """The interval in percentage points; a single fold has none."""
        if math.isnan(self.low):
            return "none (one fold)"
        return f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"


@dataclass(frozen=True)
class Row:
    """One run, compared with the first."""

    name: str
    mean: float
    std: float
    per_fold: dict[int, float]
    seconds: float
    loss: float | None
    """Calibrated; None if its report has none."""
    difference: Difference | None
    """None for the first run itself."""


def paired_difference(run: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Return the mean of run − baseline over folds, with its 95 % confidence interval.

    Args:
        run: Accuracy by fold.
        baseline: The baseline's accuracy, of the same folds.
    """
    differences = [run[fold] - baseline[fold] for fold in sorted(run)]
    mean, std = mean_and_std(differences)
    if len(differences) < 2:
        return Difference(mean, math.nan, math.nan)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(differences) - 1) * std
    half /= math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half)


def compare(paths: Sequence[Path]) -> tuple[list[Row], dict[str, list[str]]]:
    """Return a row for each run, and the values of each setting in which runs differ.

    Raises:
        InputError: There are fewer than two runs, a file is missing or damaged, or data or folds
            differ.
    """
    if len(paths) < 2:
        raise InputError(f"RUNS must be at least 2 folders, got {len(paths)}")
    reports = [read_finished(path) for path in paths]
    accuracies = [
        {int(fold): float(value) for fold, value in report["accuracy"]["per_fold"].items()}
        for report in reports
    ]
    for path, report, accuracy in zip(paths[1:], reports[1:], accuracies[1:], strict=True):
        if report["data"]["key"] != reports[0]["data"]["key"]:
            raise InputError(f"{paths[0]} and {path} must hold the same clips; they do not")
        if accuracy.keys() != accuracies[0].keys():
            raise InputError(
                f"{path} must have the folds of {paths[0]} ({_listed(accuracies[0])}), "
                f"got {_listed(accuracy)}"
            )
    rows = []
    for index, (path, report, accuracy) in enumerate(zip(paths, reports, accuracies, strict=True)):
        mean, std = mean_and_std(list(accuracy.values()))
        difference = paired_difference(accuracy, accuracies[0]) if index else None
        seconds = float(report["timing"]["total_seconds"])
        loss = calibrated_loss(report)
        rows.append(Row(one_line(str(path)), mean, std, accuracy, seconds, loss, difference))
    settings = [_settings(report) for report in reports]
    keys = sorted(set().union(*settings) - NOT_COMPARED)
    values = {key: [one_name(config.get(key, UNKNOWN)) for config in settings] for key in keys}
    return rows, {key: shown for key, shown in values.items() if len(set(shown)) > 1}


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run; a pre-trained model is its content, wherever it lay."""
    digest = report.get("run", {}).get(PRETRAINED)
    by_content = {} if digest is None else {"model.pretrained": f"SHA-256 {digest}"}
    return {**report["config"], **by_content}


def _listed(folds: Mapping[int, float]) -> str:
    return ", ".join(map(str, sorted(folds)))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the runs that the arguments name; return the exit code.

    Args:
        argv: The arguments; None takes the command line's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse_options(Options, PROGRAM, arguments)
    try:
        check_paths(arguments, "--html")
        rows, settings = compare(options.runs)
        if options.html is not None:
            _write_page(options.html, rows, settings)
    except InputError as error:
        return fail(*error.problems)
    console = RunConsole()
    table = Table()
    table.add_column("run", overflow="fold")  # paths often differ only at their end
    has_losses = any(row.loss is not None for row in rows)
    losses = ("calibrated loss",) if has_losses else ()
    for title in ("accuracy", "difference", "95 % interval", *losses, "minutes"):
        table.add_column(title)
    for row in rows:
        difference = ("–", "–")
        if row.difference is not None:
            difference = (f"{100 * row.difference.mean:+.1f}", row.difference.shown)
        accuracy = f"{100 * row.mean:.1f} % ± {100 * row.std:.1f}"
        loss = "–" if row.loss is None else f"{row.loss:.3f}"
        cells = (*difference, *((loss,) if has_losses else ()), f"{row.seconds / 60:.0f}")
        table.add_row(row.name, accuracy, *cells)
    console.print(table)
    if settings:
        table = Table("setting")
        for row in rows:
            table.add_column(row.name, overflow="fold")
        for key, values in settings.items():
            table.add_row(one_name(key), *values)
        console.print(table)
    return 0


def _write_page(path: Path, rows: Sequence[Row], settings: Mapping[str, Sequence[str]]) -> None:
    page = page_environment().get_template("compare.html")
    text = page.render(runs=rows, folds=sorted(rows[0].per_fold), settings=settings)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--html {path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
