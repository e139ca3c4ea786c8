"""Comparing runs fold by fold."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from ast_fast.compare import compare, main, paired_difference


def write_run(folder: Path, accuracies: dict[int, float], *, key: str = "k", **config) -> Path:
    folder.mkdir()
    report = {
        "accuracy": {"per_fold": {str(fold): value for fold, value in accuracies.items()}},
        "data": {"key": key},
        "timing": {"total_seconds": 90.0},
        "config": {"seed": 0, "out": str(folder), "training.epochs": 10, **config},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_paired_difference_is_student_s() -> None:
    """By hand: differences 1, 2, 3, 4, 5 points; t of 4 degrees of freedom is 2.7764."""
    baseline = dict.fromkeys(range(1, 6), 0.5)
    run = {fold: 0.5 + fold / 100 for fold in range(1, 6)}
    found = paired_difference(run, baseline)
    half = 2.7764451 * math.sqrt(2.5) / math.sqrt(5) / 100
    assert found.mean == pytest.approx(0.03)
    assert found.low == pytest.approx(0.03 - half, abs=1e-7)
    assert found.high == pytest.approx(0.03 + half, abs=1e-7)


def test_one_fold_has_no_interval() -> None:
    found = paired_difference({2: 0.75}, {2: 0.5})
    assert found.mean == 0.25
    assert found.shown == "none (one fold)"


def test_others_are_compared_with_the_first(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {1: 0.5, 2: 0.6})
    b = write_run(tmp_path / "b", {2: 0.7, 1: 0.6}, **{"training.epochs": 20})
    rows, settings = compare([a, b])
    assert rows[0].difference is None
    assert rows[1].difference.mean == pytest.approx(0.1)
    assert (rows[1].mean, rows[1].seconds) == (pytest.approx(0.65), 90.0)
    assert settings == {"training.epochs": ["10", "20"]}  # not where a run was written


def test_calibrated_losses_are_shown_where_they_are_known(tmp_path: Path, capsys) -> None:
    a, b, c = (write_run(tmp_path / name, {1: 0.5, 2: 0.6}) for name in "abc")
    for folder, calibrated in ((b, {"loss": 0.8125}), (c, None)):
        report = json.loads((folder / "report.json").read_text())
        report["calibration"] = {"as_is": {"loss": 0.9}, "calibrated": calibrated}
        (folder / "report.json").write_text(json.dumps(report))
    assert [row.loss for row in compare([a, b, c])[0]] == [None, 0.8125, None]
    assert main([str(a), str(b), "--html", str(tmp_path / "page.html")]) == 0
    assert "0.812" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert '<td class="right">–</td><td class="right">2</td>' in page
    assert '<td class="right">0.812</td><td class="right">2</td>' in page


def test_a_setting_that_a_run_did_not_know_is_told_as_that(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {1: 0.5})
    b = write_run(tmp_path / "b", {1: 0.6}, **{"model.stem_widths": []})
    assert compare([a, b])[1] == {"model.stem_widths": ["not known then", "[]"]}


def test_a_pretrained_model_is_compared_by_its_content(tmp_path: Path) -> None:
    def run(name: str, model: str, digest: str) -> Path:
        folder = write_run(tmp_path / name, {1: 0.5}, **{"model.pretrained": model})
        report = json.loads((folder / "report.json").read_text())
        report["run"] = {"pretrained_sha256": digest}
        (folder / "report.json").write_text(json.dumps(report))
        return folder

    first, moved, changed = run("a", "/a/m", "1f"), run("b", "/b/m", "1f"), run("c", "/a/m", "2f")
    assert compare([first, moved])[1] == {}
    assert compare([first, changed])[1] == {"model.pretrained": ["SHA-256 1f", "SHA-256 2f"]}


def test_command_prints_and_writes_a_page(tmp_path: Path, capsys) -> None:
    a = write_run(tmp_path / "a", {1: 0.5, 2: 0.6})
    b = write_run(tmp_path / "b<i>", {1: 0.6, 2: 0.7}, seed=1)
    page = tmp_path / "compare.html"
    assert main([str(a), str(b), "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    for text in ("55.0 %", "65.0 %", "+10.0"):
        assert text in shown
    html = page.read_text()
    assert "b&lt;i&gt;" in html
    assert html.count("60.0 % (+10.0)") == 1
    assert "<td>seed</td><td>0</td><td>1</td>" in html
    assert "--accent" in html  # the style sheet that both pages have


def test_what_reports_hold_is_shown_escaped(tmp_path: Path, capsys) -> None:
    a = write_run(tmp_path / "a[red]", {1: 0.5}, backend="auto")
    b = write_run(tmp_path / "b\x1b[2J\udcff", {1: 0.6}, backend="\x1b]0;x\x07\u202e" + "y" * 999)
    page = tmp_path / "compare.html"
    assert main([str(a), str(b), "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "[red]" in shown
    assert r"b\x1b[2J\xff" in "".join(shown.split())
    for text in (shown, page.read_text()):
        assert not set(text) & set("\x1b\x07\u202e\udcff")
        assert "y" * 300 not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "other"}, "b must hold the same clips; they do not"),
        ({"accuracies": {1: 0.5}}, "(1, 2), got 1"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, change, message, capsys) -> None:
    a = write_run(tmp_path / "a", {1: 0.5, 2: 0.6})
    b = write_run(tmp_path / "b", **{"accuracies": {1: 0.5, 2: 0.6}, **change})
    assert main([str(a), str(b)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_what_is_no_run_is_named(tmp_path: Path, capsys) -> None:
    a = write_run(tmp_path / "a", {1: 0.5})
    (tmp_path / "b").mkdir()
    assert main([str(a), str(tmp_path / "b")]) == 2
    assert "b must be a finished run; it has no report.json" in capsys.readouterr().err
    (tmp_path / "b" / "report.json").write_text("{}")
    assert main([str(a), str(tmp_path / "b")]) == 2
    assert "report.json must be a run's report, but cannot be read" in capsys.readouterr().err
    (tmp_path / "b" / "report.json").unlink()
    os.mkfifo(tmp_path / "b" / "report.json")
    assert main([str(a), str(tmp_path / "b")]) == 2
    assert "Not a regular file" in capsys.readouterr().err
    for empty in ([""], ["--html="]):
        assert main([str(a), str(a), *empty]) == 2
        assert "a path must not be empty, got ''" in capsys.readouterr().err
    assert main([str(a)]) == 2
    assert "RUNS must be at least 2 folders, got 1" in capsys.readouterr().err
    b = write_run(tmp_path / "c", {1: 0.5})
    assert main([str(a), str(b), "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
