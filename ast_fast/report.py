"""The end of a run: report.json for programs, report.html for people."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from ast_fast import figures, metrics
from ast_fast.data.dataset import Dataset
from ast_fast.errors import InputError
from ast_fast.features import log_mel
from ast_fast.kernel_check import FBANK_ERRORS
from ast_fast.machine.atomic import atomic_write
from ast_fast.settings.config import Config
from ast_fast.settings.toml import config_values
from ast_fast.train import FoldResult
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.tables import filter_edges

STAGES = ("decode", "features", "forward", "backward")
"""Stages that the report names; the rest of the run's time is `other`."""

LISTED_BAD_FILES = 50
"""Bad files that the page names before it counts the rest."""


MOST_ROWS = 16
"""Classes that one column of the page's table holds; more stand in two."""


@dataclass(frozen=True)
class Measured:
    """What one fold cost."""

    seconds: float
    """Wall time of the fold, kernel check included; if it was taken up again, of what was kept."""
    stages: dict[str, float]
    """Seconds of each stage."""
    kernels: dict[str, Any]
    """`kernel_check.check_kernels` on a batch of the fold."""


def write_report(
    out_dir: Path,
    config: Config,
    dataset: Dataset,
    results: Sequence[FoldResult],
    *,
    measured: Mapping[int, Measured],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Write report.json and report.html into the run's folder, and return what report.json holds.

    Args:
        out_dir: The run's folder.
        config: The run's settings.
        dataset: The clips it was trained and tested on.
        results: One for each fold tested.
        measured: Times and kernel checks, by fold.
        run: What `run_info.describe_run` found, with the end of the run.
    """
    report = build_report(config, dataset, results, measured=measured, run=run)
    with atomic_write(out_dir / "report.json") as path:
        path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    page = render_page(report, config, dataset, results)
    with atomic_write(out_dir / "report.html") as path:
        path.write_text(page, encoding="utf-8")
    return report


def read_report(out_dir: Path) -> dict[str, Any]:
    """Return report.json of a finished run's folder.

    Raises:
        InputError: There is none, or it is no run's report.
    """
    path = out_dir / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for table, key in (("accuracy", "per_fold"), ("data", "key"), ("timing", "total_seconds")):
            report[table][key]
        report["config"].keys()
    except FileNotFoundError:
        raise InputError(f"{out_dir} must be a finished run; it has no report.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} must be a run's report, but cannot be read: {error!r}") from error
    return report


def build_report(
    config: Config,
    dataset: Dataset,
    results: Sequence[FoldResult],
    *,
    measured: Mapping[int, Measured],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Return report.json's content: accuracy, classes, kernels, times, settings and machine.

    The deviation over folds is the sample's (n - 1), 0 for one fold. Numbers that are not finite
    become null, because JSON has none.
    """
    labels, predicted = _pooled(dataset, results)
    matrices = {result.fold: _confusion(dataset, result) for result in results}
    matrix = sum(matrices.values(), np.zeros_like(matrices[results[0].fold]))
    mean, std = metrics.mean_and_std([result.accuracy for result in results])
    report = {
        "accuracy": {
            "mean": mean,
            "std": std,
            "per_fold": {str(result.fold): result.accuracy for result in results},
        },
        "folds": {
            str(result.fold): {
                "accuracy": result.accuracy,
                "loss": result.loss,
                "num_train": int(np.sum(dataset.folds != result.fold)),
                "num_test": len(result.test_indices),
                "confusion": matrices[result.fold].tolist(),
                "history": [asdict(row) for row in result.history],
            }
            for result in results
        },
        "classes": [
            asdict(row) for row in metrics.class_metrics(labels, predicted, dataset.class_names)
        ],
        "confusion": matrix.tolist(),
        "most_confused": [
            asdict(pair) for pair in metrics.most_confused(matrix, dataset.class_names)
        ],
        "kernels": _kernels(measured),
        "timing": _timing(dataset, results, measured),
        "data": {
            "path": None if dataset.synthesised else str(dataset.root),
            "synthesised": dataset.synthesised,
            "subset": config.subset,
            "num_clips": len(dataset.clips),
            "num_classes": len(dataset.class_names),
            "folds": sorted({int(fold) for fold in dataset.folds}),
            "key": dataset.key,
            "bad_files": [asdict(bad) for bad in dataset.bad_files],
        },
        "config": config_values(config),
        "run": dict(run),
    }
    finite: dict[str, Any] = _finite(report)
    return finite


def render_page(
    report: Mapping[str, Any], config: Config, dataset: Dataset, results: Sequence[FoldResult]
) -> str:
    """Return report.html: one page with its style and figures inside, and no script.

    Names of files and classes are escaped: they come from the data set.
    """
    environment = page_environment()
    chance = 1 / len(dataset.class_names)
    examples, value_range = _examples(config, dataset, results)
    accuracies = {result.fold: result.accuracy for result in results}
    return environment.get_template("report.html").render(
        report=report,
        chance=chance,
        fold_chart=figures.fold_chart(accuracies, report["accuracy"]["mean"], chance),
        curves=_curves(results),
        confusion=figures.confusion_matrix(np.array(report["confusion"]), dataset.class_names),
        confusion_by_fold={
            fold: figures.confusion_matrix(np.array(row["confusion"]), dataset.class_names)
            for fold, row in report["folds"].items()
        },
        stage_bar=figures.stage_bar(_shares(report["timing"])),
        shares=_shares(report["timing"]),
        classes=_in_columns(sorted(report["classes"], key=lambda row: (row["f1"], row["name"]))),
        examples=examples,
        value_range=value_range,
        kernel_rows=_kernel_rows(report["kernels"]),
        fbank_errors=FBANK_ERRORS,
        settings=_settings(report["config"], config_values(Config())),
        listed_bad_files=LISTED_BAD_FILES,
    )


def page_environment() -> Environment:
    """Return the templates of this package's pages, with the filters that they use."""
    environment = Environment(
        loader=PackageLoader("ast_fast", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, duration=_duration, number=_number, ms=_ms)
    return environment


def _pooled(
    dataset: Dataset, results: Sequence[FoldResult]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return labels and predictions of every tested clip; each is tested in one fold only."""
    labels = np.concatenate([dataset.labels[result.test_indices] for result in results])
    predicted = np.concatenate([result.probabilities.argmax(axis=1) for result in results])
    return labels, predicted


def _confusion(dataset: Dataset, result: FoldResult) -> NDArray[np.int64]:
    """Return how often each class was taken for each, among the clips that a fold tested."""
    return metrics.confusion_matrix(*_pooled(dataset, [result]), len(dataset.class_names))


def _kernels(measured: Mapping[int, Measured]) -> dict[str, Any]:
    """Gather the folds' checks: the largest error, the median ratio, and each fold's own."""
    ops: dict[str, Any] = {}
    for op in ("fbank", "attention", "stem"):
        if not measured or any(op not in fold.kernels for fold in measured.values()):
            continue
        checks = {str(fold): fold_measured.kernels[op] for fold, fold_measured in measured.items()}
        rows = list(checks.values())
        gathered: dict[str, Any] = {"backend": rows[0]["backend"]}
        for key, gather in (("max_abs_error", max), ("speed_ratio", statistics.median)):
            values = [row[key] for row in rows if row[key] is not None]
            gathered[key] = gather(values) if values else None
        reason = rows[0].get("reason")
        if reason:
            gathered["reason"] = reason
        ops[op] = {**gathered, "per_fold": checks}
    return ops


def _timing(
    dataset: Dataset, results: Sequence[FoldResult], measured: Mapping[int, Measured]
) -> dict[str, Any]:
    """Return training speed, and where the time went, in seconds over all folds.

    The speed counts training steps only. What a process did after its last checkpoint, before it
    was ended, is in no time.
    """
    total = dataset.decode_seconds + sum(fold.seconds for fold in measured.values())
    stages = {
        name: sum(fold.stages.get(name, 0.0) for fold in measured.values()) for name in STAGES
    }
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


def _shares(timing: Mapping[str, Any]) -> list[tuple[str, float]]:
    total = sum(timing["stages"].values())
    return [(name, value / total if total else 0.0) for name, value in timing["stages"].items()]


def _curves(results: Sequence[FoldResult]) -> list[Any]:
    """Return a chart for each quantity that the folds' histories hold."""
    charts = []
    for column, label, percent in (
        ("train_loss", "Training loss", False),
        ("test_accuracy", "Test accuracy", True),
    ):
        lines = []
        for result in results:
            points = [(row.epoch, getattr(row, column)) for row in result.history]
            known = [(float(epoch), value) for epoch, value in points if value is not None]
            lines.append((f"fold {result.fold}", [x for x, _ in known], [y for _, y in known]))
        if any(xs for _, xs, _ in lines):
            charts.append(
                figures.line_chart(lines, x_label="epoch", y_label=label, percent=percent)
            )
    return charts


def _examples(
    config: Config, dataset: Dataset, results: Sequence[FoldResult]
) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Return each class's first tested clip, and the features' values at the colour scale's ends.

    An example has its figure and what the model took the clip for.
    """
    tested = {
        int(index): (result.fold, probabilities)
        for result in results
        for index, probabilities in zip(result.test_indices, result.probabilities, strict=True)
    }
    chosen: dict[int, int] = {}
    for index in sorted(tested):
        chosen.setdefault(int(dataset.labels[index]), index)
    order = [chosen[label] for label in sorted(chosen)]
    waveforms = torch.from_numpy(np.array(dataset.waveforms[order]))
    features = log_mel(waveforms, config).float().cpu().numpy()
    low, high = (float(value) for value in np.percentile(features, [2, 99.8]))
    seconds = dataset.waveforms.shape[1] / dataset.sample_rate
    centres = mel_centres(config.fbank)
    examples = []
    for index, log_mel_features in zip(order, features, strict=True):
        fold, probabilities = tested[index]
        guess = int(np.argmax(probabilities))
        examples.append(
            {
                "name": dataset.class_names[dataset.labels[index]],
                "filename": dataset.clips[index].filename,
                "fold": fold,
                "guess": dataset.class_names[guess],
                "right": guess == dataset.labels[index],
                "probability": float(probabilities[guess]),
                "figure": figures.spectrogram(
                    log_mel_features,
                    seconds=seconds,
                    centres=centres,
                    value_range=(low, high),
                ),
            }
        )
    return examples, (low, high)


def mel_centres(config: FbankConfig) -> NDArray[np.float64]:
    """Return the centre frequency of each mel bin in Hz, shape (num_mel_bins,)."""
    return filter_edges(config)[1:-1]


def _kernel_rows(kernels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the page's kernel table: a group for each operation, in it a row for each fold."""
    groups = []
    for op, title in (("fbank", "FBANK"), ("attention", "Attention"), ("stem", "Stem")):
        if op not in kernels:
            continue
        checks = kernels[op]["per_fold"]
        with_gradients = any("forward_backward" in check for check in checks.values())
        heading = f"{title}, forward" if with_gradients else title
        groups.append({"title": heading, "rows": checks})
        both = {
            fold: {**check, **check["forward_backward"]}
            for fold, check in checks.items()
            if check.get("forward_backward")
        }
        if both:
            for row in both.values():
                row["max_abs_error"] = row["max_gradient_error"]
            groups.append({"title": f"{title}, forward + backward", "rows": both})
    return groups


def _in_columns(rows: list[Any]) -> list[list[Any]]:
    """Split a long list into two that stand side by side."""
    if len(rows) <= MOST_ROWS:
        return [rows]
    half = (len(rows) + 1) // 2
    return [rows[:half], rows[half:]]


def _settings(
    values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, list[tuple[str, str, bool]]]:
    """Return the settings by group: name, value, and whether it differs from the default."""
    groups: dict[str, list[tuple[str, str, bool]]] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group or "run", []).append((name, _shown(value), value != defaults[key]))
    return groups


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " × ".join(str(item) for item in value) if value else "all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.7g}"
    return "–" if value in (None, "") else str(value)


def _finite(value: Any) -> Any:
    """Return JSON data with null in the place of NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.3g} ms"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
