"""A finished run, read back only if its files agree with each other."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from ast_fast.data.dataset import Dataset
from ast_fast.report.build import read_report
from ast_fast.run.folder import MEASURED
from ast_fast.settings.config import Config
from ast_fast.settings.toml import CONFIG, DIGEST, RUN, recorded_run, recorded_values
from ast_fast.training.fold import split_fold
from ast_fast.training.manifest import check_files, missing_manifest, read_manifest, remedy
from ast_fast.training.results import PREDICTIONS, RESULTS, FoldResult, load_result
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import read_document


def read_finished(out: Path) -> dict[str, Any]:
    """Return the content of report.json in a finished run's folder.

    The settings are checked against run.json, each fold's files against its manifest, and the
    report against both. Of a record, a copy of report.json and run.json alone, only these are.
    A run of version 0.2.0 has no manifest and no digest of its settings.

    Raises:
        InputError: The run is not finished, or the message names the file that cannot be trusted.
    """
    report = read_report(out)
    if (out / CONFIG).is_file():
        recorded_values(out)
    _check_same_run(out, report)
    for fold, accuracy in report["accuracy"]["per_fold"].items():
        folder = out / f"fold-{fold}"
        if folder.is_dir():
            _check_fold(folder, accuracy, must_have_manifest=DIGEST in report.get("run", {}))
    return report


def finished_fold(config: Config, dataset: Dataset, fold: int, home: Path) -> FoldResult:
    """Return the result of a fold that a run has finished.

    Args:
        config: The run's settings.
        dataset: Its clips.
        fold: The fold.
        home: The run's folder.
    Raises:
        InputError: As `load_result`, or the fold is not finished.
    """
    folder = home / f"fold-{fold}"
    result = load_result(config, dataset, fold, folder, split_fold(dataset, fold)[1])
    if result is None:
        raise InputError(f"{folder} must be a finished fold; its files are missing or incomplete")
    return result


def _check_same_run(out: Path, report: dict[str, Any]) -> None:
    """Raise if report.json and run.json are of different runs."""
    if not (out / RUN).exists():
        return  # whoever needs its facts names it
    run, reported = recorded_run(out), report.get("run", {})
    for name in ("started", DIGEST):
        if run.get(name) != reported.get(name):
            raise InputError(
                f"{out / 'report.json'} is of another run than {out / RUN}: {name} differs; "
                f"resume the run with --resume --out {out} to write it again"
            )


def _check_fold(folder: Path, accuracy: float, *, must_have_manifest: bool) -> None:
    """Raise if a fold's files are not those that were written, or give another accuracy."""
    files = read_manifest(folder)
    if files is not None:
        check_files(folder, files, (*RESULTS, *((MEASURED,) if MEASURED in files else ())))
    elif must_have_manifest:
        raise missing_manifest(folder)
    path = folder / PREDICTIONS
    try:
        rows = list(csv.reader(io.StringIO(read_document(path), newline="")))[1:]
        found = sum(target == predicted for _, _, target, predicted, *_ in rows) / len(rows)
    except FileNotFoundError:
        return  # of version 0.2.0: a manifest would list it
    except (OSError, ValueError, csv.Error, ZeroDivisionError) as error:
        raise InputError(
            f"{path} must hold the predictions of a finished fold, but cannot be read ({error}); "
            f"{remedy(folder)}"
        ) from error
    if abs(found - accuracy) * len(rows) > 0.5:  # less than a clip is rounding
        raise InputError(
            f"{path} must give the accuracy in report.json, {accuracy:.6g}, got {found:.6g}; "
            f"{remedy(folder)}, or resume the run to write the report again"
        )
