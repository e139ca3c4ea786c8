"""Folds trained by separate jobs are merged into one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ast_fast.cv import main
from ast_fast.training.checkpoint import read_header
from ast_fast_kernels.files.sealed import CHECKSUM, sealed

TINY = [
    *("--training.epochs", "1", "--threads", "1", "--backend", "reference"),
    *("--model.embed-dim", "16", "--model.num-heads", "2", "--model.depth", "1"),
]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of folds 1 and 2, of 3, and of all three, and one of another model."""
    root = tmp_path_factory.mktemp("jobs")
    for name, flags in {
        "a": ["--folds", "1", "2"],
        "b": ["--folds", "3"],
        "all": ["--folds", "1", "2", "3"],
        "other": ["--folds", "3", "--model.mlp-ratio", "2"],
    }.items():
        cache = ["--cache", str(root / "cache")]
        assert main([*TINY, *flags, *cache, "--out", str(root / name)]) == 0
    return root


def rewrite(path: Path, change) -> None:
    """Change a sealed JSON file as a program of another version or machine would have."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(sealed(document)))


def merge(jobs: Path, out: Path, *names: str) -> int:
    return main(["--merge", *(str(jobs / name) for name in names), "--out", str(out)])


def test_merged_folds_are_the_run_of_them_all(jobs: Path, tmp_path: Path, capsys) -> None:
    assert merge(jobs, tmp_path / "merged", "a", "b") == 0
    merged = json.loads((tmp_path / "merged" / "report.json").read_text())
    whole = json.loads((jobs / "all" / "report.json").read_text())
    assert merged["accuracy"] == whole["accuracy"]
    assert merged["confusion"] == whole["confusion"]
    for fold, row in whole["folds"].items():
        assert row["temperature"] == merged["folds"][fold]["temperature"] > 0
        found = [
            read_header(home / f"fold-{fold}" / "model.safetensors").facts.get("temperature")
            for home in (tmp_path / "merged", jobs / ("b" if fold == "3" else "a"))
        ]
        assert found[0] == row["temperature"]
        assert found[1] != row["temperature"]  # by fewer folds, or none; it stays
    runs = [json.loads((jobs / name / "run.json").read_text()) for name in "ab"]
    for run in runs:
        del run[CHECKSUM]
    assert merged["run"]["merged"] == [
        {"path": str(jobs / "a"), "folds": [1, 2], "run": runs[0]},
        {"path": str(jobs / "b"), "folds": [3], "run": runs[1]},
    ]
    assert merged["run"]["peak_memory_gib"] == max(run["peak_memory_gib"] for run in runs)
    assert (tmp_path / "merged" / "report.html").is_file()
    assert (tmp_path / "merged" / "fold-3" / "model.safetensors").is_file()
    shown = capsys.readouterr().out
    assert "(folds 1 2 3)" in shown
    assert "note" not in shown
    assert main(["--resume", "--out", str(tmp_path / "merged")]) == 0  # it is a run like any other


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "--merge must name at least 2 runs, got 1"),
        (["a", "all"], "fold 1 must be in only one run; it is in"),
        (["a", "other"], "(model.mlp_ratio 4.0), got model.mlp_ratio 2.0\n"),
        (["a", "nothing"], "nothing must be a finished run; it has no report.json"),
    ],
)
def test_what_does_not_go_together_is_refused(jobs, tmp_path, names, message, capsys) -> None:
    assert merge(jobs, tmp_path / "merged", *names) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_other_clips_are_refused(jobs: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(jobs / "b", tmp_path / "b")
    rewrite(tmp_path / "b" / "report.json", lambda report: report["data"].update(key="other"))
    out = ["--out", str(tmp_path / "merged")]
    assert main(["--merge", str(jobs / "a"), str(tmp_path / "b"), *out]) == 2
    message = f"error: {jobs / 'a'} and {tmp_path / 'b'} must hold the same clips; they do not\n"
    assert capsys.readouterr().err == message


def test_another_precision_is_refused(jobs: Path, tmp_path: Path, capsys) -> None:
    """Two machines can give jobs with the same settings different precisions."""
    shutil.copytree(jobs / "b", tmp_path / "b")
    info = json.loads((tmp_path / "b" / "run.json").read_text())
    other = "off" if info["amp"] == "bfloat16" else "bfloat16"
    rewrite(tmp_path / "b" / "run.json", lambda run: run.update(amp=other))
    out = ["--out", str(tmp_path / "merged")]
    assert main(["--merge", str(jobs / "a"), str(tmp_path / "b"), *out]) == 2
    message = f"must have the precision of {jobs / 'a'} ({info['amp']}), got {other}\n"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_runs_of_another_version_are_told(jobs: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(jobs / "b", tmp_path / "b")
    rewrite(tmp_path / "b" / "run.json", lambda run: run["versions"].update(torch="1.0"))
    out = tmp_path / "merged"
    assert main(["--merge", str(jobs / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    note = "note: the runs differ in versions; run.json has the values of each run\n"
    assert capsys.readouterr().out.endswith(note)
    assert "torch 1.0" in (out / "report.html").read_text()


def test_a_fold_that_is_gone_leaves_nothing_behind(jobs: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(jobs / "b", tmp_path / "b")
    out = ["--out", str(tmp_path / "deeper" / "merged")]
    fold = tmp_path / "b" / "fold-3"
    model = fold / "model.safetensors"
    missing = (
        f"{model} is missing, and manifest.json lists it; remove {fold} to train the fold again"
    )
    gone = f"{fold} must be a finished fold; its files are missing or incomplete"
    for broken, message in ((model, missing), (fold, gone)):
        broken.unlink() if broken.is_file() else shutil.rmtree(broken)
        assert main(["--merge", str(jobs / "a"), str(tmp_path / "b"), *out]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
        assert not (tmp_path / "deeper").exists()
    assert main(["--merge", str(jobs / "a"), str(jobs / "b"), *out]) == 0


def test_an_empty_folder_that_is_there_is_filled(jobs: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert merge(jobs, Path("link"), "a", "b") == 0
    assert (tmp_path / "there" / "report.html").is_file()
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert merge(jobs, Path("."), "a", "b") == 0
    assert Path("report.html").is_file()  # in the folder that this process is in


def test_kernels_that_a_version_did_not_name_are_not_told(jobs, tmp_path, capsys) -> None:
    shutil.copytree(jobs / "b", tmp_path / "b")
    rewrite(tmp_path / "b" / "run.json", lambda run: run["kernels"].pop("mix"))
    assert main(["--resume", "--out", str(tmp_path / "b")]) == 0
    out = ["--out", str(tmp_path / "merged")]
    assert main(["--merge", str(jobs / "a"), str(tmp_path / "b"), *out]) == 0
    assert "note" not in capsys.readouterr().out


def test_flags_that_merging_lacks_are_refused(jobs: Path, tmp_path: Path, capsys) -> None:
    runs = ["--merge", str(jobs / "a"), str(jobs / "b")]
    assert main(runs) == 2
    assert "--merge needs --out, the folder of the merged run" in capsys.readouterr().err
    assert main([*runs, "--out", str(tmp_path / "x"), "--seed", "1"]) == 2
    assert "--merge takes no other flag than --out, got --seed" in capsys.readouterr().err
    for empty in ([*runs, "", "--out", "x"], [*runs, "--out="]):
        assert main(empty) == 2
        assert "--merge and --out must name folders, got ''" in capsys.readouterr().err
    assert main([*runs, "--out", "x", "--out", "y"]) == 2
    assert "--merge and --out must each be given once" in capsys.readouterr().err
    assert main([*runs, "--out", str(jobs / "all")]) == 2
    assert "holds another run" in capsys.readouterr().err
