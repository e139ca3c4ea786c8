"""report.html: the content of report.json, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from ast_fast.data.dataset import Dataset
from ast_fast.features import log_mel
from ast_fast.report import figures
from ast_fast.settings.config import Config
from ast_fast.settings.toml import config_values
from ast_fast.training.results import FoldResult
from ast_fast_kernels.audio.flaws import flaw_lines
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.tables import filter_edges
from ast_fast_kernels.files.text import one_line

LISTED_BAD_FILES = 50
"""Most bad files that the page names; it counts the rest."""

FBANK_ERRORS = ("reference_max_abs_error", "max_abs_difference", "relative_norm_before_log")
"""Columns of the kernel table that only the filterbank fills."""

MOST_ROWS = 16
"""Most classes in one column of the page's table; more take two columns."""


def render_page(
    report: Mapping[str, Any], config: Config, dataset: Dataset, results: Sequence[FoldResult]
) -> str:
    """Return report.html: one page with its style and figures inside, and no script.

    Names of files and classes are escaped, because the data set chooses them.
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
        flaw_lines=flaw_lines(dataset.flaws),
    )


def page_environment() -> Environment:
    """Return the environment of this package's page templates, with their filters."""
    environment = Environment(
        loader=PackageLoader("ast_fast.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(percent=_percent, duration=_duration, number=_number, ms=_ms)
    return environment


def _printable(value: Any) -> Any:
    """Return text without control characters; figures, numbers and other values as they are."""
    return one_line(value) if type(value) is str else value


def _shares(timing: Mapping[str, Any]) -> list[tuple[str, float]]:
    total = sum(timing["stages"].values())
    return [(name, value / total if total else 0.0) for name, value in timing["stages"].items()]


def _curves(results: Sequence[FoldResult]) -> list[Any]:
    """Return a chart of the training loss and one of the test accuracy, if they have values."""
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
    """Return an example for each class, its first tested clip, and the ends of the colour scale.

    An example has the clip's figure and the predicted class.
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
    seconds = dataset.num_samples / dataset.sample_rate
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
    """Return the page's kernel table: groups by operation, each with a row for every fold."""
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
    """Split a long list into two columns."""
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
