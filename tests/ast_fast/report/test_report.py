import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from ast_fast.data.dataset import Dataset
from ast_fast.data.metadata import BadFile, Clip
from ast_fast.report.build import Measured, build_report, write_report
from ast_fast.report.figures import line_chart, reliability_diagram, stage_bar
from ast_fast.report.kernel_check import BothWays, FbankCheck, GradientCheck, KernelChecks
from ast_fast.report.metrics import ReliabilityBin
from ast_fast.report.page import _shrunk, mel_centres
from ast_fast.report.wrong import wrong_clips
from ast_fast.settings.config import AudioConfig, Config, FeatureConfig, TrainingConfig
from ast_fast.training.results import EpochRow, FoldResult

SAMPLE_RATE = 16000
EPOCHS = 4
VOID = {"meta", "link", "br", "hr", "img", "input"}
SHAPES = {"rect", "line", "path", "circle", "polyline", "image", "use"}

RUN: dict[str, Any] = {
    "command": "python -m ast_fast.cv --data '<data>'",
    "commit": {"hash": "0" * 40, "dirty": True},
    "versions": {"python": "3.11.0", "torch": "2.13.0"},
    "machine": {"system": "Linux", "cpu": "a CPU", "cores": 2, "memory_gib": 8.0, "gpu": None},
    "threads": 2,
    "resumed": [],
    "started": "2030-01-01T00:00:00+00:00",
    "ended": "2030-01-01T00:01:00+00:00",
    "peak_memory_gib": 0.5,
}
TIMES = {"fast_seconds": 0.001, "reference_seconds": 0.01, "speed_ratio": 10.0}
COMPARED = KernelChecks(
    FbankCheck(
        backend="numba",
        shape=[4, 4000],
        max_abs_error=1e-3,
        reference_max_abs_error=2.3e-4,
        max_abs_difference=3.7e-2,
        relative_norm_before_log=1e-7,
        **TIMES,
    ),
    GradientCheck(
        backend="numba",
        shape=[4, 4, 3, 2, 8],
        max_abs_error=1e-3,
        forward_backward=BothWays(max_gradient_error=1e-6, **TIMES),
        **TIMES,
    ),
)
NOTHING: dict[str, Any] = {"backend": "reference", "shape": [4], "reason": "nothing to compare"}
NOT_COMPARED = KernelChecks(FbankCheck(**NOTHING), GradientCheck(**NOTHING))
CONFIG = Config(
    audio=AudioConfig(clip_seconds=0.25),
    features=FeatureConfig(target_frames=32),
    training=TrainingConfig(epochs=EPOCHS),
)


def make_dataset(num_classes: int = 3, num_folds: int = 2) -> Dataset:
    names = tuple(f"class_{index}" for index in range(num_classes))
    clips = tuple(
        Clip(f"{fold}-{label}-{take}.wav", fold, label, names[label])
        for fold in range(1, num_folds + 1)
        for label in range(num_classes)
        for take in range(2)
    )
    rng = np.random.default_rng(0)
    return Dataset(
        waveforms=rng.integers(-9000, 9000, (len(clips), SAMPLE_RATE // 4)).astype(np.int16),
        clips=clips,
        class_names=names,
        labels=np.array([clip.target for clip in clips]),
        folds=np.array([clip.fold for clip in clips]),
        sample_rate=SAMPLE_RATE,
        bad_files=(),
        root=Path("/somewhere/data"),
        key="k" * 64,
        decode_seconds=1.0,
        synthesised=False,
    )


def make_results(dataset: Dataset, *, wrong: int = 1) -> list[FoldResult]:
    """Return results in which the first `wrong` clips of each fold are taken for the next class."""
    results = []
    for fold in sorted({int(fold) for fold in dataset.folds}):
        indices = np.flatnonzero(dataset.folds == fold)
        guesses = dataset.labels[indices].copy()
        guesses[:wrong] = (guesses[:wrong] + 1) % len(dataset.class_names)
        probabilities = np.full((len(indices), len(dataset.class_names)), 0.01, np.float32)
        probabilities[np.arange(len(indices)), guesses] = 0.9
        history = [
            EpochRow(
                epoch, 1e-3, 2.0 / epoch, 0.5, None, 0.5 if epoch % 2 == 0 else None, 2.0, 10.0
            )
            for epoch in range(1, EPOCHS + 1)
        ]
        accuracy = 1 - wrong / len(indices)
        results.append(FoldResult(fold, accuracy, 0.7, history, indices, probabilities))
    return results


def make_measured(
    results: list[FoldResult], kernels: KernelChecks = COMPARED
) -> dict[int, Measured]:
    stages = {"features": 1.0, "forward": 3.0, "backward": 4.0, "other": 0.5}
    return {result.fold: Measured(10.0, stages, kernels) for result in results}


Page = tuple[dict[str, Any], str]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Page]:
    """Write a report and return its JSON, read back, and its page."""

    def run(dataset: Dataset, *, kernels: KernelChecks = COMPARED, **changes: Any) -> Page:
        results = changes.pop("results", make_results(dataset))
        arguments = {"measured": make_measured(results, kernels), "run": RUN} | changes
        write_report(tmp_path, CONFIG, dataset, results, **arguments)
        report = json.loads((tmp_path / "report.json").read_text())
        return report, (tmp_path / "report.html").read_text()

    return run


class _Balance(HTMLParser):
    """Raises at the first tag that is closed in the wrong place, or links outside the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                assert value is not None
                assert value.startswith("data:image/"), value[:80]
        if tag not in VOID | SHAPES:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID | SHAPES:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(page: str) -> None:
    parser = _Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert "@import" not in page
    assert "url(" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_report_json_holds_what_other_programs_read(write: Callable[..., Page]) -> None:
    report, _ = write(make_dataset())
    assert report["accuracy"]["per_fold"] == {"1": pytest.approx(5 / 6), "2": pytest.approx(5 / 6)}
    assert report["accuracy"]["mean"] == pytest.approx(5 / 6)
    assert report["accuracy"]["std"] == 0
    for op in ("fbank", "attention"):
        kernel = report["kernels"][op]
        assert kernel["backend"] == "numba"
        assert (kernel["max_abs_error"], kernel["speed_ratio"]) == (1e-3, 10)
        assert kernel["per_fold"].keys() == {"1", "2"}
    assert report["config"]["training.epochs"] == EPOCHS
    assert report["run"] == RUN


def test_accuracy_deviates_by_the_sample_deviation() -> None:
    dataset = make_dataset()
    first, second = make_results(dataset)
    results = [replace(first, accuracy=0.5), replace(second, accuracy=0.7)]
    report = build_report(CONFIG, dataset, results, measured={}, run=RUN)
    assert report["accuracy"]["mean"] == pytest.approx(0.6)
    assert report["accuracy"]["std"] == pytest.approx(math.sqrt(0.02))


def test_stages_add_up_to_the_whole_time(write: Callable[..., Page]) -> None:
    timing = write(make_dataset())[0]["timing"]
    assert timing["stages"] == {
        "decode": 1.0,
        "features": 2.0,
        "forward": 6.0,
        "backward": 8.0,
        "other": 4.0,
    }
    assert timing["total_seconds"] == 21
    assert timing["clips_per_second"] == 10
    assert timing["epochs"] == 2 * EPOCHS


def test_the_wait_for_replayed_steps_is_a_stage_of_its_own(write: Callable[..., Page]) -> None:
    dataset = make_dataset()
    measured = make_measured(make_results(dataset))
    for fold, own in measured.items():
        measured[fold] = replace(own, stages={"features": 1.0, "graph": 7.0})
    timing = write(dataset, measured=measured)[0]["timing"]
    assert timing["stages"]["graph"] == 7.0 * len(measured)
    assert sum(timing["stages"].values()) == timing["total_seconds"]


def test_a_kernel_is_reported_by_its_worst_error_and_median_ratio() -> None:
    dataset = make_dataset(num_folds=3)
    results = make_results(dataset)
    measured = make_measured(results)
    for fold, (error, ratio) in {1: (1e-3, 8.0), 2: (5e-3, 9.0), 3: (2e-3, 30.0)}.items():
        check = replace(COMPARED.fbank, max_abs_error=error, speed_ratio=ratio)
        measured[fold] = replace(measured[fold], kernels=replace(COMPARED, fbank=check))
    kernel = build_report(CONFIG, dataset, results, measured=measured, run=RUN)["kernels"]["fbank"]
    assert (kernel["max_abs_error"], kernel["speed_ratio"]) == (5e-3, 9)


def test_confusion_counts_and_names_the_mistakes(write: Callable[..., Page]) -> None:
    report, page = write(make_dataset())
    assert report["confusion"] == [[2, 2, 0], [0, 4, 0], [0, 0, 4]]
    assert report["most_confused"] == [
        {"actual": "class_0", "predicted": "class_1", "count": 2, "share": 0.5}
    ]
    assert "class_0 taken for class_1: 2 of 4" in page


def test_each_fold_has_a_confusion_matrix_of_its_own(write: Callable[..., Page]) -> None:
    dataset = make_dataset()
    first, second = make_results(dataset)[0], make_results(dataset, wrong=2)[1]
    report, page = write(dataset, results=[first, second])
    folds = report["folds"]
    assert folds["1"]["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 0, 2]]
    assert folds["2"]["confusion"] == [[0, 2, 0], [0, 2, 0], [0, 0, 2]]
    assert report["confusion"] == [[1, 3, 0], [0, 4, 0], [0, 0, 4]]
    assert "Fold 1 alone" in page
    assert "Fold 2 alone" in page
    assert page.count("class_0 taken for class_1: 2 of 2") == 1
    _, page = write(dataset, results=[first])
    assert "Fold 1 alone" not in page


def test_folds_with_temperatures_have_a_calibrated_loss(write: Callable[..., Page]) -> None:
    dataset = make_dataset()
    results = [replace(result, temperature=2.0) for result in make_results(dataset, wrong=3)]
    report, page = write(dataset, results=results)
    check_page(page)
    as_is, calibrated = (report["calibration"][key] for key in ("as_is", "calibrated"))
    assert calibrated["loss"] < as_is["loss"]
    assert calibrated["expected_error"] < as_is["expected_error"]
    for table in (as_is, calibrated):
        assert sum(row["count"] for row in table["bins"]) == 12
        assert len(table["bins"]) == 15
    largest = 90**0.5 / (90**0.5 + 2)  # 0.9, 0.01 and 0.01 at temperature 2
    others = 1 / (90**0.5 + 2)
    fold = report["folds"]["1"]
    assert fold["temperature"] == 2
    assert fold["calibrated_loss"] == pytest.approx(-(math.log(largest) + math.log(others)) / 2)
    assert "temperature, which is fitted on the tests of the other folds only" in page
    assert page.count("share of right clips by probability") == 2
    assert report["wrong_clips"][0]["probability"] == pytest.approx(largest)


def test_without_temperatures_the_page_says_why(write: Callable[..., Page]) -> None:
    dataset = make_dataset()
    report, page = write(dataset, results=make_results(dataset)[:1])
    assert report["calibration"]["calibrated"] is None
    assert report["folds"]["1"]["temperature"] is None
    assert report["folds"]["1"]["calibrated_loss"] is None
    assert "this run has one fold: its model file has none" in page
    assert page.count("share of right clips by probability") == 1


def test_a_reliability_diagram_says_its_bins() -> None:
    bins = [
        ReliabilityBin(0.0, 0.5, 0, None, None),
        ReliabilityBin(0.5, 1.0, 41, 0.75, 0.5),
    ]
    diagram = str(reliability_diagram(bins, title="As they are"))
    ElementTree.fromstring(re.findall(r"<svg.*?</svg>", diagram, re.DOTALL)[0])
    assert "41 clips from 50 to 100 %: mean probability 75.0 %, right 50.0 %" in diagram
    assert diagram.count('class="bar"') == 1
    (top,) = re.findall(
        r'class="bar" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', diagram
    )
    (mark,) = re.findall(r'class="mean" .* y1="([\d.]+)"', diagram)
    assert float(top[1]) == pytest.approx(108)  # half of the plane's height
    assert float(mark) == pytest.approx(float(top[0]) - 54)


def test_wrong_clips_are_drawn_the_surest_first(write: Callable[..., Page]) -> None:
    dataset = make_dataset()
    first, second = make_results(dataset, wrong=2)
    surer = second.probabilities.copy()
    surer[0] = [0.01, 0.98, 0.01]
    report, page = write(dataset, results=[first, replace(second, probabilities=surer)])
    names = [clip["filename"] for clip in report["wrong_clips"]]
    assert names == ["2-0-0.wav", "1-0-0.wav", "1-0-1.wav", "2-0-1.wav"]
    assert report["wrong_clips"][0] == {
        "filename": "2-0-0.wav",
        "fold": 2,
        "label": "class_0",
        "predicted": "class_1",
        "probability": pytest.approx(0.98),
    }
    section = page.partition("Taken for something else")[2].partition("<h2>")[0]
    assert section.count("data:image/webp") == 4
    assert section.index("2-0-0.wav, fold 2") < section.index("1-0-0.wav, fold 1")
    assert "✗ 98 %" in section
    assert '<span class="file">as class_1</span>' in section
    assert "The clips that were taken for another class" in section


def test_of_many_wrong_clips_the_page_counts_the_rest(write: Callable[..., Page]) -> None:
    dataset = make_dataset(20)
    report, page = write(dataset, results=make_results(dataset, wrong=30))
    section = page.partition("Taken for something else")[2].partition("<h2>")[0]
    assert "Of 60 clips that were taken for another class, the 24 whose" in section
    assert section.count("data:image/webp") == len(report["wrong_clips"]) == 24
    _, page = write(dataset, results=make_results(dataset, wrong=0))
    assert "<p>No clip was.</p>" in page


def test_clips_wrong_with_most_seeds_come_first() -> None:
    dataset = make_dataset()
    always, once = make_results(dataset, wrong=1), make_results(dataset, wrong=2)
    elsewhere = [replace(result, probabilities=result.probabilities.copy()) for result in always]
    elsewhere[0].probabilities[0] = [0.0, 0.1, 0.9]
    clips = wrong_clips(dataset, [always, once, elsewhere])
    assert [(clip.filename, clip.times) for clip in clips] == [
        *(("1-0-0.wav", 3), ("2-0-0.wav", 3), ("1-0-1.wav", 1), ("2-0-1.wav", 1)),
    ]
    assert clips[0].taken_for == {"class_1": 2, "class_2": 1}
    assert clips[0].probability == pytest.approx((0.9 / 1 + 0.9 / 1 + 0.9) / 3)


def test_a_small_figure_is_of_means() -> None:
    features = np.arange(40, dtype=np.float32).reshape(10, 4)
    small = _shrunk(features, (4, 2))
    np.testing.assert_array_equal(small, features.reshape(5, 2, 2, 2).mean(axis=(1, 3)))
    np.testing.assert_array_equal(_shrunk(features, (160, 64)), features)
    assert _shrunk(np.zeros((498, 128), np.float32), (160, 64)).shape == (166, 64)


def test_numbers_that_are_not_finite_become_null() -> None:
    dataset = make_dataset()
    results = [replace(result, loss=math.nan) for result in make_results(dataset)]
    report = build_report(CONFIG, dataset, results, measured={}, run=RUN)
    assert report["folds"]["1"]["loss"] is None
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("num_classes", [2, 10, 20, 50])
def test_the_page_is_whole_and_needs_nothing_else(
    num_classes: int, write: Callable[..., Page]
) -> None:
    report, page = write(make_dataset(num_classes))
    check_page(page)
    assert len(page) < 3e6
    assert page.count("data:image/webp") == num_classes + len(report["wrong_clips"])
    assert all(f">class_{index}<" in page for index in range(num_classes))


def test_the_page_of_one_fold_has_no_deviation(write: Callable[..., Page]) -> None:
    dataset = make_dataset()
    report, page = write(dataset, results=make_results(dataset)[:1])
    assert report["accuracy"]["std"] == 0
    assert "mean accuracy, one fold" in page
    _, page = write(dataset)
    assert "± 0.0 over folds" in page


def test_the_page_says_that_data_was_synthesised(write: Callable[..., Page]) -> None:
    _, page = write(replace(make_dataset(), synthesised=True))
    assert "This data set was synthesised." in page
    _, page = write(make_dataset())
    assert "synthesised" not in page
    assert "/somewhere/data" in page


def test_the_page_counts_skipped_files(write: Callable[..., Page]) -> None:
    bad = tuple(BadFile(f"{n}.wav", 1, "class_0", "it is empty") for n in range(60))
    report, page = write(replace(make_dataset(), bad_files=bad))
    assert len(report["data"]["bad_files"]) == 60
    assert "60 audio files were skipped" in page
    assert "and 10 more" in page
    _, page = write(replace(make_dataset(), bad_files=bad[:1]))
    assert "1 audio file was skipped" in page


def test_ruined_audio_is_counted_by_kind(write: Callable[..., Page]) -> None:
    flaws = {"clipped": ["a.wav", "b.wav"], "silent": [f"{n}.wav" for n in range(60)]}
    report, page = write(replace(make_dataset(), flaws=flaws))
    assert report["data"]["flaws"]["clipped"] == {"count": 2, "files": ["a.wav", "b.wav"]}
    assert report["data"]["flaws"]["silent"] == {"count": 60, "files": flaws["silent"]}
    assert "2 files are clipped: over 1 % of the samples are beyond full scale (a.wav" in page
    assert "0.wav, 1.wav, 2.wav and 57 more" in page
    report, page = write(make_dataset())
    assert report["data"]["flaws"] == {}
    assert "ruined" not in page


def test_the_page_shows_every_error_of_the_filterbank(write: Callable[..., Page]) -> None:
    _, page = write(make_dataset())
    for shown in ("0.001", "0.00023", "0.037", "1e-07"):
        assert f'<td class="right">{shown}</td>' in page


def test_the_page_says_why_kernels_were_not_compared(write: Callable[..., Page]) -> None:
    report, page = write(make_dataset(), kernels=NOT_COMPARED)
    assert report["kernels"]["fbank"]["speed_ratio"] is None
    assert report["kernels"]["fbank"]["reason"] == "nothing to compare"
    assert "not compared: nothing to compare" in page


def test_names_from_the_data_set_cannot_become_markup(write: Callable[..., Page]) -> None:
    evil = "</text><script>alert(1)</script>&\"'"
    dataset = make_dataset()
    clips = (replace(dataset.clips[0], filename=evil), *dataset.clips[1:])
    dataset = replace(
        dataset,
        clips=clips,
        class_names=(evil, "b", "c"),
        root=Path(evil),
        bad_files=(BadFile(evil, 1, evil, evil),),
    )
    _, page = write(dataset, run={**RUN, "command": evil})
    assert "<script" not in page
    check_page(page)


def test_names_from_the_data_set_are_shown_escaped_and_cut(write: Callable[..., Page]) -> None:
    odd = "a\x1b[2J\n\u202eb\udcff" + "x" * 10_000
    dataset = make_dataset()
    clips = (replace(dataset.clips[0], filename=odd), *dataset.clips[1:])
    bad_files = (BadFile(odd, 1, odd, odd),)
    dataset = replace(dataset, clips=clips, class_names=(odd, "b", "c"), bad_files=bad_files)
    _, page = write(dataset, run={**RUN, "command": odd})
    assert not set(page) & set("\x1b\u202e\udcff")
    assert r"a\x1b[2J\n\u202eb\xff" in page
    assert "x" * 5000 not in page


def test_settings_that_differ_from_the_defaults_are_set_off(write: Callable[..., Page]) -> None:
    _, page = write(make_dataset())
    assert f'<tr class="changed"><td>epochs</td><td>{EPOCHS}</td></tr>' in page
    assert "<tr><td>batch_size</td><td>32</td></tr>" in page


def test_mel_centres_are_where_the_filters_peak() -> None:
    centres = mel_centres(CONFIG.fbank)
    assert centres.shape == (128,)
    assert np.all(np.diff(centres) > 0)
    # Kaldi's mel scale cuts 20..8000 Hz (31.75..2840.02 mel) into 129 steps of 21.77 mel.
    assert centres[0] == pytest.approx(700 * (math.exp((31.75 + 21.77) / 1127) - 1), rel=1e-3)
    assert centres[-1] == pytest.approx(700 * (math.exp((2840.02 - 21.77) / 1127) - 1), rel=1e-3)


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    chart = str(line_chart([("a", [1, 2, 3], [1.0, math.nan, 2.0])], x_label="x", y_label="y"))
    assert "nan" not in chart
    assert chart.count("<circle") == 2


def test_a_chart_of_nothing_says_so() -> None:
    assert "No epoch" in line_chart([("a", [], [])], x_label="x", y_label="y")


def test_a_stage_bar_is_as_wide_as_its_shares() -> None:
    widths = re.findall(r'width="([\d.]+)" height="34', stage_bar([("a", 0.25), ("b", 0.75)]))
    assert [float(width) for width in widths] == [225, 675]
