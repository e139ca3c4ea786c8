"""The end of a run: report.json for programs, report.html for people."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ast_fast.data.dataset import Dataset
from ast_fast.machine.records import known_fields
from ast_fast.report import metrics
from ast_fast.report.kernel_check import KernelChecks
from ast_fast.report.page import render_page
from ast_fast.report.wrong import MOST_SHOWN, WrongClip, wrong_clips
from ast_fast.settings.config import Config
from ast_fast.settings.toml import DIGEST, config_values
from ast_fast.training.calibration import at_temperature
from ast_fast.training.results import FoldResult
from ast_fast.training.step import GRAPH
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.sealed import CHECKSUM, is_intact, sealed
from ast_fast_kernels.files.text import read_document

STAGES = ("decode", "features", "forward", "backward")
"""Stages that the report names, with `GRAPH` where steps were replayed; the rest is `other`."""


@dataclass(frozen=True)
class Measured:
    """Times of one fold, and the check of its kernels."""

    seconds: float
    """Wall time of the fold, with its kernel check; of a resumed fold, of the epochs kept."""
    stages: dict[str, float]
    """Seconds of each stage."""
    kernels: KernelChecks
    """On one batch of the fold's test clips."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave.

        Raises:
            KeyError, TypeError: It is incomplete.
        """
        kernels = KernelChecks.from_json(document["kernels"])
        return cls(**known_fields(cls, document) | {"kernels": kernels})

    def to_json(self) -> dict[str, Any]:
        """Return the content of measured.json."""
        kernels = self.kernels.to_json()
        return {"seconds": self.seconds, "stages": self.stages, "kernels": kernels}


def write_report(
    out_dir: Path,
    config: Config,
    dataset: Dataset,
    results: Sequence[FoldResult],
    *,
    measured: Mapping[int, Measured],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Write report.json and report.html into the run's folder; return report.json's content.

    Args:
        out_dir: The run's folder.
        config: The run's settings.
        dataset: The clips for training and testing.
        results: One for each fold tested.
        measured: Times and kernel checks, by fold.
        run: The content of run.json, with the end of the run.
    """
    report = build_report(config, dataset, results, measured=measured, run=run)
    with atomic_write(out_dir / "report.json") as path:
        text = json.dumps(sealed(report), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    page = render_page(report, config, dataset, results)
    with atomic_write(out_dir / "report.html") as path:
        path.write_text(page, encoding="utf-8")
    return report


def read_report(out_dir: Path) -> dict[str, Any]:
    """Return the content of report.json in a finished run's folder.

    Raises:
        InputError: It is missing, damaged, or is not a run's report.
    """
    path = out_dir / "report.json"
    try:
        report: dict[str, Any] = json.loads(read_document(path))
        for table, key in (("accuracy", "per_fold"), ("data", "key"), ("timing", "total_seconds")):
            report[table][key]
        report["config"].keys()
        accuracies = {int(k): 0.0 + v for k, v in report["accuracy"]["per_fold"].items()}
        if not accuracies or not all(0 <= value <= 1 for value in accuracies.values()):
            raise ValueError(f"accuracies must be between 0 and 1, got {accuracies}")
        if not math.isfinite(report["timing"]["total_seconds"]):
            raise ValueError("timing.total_seconds must be finite")
        is_sealed = report.get("run", {}).get(DIGEST) is not None or CHECKSUM in report
    except FileNotFoundError:
        raise InputError(f"{out_dir} must be a finished run; it has no report.json") from None
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
        OverflowError,  # of a number with hundreds of digits
    ) as error:
        raise InputError(f"{path} must be a run's report, but cannot be read: {error!r}") from error
    if is_sealed and not is_intact(report):
        raise InputError(
            f"{path} is damaged or was changed: its checksum does not match; resume the run with "
            f"--resume --out {out_dir} to write it again"
        )
    return report


def calibrated_loss(report: Mapping[str, Any]) -> float | None:
    """Return the calibrated loss of a report; None if it has none.

    That of one fold alone has none, nor has that of an earlier version.
    """
    match report:
        case {"calibration": {"calibrated": {"loss": int() | float() as loss}}}:
            return float(loss)
        case _:
            return None


def build_report(
    config: Config,
    dataset: Dataset,
    results: Sequence[FoldResult],
    *,
    measured: Mapping[int, Measured],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Return report.json's content: accuracy, classes, kernels, times, settings and machine.

    The deviation over folds is the sample standard deviation (n - 1), 0 for one fold. Calibration
    is of the tested clips of all folds, each at its own fold's temperature; without temperatures,
    `calibrated` is null. Numbers that are not finite become null, because JSON has only finite
    ones.
    """
    labels, predicted = _pooled(dataset, results)
    names = dataset.class_names
    matrix = metrics.confusion_matrix(labels, predicted, len(names))
    report = {
        "accuracy": _accuracy(results),
        "folds": {str(result.fold): _fold(dataset, result) for result in results},
        "classes": [asdict(row) for row in metrics.class_metrics(labels, predicted, names)],
        "confusion": matrix.tolist(),
        "most_confused": [asdict(pair) for pair in metrics.most_confused(matrix, names)],
        "calibration": _calibration(dataset, results),
        "wrong_clips": [_wrong(clip) for clip in wrong_clips(dataset, [results])[:MOST_SHOWN]],
        "kernels": _kernels(measured),
        "timing": _timing(dataset, results, measured),
        "data": _data(config, dataset),
        "config": config_values(config),
        "run": dict(run),
    }
    finite: dict[str, Any] = _finite(report)
    return finite


def _accuracy(results: Sequence[FoldResult]) -> dict[str, Any]:
    mean, std = metrics.mean_and_std([result.accuracy for result in results])
    per_fold = {str(result.fold): result.accuracy for result in results}
    return {"mean": mean, "std": std, "per_fold": per_fold}


def _fold(dataset: Dataset, result: FoldResult) -> dict[str, Any]:
    labels, predicted = _pooled(dataset, [result])
    matrix = metrics.confusion_matrix(labels, predicted, len(dataset.class_names))
    return {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "temperature": result.temperature,
        "calibrated_loss": _calibrated_loss(dataset, result),
        "num_train": int(np.sum(dataset.folds != result.fold)),
        "num_test": len(result.test_indices),
        "confusion": matrix.tolist(),
        "history": [asdict(row) for row in result.history],
    }


def _calibrated_loss(dataset: Dataset, result: FoldResult) -> float | None:
    if result.temperature is None:
        return None
    probabilities = at_temperature(result.probabilities, result.temperature)
    return metrics.calibration(probabilities, dataset.labels[result.test_indices]).loss


def _calibration(dataset: Dataset, results: Sequence[FoldResult]) -> dict[str, Any]:
    labels, _ = _pooled(dataset, results)
    as_is = np.concatenate([result.probabilities for result in results])
    found: dict[str, Any] = {
        "as_is": asdict(metrics.calibration(as_is, labels)),
        "calibrated": None,
    }
    if all(result.temperature is not None for result in results):
        calibrated = np.concatenate(
            [at_temperature(result.probabilities, result.temperature) for result in results]
        )
        found["calibrated"] = asdict(metrics.calibration(calibrated, labels))
    return found


def _wrong(clip: WrongClip) -> dict[str, Any]:
    (predicted,) = clip.taken_for
    return {
        "filename": clip.filename,
        "fold": clip.fold,
        "label": clip.label,
        "predicted": predicted,
        "probability": clip.probability,
    }


def _data(config: Config, dataset: Dataset) -> dict[str, Any]:
    return {
        "path": None if dataset.synthesised else str(dataset.root),
        "synthesised": dataset.synthesised,
        "stored_features": dataset.is_stored,
        "subset": config.subset,
        "num_clips": len(dataset.clips),
        "num_classes": len(dataset.class_names),
        "folds": sorted({int(fold) for fold in dataset.folds}),
        "key": dataset.key,
        "bad_files": [asdict(bad) for bad in dataset.bad_files],
        "flaws": {
            kind: {"count": len(names), "files": list(names)}
            for kind, names in dataset.flaws.items()
        },
    }


def _pooled(
    dataset: Dataset, results: Sequence[FoldResult]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the labels and predictions of every tested clip."""
    labels = np.concatenate([dataset.labels[result.test_indices] for result in results])
    predicted = np.concatenate([result.probabilities.argmax(axis=1) for result in results])
    return labels, predicted


def _kernels(measured: Mapping[int, Measured]) -> dict[str, Any]:
    """Summarise the folds' checks: the largest error, the median ratio, and each fold's check."""
    by_fold = {str(fold): cost.kernels.by_operation() for fold, cost in measured.items()}
    operations: dict[str, Any] = {}
    for operation in next(iter(by_fold.values()), {}):
        if not all(operation in checks for checks in by_fold.values()):
            continue
        rows = [checks[operation] for checks in by_fold.values()]
        errors = [row.max_abs_error for row in rows if row.max_abs_error is not None]
        ratios = [row.speed_ratio for row in rows if row.speed_ratio is not None]
        operations[operation] = {
            "backend": rows[0].backend,
            "max_abs_error": max(errors, default=None),
            "speed_ratio": statistics.median(ratios) if ratios else None,
            **({"reason": rows[0].reason} if rows[0].reason else {}),
            "per_fold": {fold: checks[operation].to_json() for fold, checks in by_fold.items()},
        }
    return operations


def _timing(
    dataset: Dataset, results: Sequence[FoldResult], measured: Mapping[int, Measured]
) -> dict[str, Any]:
    """Return training speed, and the seconds of each stage over all folds.

    The speed counts training steps only. The work that a killed process did after its last
    checkpoint is not counted.
    """
    total = dataset.decode_seconds + sum(fold.seconds for fold in measured.values())
    replayed = any(GRAPH in fold.stages for fold in measured.values())
    names = (*STAGES, GRAPH) if replayed else STAGES
    stages = {name: sum(fold.stages.get(name, 0.0) for fold in measured.values()) for name in names}
    stages["decode"] = dataset.decode_seconds
    stages["other"] = max(0.0, total - sum(stages.values()))
    rows = [row for result in results for row in result.history]
    seconds = sum(row.seconds for row in rows)
    clips = sum(row.seconds * row.clips_per_second for row in rows)
    return {
        "clips_per_second": clips / seconds if seconds > 0 else None,
        "total_seconds": total,
        "stages": stages,
        "epochs": len(rows),
    }


def _finite(value: Any) -> Any:
    """Return JSON data with null in place of NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
