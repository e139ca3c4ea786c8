"""Cross-validation on the features of an extraction."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ast_fast.cv import main
from ast_fast.settings.command_line import Arguments, parse_config
from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.corpus.manifest import MANIFEST
from ast_fast_kernels.testing.stores import write_store

CONFIG = FbankConfig(num_mel_bins=32)
CLASSES = ("low hum", "high hum", "hiss")
NUM_SAMPLES = 8000
TYPES = {"fold": "int64", "target": "int64", "category": "string", "esc10": "string"}
TINY = [
    *("--audio.clip-seconds", "0.5", "--features.target-frames", "48", "--threads", "1"),
    *("--model.embed-dim", "16", "--model.num-heads", "2", "--model.depth", "1"),
    *("--augment.freq-mask", "4", "--augment.time-mask", "8"),
    *("--training.batch-size", "4", "--training.warmup-epochs", "1", "--training.ema-decay", "0.5"),
    *("--training.epochs", "3", "--training.learning-rate", "3e-3"),
]


def clips() -> tuple[np.ndarray[Any, np.dtype[np.int16]], dict[str, list[Any]]]:
    """Twelve clips of three classes in two folds, and their rows of a table."""
    generator = np.random.default_rng(0)
    seconds = np.arange(NUM_SAMPLES) / 16000
    waves, columns = [], {name: [] for name in TYPES}
    for number in range(12):
        target = number % 3
        hum = np.sin(2 * np.pi * (300, 2000, 0)[target] * seconds + number)
        noise = generator.standard_normal(NUM_SAMPLES)
        waves.append((8000 * (0.5 * hum + (0.02, 0.02, 0.3)[target] * noise)).astype(np.int16))
        row = (number // 3 % 2 + 1, target, CLASSES[target], str(target > 0))
        for name, value in zip(TYPES, row, strict=True):
            columns[name].append(value)
    return np.array(waves), columns


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of those clips, in float32."""
    waveforms, columns = clips()
    features = list(fbank(waveforms, CONFIG))
    folder = tmp_path_factory.mktemp("store")
    return write_store(folder, features, CONFIG, columns=columns, types=TYPES, dtype="float32")


def predictions(run: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows = [
        [float(row[name]) for name in CLASSES]
        for fold in (1, 2)
        for row in csv.DictReader((run / f"fold-{fold}" / "predictions.csv").open())
    ]
    return np.array(rows)


def test_a_store_trains_what_its_audio_trains(store: Path, tmp_path: Path) -> None:
    """With the audio's own augmentation off, the features are the same; so is the model."""
    waveforms, columns = clips()
    data = tmp_path / "data"
    (data / "audio").mkdir(parents=True)
    (data / "meta").mkdir()
    with (data / "meta" / "esc50.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", *columns])
        for number, row in enumerate(zip(*columns.values(), strict=True)):
            soundfile.write(data / "audio" / f"{number}.wav", waveforms[number], 16000)
            table.writerow([f"{number}.wav", *row])
    off = ["--augment.no-roll", "--augment.gain-db", "0", "--augment.no-polarity"]
    off += ["--augment.mix-probability", "0", "--fbank.num-mel-bins", "32"]
    of_audio = ["--data", str(data), "--cache", str(tmp_path / "cache"), *off]
    assert main([*of_audio, "--out", str(tmp_path / "audio"), *TINY]) == 0
    assert main(["--data", str(store), "--out", str(tmp_path / "stored"), *TINY]) == 0
    np.testing.assert_allclose(
        predictions(tmp_path / "stored"), predictions(tmp_path / "audio"), atol=1e-3
    )


def test_the_report_says_that_features_were_stored(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["--data", str(store), "--out", str(run), "--folds", "1", *TINY]
    assert main([*arguments, "--features.no-norm-per-sample", "--subset", "esc10"]) == 0
    assert "(features of an extraction)" in capsys.readouterr().out
    report = json.loads((run / "report.json").read_text())
    assert report["data"]["stored_features"] is True
    assert report["data"]["num_classes"] == 2
    check = report["kernels"]["fbank"]["per_fold"]["1"]
    assert (check["backend"], check["speed_ratio"]) == ("extraction", None)
    assert "mix" not in json.loads((run / "run.json").read_text())["kernels"]
    assert "as features stored by an extraction" in (run / "report.html").read_text()
    assert main([*arguments, "--features.no-norm-per-sample", "--subset", "esc10", "--resume"]) == 0


def test_defaults_come_from_the_store(store: Path) -> None:
    config = parse_config(Arguments(("--data", str(store))))
    assert config.fbank == CONFIG
    assert not config.augment.roll
    assert config.augment.mix_probability == 0
    assert config.augment.freq_mask == 24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fbank.num-mel-bins", "40"], "fbank.num_mel_bins must be 32, as in "),
        (["--augment.roll"], "augment.roll must be off with stored features, whose waveforms are"),
        (["--augment.speeds", "0.8"], "augment.speeds must be none with stored features, whose"),
        (["--augment.gain-db", "3"], "augment.gain_db must be 0 with stored features, whose"),
        (["--folds", "7"], "--folds must name folds of "),
    ],
)
def test_settings_that_features_cannot_have(
    flags: list[str], message: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["--data", str(store), "--out", str(out), *TINY, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_parts_of_stored_features_come_from_other_clips(store: Path, tmp_path: Path) -> None:
    losses = set()
    for probability in ("0", "1"):
        run = tmp_path / probability
        flags = ["--folds", "1", "--augment.cutmix-probability", probability, *TINY]
        assert main(["--data", str(store), "--out", str(run), *flags]) == 0
        losses.add((run / "fold-1" / "history.csv").read_text().split("\n")[1].split(",")[2])
    assert len(losses) == 2


def test_stores_without_labels_are_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = [np.zeros((48, 32), np.float32)] * 2
    bare = write_store(tmp_path / "bare", features, CONFIG)
    assert main(["--data", str(bare), "--out", str(tmp_path / "run"), *TINY]) == 2
    error = capsys.readouterr().err
    assert f"{bare / MANIFEST} must have the columns fold, target, category to train from" in error
    columns = {"fold": [1, None], "target": [0, 1], "category": ["a", "b"]}
    types = {name: TYPES[name] for name in columns}
    odd = write_store(tmp_path / "odd", features, CONFIG, columns=columns, types=types)
    assert main(["--data", str(odd), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "manifest.jsonl, line 2, column fold: must be a whole number" in capsys.readouterr().err


def test_other_features_do_not_resume_a_run(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waveforms, columns = clips()
    run = ["--out", str(tmp_path / "run"), "--folds", "1", *TINY]
    assert main(["--data", str(store), *run]) == 0
    features = list(fbank(waveforms // 2, CONFIG))
    other = write_store(tmp_path / "other", features, CONFIG, columns=columns, types=TYPES)
    assert main(["--data", str(other), *run, "--resume"]) == 2
    assert "data" in capsys.readouterr().err
