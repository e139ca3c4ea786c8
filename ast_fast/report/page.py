"""report.html: the content of report.json, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from ast_fast.data.dataset import Dataset
from ast_fast.features import log_mel
from ast_fast.report import figures
from ast_fast.report.metrics import ReliabilityBin
from ast_fast.report.wrong import MOST_SHOWN, WrongClip, wrong_clips
from ast_fast.settings.config import Config
from ast_fast.settings.toml import config_values
from ast_fast.training.calibration import at_temperature
from ast_fast.training.results import FoldResult
from ast_fast_kernels.audio.flaws import flaw_lines
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.tables import filter_edges
from ast_fast_kernels.files.text import one_line

LISTED_BAD_FILES = 50
"""Most bad files that the page names; it counts the rest."""

FBANK_ERRORS = ("reference_max_abs_error", "max_abs_difference", "relative_norm_before_log")
"""Columns of the kernel table that only the filterbank fills."""

SMALL = (160, 64)
"""Frames and mel bins of a wrong clip's figure, about: the page has many."""

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
    wrong = wrong_clips(dataset, [results])
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
        reliability=_reliability(report["calibration"]),
        examples=examples,
        value_range=value_range,
        wrong=drawn_clips(config, dataset, wrong[:MOST_SHOWN], value_range),
        num_wrong=len(wrong),
        kernel_rows=_kernel_rows(report["kernels"]),
        fbank_errors=FBANK_ERRORS,
        settings=_settings(report["config"], config_values(Config())),
        listed_bad_files=LISTED_BAD_FILES,
        flaw_lines=flaw_lines(dataset.flaws),
    )


def render_seeds(
    summary: Mapping[str, Any],
    drawn: Sequence[tuple[WrongClip, Markup]],
    *,
    num_wrong: int,
    num_always: int,
    not_drawn: str | None = None,
) -> str:
    """Return seeds.html: the runs of several seeds, and the clips that they got wrong.

    Args:
        summary: The content of seeds.json.
        drawn: The clips most often wrong, with their figures.
        num_wrong: Clips wrong with at least one seed.
        num_always: Clips wrong with every seed.
        not_drawn: Why there are none, if what it takes is not at hand.
    """
    accuracies = next(iter(summary["accuracy"]["per_seed"].values()))
    return (
        page_environment()
        .get_template("seeds.html")
        .render(
            summary=summary,
            folds=list(accuracies),
            num_runs=len(summary["accuracy"]["per_seed"]),
            wrong=drawn,
            num_wrong=num_wrong,
            num_always=num_always,
            not_drawn=not_drawn,
        )
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


def _reliability(calibration: Mapping[str, Any]) -> list[tuple[str, list[ReliabilityBin], Any]]:
    """Return title, bins and diagram of the probabilities as they are, and of the calibrated."""
    shown = []
    for key, title in (("as_is", "As they are"), ("calibrated", "Calibrated")):
        if calibration[key] is not None:
            bins = [ReliabilityBin(**row) for row in calibration[key]["bins"]]
            of = f"{title}: calibration error {_percent(calibration[key]['expected_error'])}"
            shown.append((title, bins, figures.reliability_diagram(bins, title=of)))
    return shown


def drawn_clips(
    config: Config,
    dataset: Dataset,
    clips: Sequence[WrongClip],
    value_range: tuple[float, float] | None = None,
) -> list[tuple[WrongClip, Markup]]:
    """Return clips, each with its log-mel features drawn from about `SMALL` values.

    Args:
        config: The run's settings.
        dataset: All clips.
        clips: Those to draw.
        value_range: Ends of the colour scale; None is that of these clips.
    """
    if not clips:
        return []
    pictures, _ = _spectrograms(
        config, dataset, [clip.index for clip in clips], value_range, most=SMALL
    )
    return list(zip(clips, pictures, strict=True))


def _spectrograms(
    config: Config,
    dataset: Dataset,
    indices: Sequence[int],
    value_range: tuple[float, float] | None = None,
    *,
    most: tuple[int, int] | None = None,
) -> tuple[list[Markup], tuple[float, float]]:
    """Return the figures of clips and the ends of their colour scale.

    Args:
        config: The run's settings.
        dataset: All clips.
        indices: Those to draw.
        value_range: Ends of the scale; None takes them from these clips.
        most: About how many frames and mel bins to draw; None is all.
    """
    waveforms = torch.from_numpy(np.array(dataset.waveforms[list(indices)]))
    features = log_mel(waveforms, config).float().cpu().numpy()
    if value_range is None:
        low, high = (float(value) for value in np.percentile(features, [2, 99.8]))
        value_range = low, high
    seconds = dataset.num_samples / dataset.sample_rate
    centres = mel_centres(config.fbank)
    pictures = [
        figures.spectrogram(
            clip if most is None else _shrunk(clip, most),
            seconds=seconds,
            centres=centres,
            value_range=value_range,
        )
        for clip in features
    ]
    return pictures, value_range


def _shrunk(features: NDArray[np.float32], most: tuple[int, int]) -> NDArray[np.float32]:
    """Return features, (num_frames, num_mel_bins), as means over equal blocks."""
    frames, bins = (max(1, size // limit) for size, limit in zip(features.shape, most, strict=True))
    whole = features[: len(features) // frames * frames, : features.shape[1] // bins * bins]
    blocks = whole.reshape(len(whole) // frames, frames, -1, bins)
    means: NDArray[np.float32] = blocks.mean(axis=(1, 3))
    return means


def _examples(
    config: Config, dataset: Dataset, results: Sequence[FoldResult]
) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Return an example for each class, its first tested clip, and the ends of the colour scale.

    An example has the clip's figure, the predicted class and its probability, calibrated if the
    fold has a temperature.
    """
    tested = {
        int(index): (result.fold, probabilities)
        for result in results
        for index, probabilities in zip(
            result.test_indices,
            at_temperature(result.probabilities, result.temperature),
            strict=True,
        )
    }
    chosen: dict[int, int] = {}
    for index in sorted(tested):
        chosen.setdefault(int(dataset.labels[index]), index)
    order = [chosen[label] for label in sorted(chosen)]
    pictures, value_range = _spectrograms(config, dataset, order)
    examples = []
    for index, picture in zip(order, pictures, strict=True):
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
                "figure": picture,
            }
        )
    return examples, value_range


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
