"""Several seeds in one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ast_fast.cv import main
from ast_fast.run.seeds import run_seeds, summarise
from ast_fast.settings.command_line import Arguments, SeedsJob, read_job
from ast_fast_kernels.errors import InputError


class Runs:
    """Stands in for runs: notes their arguments and writes a report."""

    def __init__(
        self, accuracies: dict[int, list[float]], fails_at: int | None = None, **settings
    ) -> None:
        self.accuracies, self.fails_at, self.settings = accuracies, fails_at, settings
        self.calls: list[list[str]] = []

    def __call__(self, argv) -> int:
        self.calls.append(list(argv))
        folder = Path(argv[argv.index("--out") + 1])
        seed = int(folder.name.removeprefix("seed-"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").touch()
        if seed == self.fails_at:
            return 130
        per_fold = {str(fold): a for fold, a in enumerate(self.accuracies[seed], start=1)}
        config = {"seed": seed, "out": str(folder), "training.epochs": 10} | self.settings
        report = {
            "accuracy": {"per_fold": per_fold},
            "data": {"key": "k"},
            "config": config,
            "timing": {"total_seconds": 1.0},
        }
        (folder / "report.json").write_text(json.dumps(report))
        return 0


def seeds_of(seeds: list[int], argv: list[str]) -> SeedsJob:
    return SeedsJob(tuple(seeds), Arguments(tuple(argv)))


def test_each_seed_has_a_folder_and_the_same_flags(tmp_path: Path, capsys) -> None:
    runs = Runs({3: [0.5, 0.7], 0: [0.6, 0.8]})
    argv = ["--folds", "1", "2", "--out", str(tmp_path / "x"), "--augment.no-roll"]
    assert run_seeds(seeds_of([3, 0], argv), runs) == 0
    rest = ["--folds", "1", "2", "--augment.no-roll"]
    assert runs.calls == [
        [*rest, "--seed", seed, "--out", str(tmp_path / "x" / f"seed-{seed}")] for seed in "30"
    ]
    written = json.loads((tmp_path / "x" / "seeds.json").read_text())
    assert written["calibrated_loss"] is None  # these reports have none
    page = (tmp_path / "x" / "seeds.html").read_text()
    assert f"not at hand: {tmp_path / 'x' / 'seed-0'} has no fold-1." in page
    summary = written["accuracy"]
    assert summary["mean"] == pytest.approx(0.65)
    assert summary["std_over_seeds"] == pytest.approx(0.05 * 2**0.5)
    assert summary["std_over_folds_and_seeds"] == pytest.approx((0.05 / 3) ** 0.5)
    assert summary["per_seed"]["3"] == {"1": 0.5, "2": 0.7}
    assert "accuracy 65.0% ± 7.1% over seeds 0 3 (" in capsys.readouterr().out


def test_a_run_that_ends_early_ends_all_and_they_resume(tmp_path: Path) -> None:
    accuracies = {0: [0.5], 1: [0.6], 2: [0.7]}
    argv = ["--data", "d", "--training.epochs", "10", "--out", str(tmp_path)]
    assert run_seeds(seeds_of([0, 1, 2], argv), Runs(accuracies, fails_at=1)) == 130
    assert not (tmp_path / "seeds.json").exists()
    again = Runs(accuracies)
    assert run_seeds(seeds_of([0, 1, 2], [*argv, "--resume"]), again) == 0
    assert [("--resume" in call, "--seed" in call) for call in again.calls] == [
        (True, False), (True, False), (False, True),
    ]  # fmt: skip
    assert again.calls[2][:4] == ["--config", str(tmp_path / "seed-0/config.toml"), "--data", "d"]
    assert (tmp_path / "seeds.json").exists()


def test_a_later_seed_joins_those_before_it(tmp_path: Path, capsys) -> None:
    argv = ["--out", str(tmp_path), "--training.epochs", "10"]
    assert run_seeds(seeds_of([0], argv), Runs({0: [0.5]})) == 0
    assert "accuracy 50.0% over seed 0 (" in capsys.readouterr().out
    assert run_seeds(seeds_of([7], argv), Runs({7: [0.7]})) == 0
    assert "accuracy 60.0% ± 14.1% over seeds 0 7 (" in capsys.readouterr().out
    other = Runs({8: [0.7]})
    with pytest.raises(
        InputError, match=r"seed-0 must differ .*epochs is 10 there and 20 in the others"
    ):
        run_seeds(seeds_of([8], [*argv[:-1], "20"]), other)
    assert not other.calls  # nothing was trained in vain
    unlike = Runs({8: [0.7]}, **{"training.epochs": 20})
    with pytest.raises(
        InputError, match=r"seed-8 must differ .*epochs is 20 there and 10 in the others"
    ):
        run_seeds(seeds_of([8], argv), unlike)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--resume needs --out, the folder of the runs to resume"),
        (["--out", "nowhere"], "--out must hold runs to resume, got nowhere, which has no seed-N"),
    ],
)
def test_what_is_not_there_is_not_resumed(flags, message, capsys) -> None:
    assert main(["--seeds", "0", "1", "--resume", *flags]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_run_is_no_folder_for_others(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with pytest.raises(InputError, match="--out must be a folder for the runs of --seeds, got"):
        run_seeds(seeds_of([0], ["--out", str(tmp_path)]), Runs({0: [0.5]}))


def test_a_home_in_out_is_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_seeds(seeds_of([0], ["--out=~/x"]), Runs({0: [0.5]})) == 0
    assert (tmp_path / "x" / "seeds.json").is_file()


def test_without_out_a_folder_is_chosen(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_seeds(seeds_of([0], []), Runs({0: [0.5]})) == 0
    (chosen,) = Path("runs").iterdir()
    assert (chosen / "seeds.json").is_file()
    assert summarise({0: chosen / "seed-0"})["accuracy"]["std_over_seeds"] == 0


def test_no_seeds_are_no_runs_of_their_own() -> None:
    argv = ["--data", "x", "--seed", "3"]
    assert read_job(Arguments(tuple(argv))) is None
    found = read_job(Arguments(("--seeds", "1", "2", "--data=x")))
    assert found == seeds_of([1, 2], ["--data", "x"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds"], "--seeds takes at least one value, got none"),
        (["--seeds", "1", "x"], "--seeds must be distinct integers from 0 up, got x"),
        (["--seeds", "1", "1"], "--seeds must be distinct integers from 0 up, got 1"),
        (["--seeds", "-1"], "--seeds must be distinct integers from 0 up, got -1"),
        (["--seeds", "1", "--seed", "2"], "--seeds must be given without --seed"),
        (["--seeds", "1", "--seeds", "2"], "--seeds is given twice"),
        (["--seeds", "1", "--merge", "a", "b"], "--seeds must be given without --merge"),
    ],
)
def test_wrong_seeds_are_one_line(argv, message, capsys) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_help_lists_it(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", "1", "--help"])
    assert "--seeds" in capsys.readouterr().out


@pytest.mark.slow
def test_two_real_runs(tmp_path: Path) -> None:
    flags = [
        *("--seeds", "0", "1", "--folds", "1", "2", "--training.epochs", "1", "--threads", "1"),
        *("--model.embed-dim", "16", "--model.num-heads", "2", "--model.depth", "1"),
        *("--backend", "reference", "--cache", str(tmp_path / "cache")),
        *("--out", str(tmp_path / "out")),
    ]
    assert main(flags) == 0
    (tmp_path / "out" / "seeds.json").unlink()
    shutil.rmtree(tmp_path / "out" / "seed-1")
    seeds = ["--seeds", "0", "1", "--resume", "--out", str(tmp_path / "out")]
    assert main(seeds) == 0  # with the settings of the run that is there
    reports = [
        json.loads((tmp_path / "out" / f"seed-{seed}" / "report.json").read_text())
        for seed in (0, 1)
    ]
    assert [report["config"]["seed"] for report in reports] == [0, 1]
    summary = json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert summary["accuracy"]["per_seed"]["1"] == reports[1]["accuracy"]["per_fold"]
    losses = [report["calibration"]["calibrated"]["loss"] for report in reports]
    assert summary["calibrated_loss"]["per_seed"] == dict(zip("01", losses, strict=True))
    assert summary["calibrated_loss"]["mean"] == pytest.approx(sum(losses) / 2)
    page = (tmp_path / "out" / "seeds.html").read_text()
    assert page.count("data:image/webp") == 24
    assert "of them with every seed" in page
    assert "✗ 2 of 2, " in page
