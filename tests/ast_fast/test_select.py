"""A selection of candidates: what runs when, what survives being killed, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ast_fast import select
from ast_fast.machine.device import Placement
from ast_fast.select import Options, Selection, main
from ast_fast.selection.plan import Trial, read_candidates
from ast_fast.selection.trial import Scores
from ast_fast.settings.command_line import parse_config
from ast_fast.settings.rules import check_config
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import PARTIAL
from ast_fast_kernels.files.sealed import sealed

SMALL = (
    "--audio.clip-seconds 0.3 --features.target-frames 32 --model.patch-size 16 16 "
    "--model.embed-dim 16 --model.num-heads 2 --model.depth 1 --fbank.num-mel-bins 32 "
    "--augment.time-mask 8 --augment.freq-mask 8 --training.batch-size 4 --device cpu"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four folds of two clips of each of three pitches."""
    root = tmp_path_factory.mktemp("data")
    (root / "meta").mkdir()
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 5):
        for index in range(6):
            label, name = index % 3, f"{fold}-{index}.wav"
            tone = np.sin(np.arange(4800) * 0.1 * 2**label * rng.uniform(0.95, 1.05))
            soundfile.write(root / "audio" / name, 0.3 * tone + rng.normal(0, 0.01, 4800), 16000)
            lines.append(f"{name},{fold},{label},pitch-{label},False,{index},A")
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return root


def candidates(tmp_path: Path, epochs: int = 2, **own: str) -> Path:
    path = tmp_path / "candidates.toml"
    table = "".join(f'{name} = "{flags}"\n' for name, flags in ({"plain": ""} | own).items())
    path.write_text(f'settings = "{SMALL} --training.epochs {epochs}"\n[candidates]\n{table}')
    return path


def arguments(file: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [
        *(str(file), "--data", str(data), "--out", str(out), "--cache", str(data.parent / "cache")),
        *("--seeds", "0", "--test-folds", "3", *more),
    ]


def selection(file: Path, data: Path, out: Path, **given) -> Selection:
    cache = data.parent / "cache"
    options = {"seeds": (0, 1), "test_folds": (3, 4)} | given
    return Selection(Options(file, data, out, cache, **options))


def scores(calibrated_loss: float) -> Scores:
    return Scores(0.5, 1.0, calibrated_loss, 1.0, 0.5, 60.0)


def scores_in(out: Path, fold: int = 3) -> dict:
    """The scores of a trial, but for the time."""
    path = out / "plain" / "seed-0" / f"trial-fold-{fold}.json"
    return json.loads(path.read_text()).get("scores", {}) | {"seconds": 0}


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["esc10", "esc50"])
def test_our_candidates_are_settings_that_can_be_trained(name: str, tmp_path: Path) -> None:
    file = RECIPES / "candidates" / f"{name}.toml"
    first, *others = read_candidates(file, data=tmp_path, cache=None, threads=1)
    recipe = parse_config(["--config", str(RECIPES / f"{name}.toml"), "--data", str(tmp_path)])
    assert first.name == "recipe"
    assert first.config.model == recipe.model
    assert first.config.augment == recipe.augment
    assert others
    for candidate in (first, *others):
        check_config(candidate.config, 80000, Placement(torch.device("cpu"), None))


@pytest.mark.slow
def test_a_selection_that_is_killed_continues_to_the_same_scores(
    tmp_path: Path, data: Path, capfd
) -> None:
    file = candidates(tmp_path, epochs=6)
    assert main(arguments(file, data, tmp_path / "whole")) == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "ast_fast.select", *arguments(file, data, killed)]
    process = subprocess.Popen(command, start_new_session=True)
    history = killed / "plain" / "seed-0" / "fold-3" / "history.csv"
    _wait_for(lambda: history.exists())
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for(lambda: not _is_group(process.pid))  # the trial ended with the selection
    epochs = len(history.read_text().splitlines()) - 1
    assert 1 <= epochs <= 6
    assert "scores" not in json.loads((history.parents[1] / "trial-fold-3.json").read_text())
    kept = history.read_text().splitlines()[1]

    capfd.readouterr()
    assert main(arguments(file, data, killed)) == 0
    assert history.read_text().splitlines()[1] == kept
    assert scores_in(killed) == scores_in(tmp_path / "whole") != {"seconds": 0}
    assert "plain, seed 0, fold 3: accuracy" in capfd.readouterr().out

    finished = (history.parents[1] / "trial-fold-3.json").read_bytes()
    assert main(arguments(file, data, killed)) == 0  # and a finished one stays as it is
    assert (history.parents[1] / "trial-fold-3.json").read_bytes() == finished
    assert "| **plain** | 1 of 1 |" in (killed / "table.md").read_text()


def _wait_for(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _is_group(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_trial_sees_neither_the_fold_left_out_nor_its_test_fold(
    tmp_path: Path, data: Path
) -> None:
    out = tmp_path / "out"
    assert main(arguments(candidates(tmp_path, epochs=1), data, out)) == 0
    rows = (out / "plain" / "seed-0" / "fold-3" / "predictions.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [f"3-{index}.wav" for index in range(6)]
    history = (out / "plain" / "seed-0" / "fold-3" / "history.csv").read_text()
    assert len(history.splitlines()) == 2
    # 12 clips of folds 2 and 4: an accuracy in twelfths.
    assert (12 * float(history.splitlines()[1].split(",")[3])).is_integer()


def test_a_candidate_that_is_worse_on_every_fold_is_stopped(tmp_path: Path, data: Path) -> None:
    file = candidates(tmp_path, bad="--augment.no-roll", mixed="--augment.gain-db 3")
    with selection(file, data, tmp_path / "out", stop_margin=0.1) as chosen:
        done = {("plain", 3): 1.0, ("plain", 4): 0.8, ("bad", 3): 1.2, ("bad", 4): 0.95}
        chosen.scores |= {Trial(name, 0, fold): scores(x) for (name, fold), x in done.items()}
        assert [chosen.stopped(name) for name in ("plain", "bad", "mixed")] == [False, True, None]
        assert chosen.next_trial() == Trial("mixed", 0, 3)
        chosen.running[Trial("mixed", 0, 3)] = chosen.running[Trial("mixed", 0, 4)] = None
        assert chosen.next_trial() == Trial("plain", 1, 3)  # never stopped
        chosen.running[Trial("plain", 1, 3)] = chosen.running[Trial("plain", 1, 4)] = None
        assert chosen.next_trial() is None  # `mixed` is undecided, `bad` is stopped
        chosen.running.clear()
        chosen.scores |= {Trial("mixed", 0, 3): scores(1.2), Trial("mixed", 0, 4): scores(0.85)}
        assert chosen.stopped("mixed") is False  # worse by more than the margin on one fold only
        chosen.scores |= {Trial("plain", 1, fold): scores(1.0) for fold in (3, 4)}
        assert chosen.next_trial() == Trial("mixed", 1, 3)


def test_without_a_rule_every_trial_runs(tmp_path: Path, data: Path) -> None:
    file = candidates(tmp_path, bad="--augment.no-roll")
    with selection(file, data, tmp_path / "out") as chosen:
        chosen.scores |= {
            Trial(name, 0, fold): scores(5.0 if name == "bad" else 1.0)
            for name in ("plain", "bad")
            for fold in (3, 4)
        }
        chosen.scores |= {Trial("plain", 1, fold): scores(1.0) for fold in (3, 4)}
        assert chosen.stopped("bad") is False
        assert chosen.next_trial() == Trial("bad", 1, 3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder whose only trial is finished."""
    folder = tmp_path_factory.mktemp("finished")
    out = folder / "out"
    assert main(arguments(candidates(folder), data, out)) == 0
    return out


def again(tmp_path: Path, finished: Path, data: Path, *more: str, **own: str) -> int:
    """Run the finished selection again."""
    return main(arguments(candidates(tmp_path, **own), data, finished, *more))


def test_a_finished_trial_must_be_of_the_same_settings(
    tmp_path: Path, data: Path, finished: Path, capsys
) -> None:
    file = candidates(tmp_path, plain="--augment.gain-db 3")
    assert main(arguments(file, data, finished)) == 2
    error = capsys.readouterr().err
    assert "trial-fold-3.json is of other settings: augment.gain_db is 6.0 there and 3.0" in error
    assert "give the candidate another name, or name another --out" in error


def test_a_finished_trial_must_be_of_the_same_code(
    tmp_path: Path, data: Path, finished: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(select, "code_identity", lambda: "f" * 64)
    assert again(tmp_path, finished, data) == 2
    error = capsys.readouterr().err
    assert "trial-fold-3.json is of other code or versions" in error
    assert error.strip().endswith("--mixed-code keeps finished trials")
    assert again(tmp_path, finished, data, "--mixed-code") == 0


def test_a_setting_that_an_earlier_version_lacked_has_its_default(
    tmp_path: Path, data: Path, finished: Path, monkeypatch
) -> None:
    path = finished / "plain" / "seed-0" / "trial-fold-3.json"
    before = path.read_bytes()
    document = json.loads(before)
    del document["run"]["augment"]["filter_points"]
    path.write_text(json.dumps(sealed(document)))
    try:
        assert again(tmp_path, finished, data) == 0
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trial-fold-3.json", "its checksum does not match"),
        ("fold-3/predictions.csv", "must have the"),
    ],
)
def test_a_damaged_trial_is_refused(
    tmp_path: Path, data: Path, finished: Path, capsys, name: str, message: str
) -> None:
    path = finished / "plain" / "seed-0" / name
    before = path.read_bytes()
    path.write_bytes(before.replace(b"0", b"10", 1))
    try:
        assert again(tmp_path, finished, data) == 2
    finally:
        path.write_bytes(before)
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error


def test_a_damaged_plan_is_refused(tmp_path: Path, data: Path, finished: Path, capsys) -> None:
    path = finished / "selection.json"
    before = path.read_bytes()
    try:
        for damaged, message in (
            (before.replace(b"0", b"10", 1), "its checksum does not match"),
            (b"[" * 10_000, "cannot be read"),
            (b"[]", "is damaged or was changed"),
        ):
            path.write_bytes(damaged)
            assert again(tmp_path, finished, data) == 2
            error = capsys.readouterr().err
            assert str(path) in error
            assert message in error
            assert error.strip().endswith("name another --out")
    finally:
        path.write_bytes(before)


def test_what_a_killed_trial_was_writing_is_removed(
    tmp_path: Path, data: Path, finished: Path
) -> None:
    trial = finished / "plain" / "seed-0" / "trial-fold-3.json"
    left = trial.with_name(".trial-fold-3.json.0123abcd.partial")
    assert PARTIAL.fullmatch(left.name)
    left.write_text("half")
    assert again(tmp_path, finished, data) == 0
    assert not left.exists()
    assert trial.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--stop-margin", "0.1"), "--stop-margin must stay as the selection"),
        (("--leave-out", "2"), "--leave-out must stay as the selection"),
        (("--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--leave-out", "7"), "must name folds of"),
    ],
)
def test_options_that_cannot_be_used_are_named(
    tmp_path: Path, data: Path, finished: Path, capsys, flags, message: str
) -> None:
    assert again(tmp_path, finished, data, *flags) == 2
    assert message in capsys.readouterr().err


def test_two_selections_do_not_share_a_folder(tmp_path: Path, data: Path) -> None:
    file = candidates(tmp_path)
    with (
        selection(file, data, tmp_path / "out"),
        pytest.raises(InputError, match="is in use by another selection"),
        selection(file, data, tmp_path / "out"),
    ):
        pass


@pytest.mark.slow
def test_a_trial_that_fails_ends_the_selection(tmp_path: Path, data: Path, capfd) -> None:
    file = candidates(tmp_path, plain="--training.learning-rate 1e11 --training.clip-grad-norm 0")
    assert main(arguments(file, data, tmp_path / "out")) == 2
    errors = capfd.readouterr().err
    assert "error: plain, seed 0, fold 3: the loss of fold 3 became" in errors
    assert "error: plain, seed 0, fold 3: its process ended with exit code 2" in errors
