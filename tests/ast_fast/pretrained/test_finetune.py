"""A model trained on some sounds, fine-tuned on others, as a user of the command would."""

from __future__ import annotations

import itertools
import json
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tomli_w
import torch
from safetensors.torch import load_file

from ast_fast import pretrained
from ast_fast.cv import digest_of_pretrained, main
from ast_fast.machine.distributed import ALONE, Ranks
from ast_fast.pretrained.digest import digest_of_model
from ast_fast.pretrained.finetune import finetuning_defaults, pretrained_weights
from ast_fast.settings.command_line import parse_config
from ast_fast.settings.config import Config
from ast_fast.settings.rules import check_memory
from ast_fast.training.fold import _FoldTraining
from ast_fast.training.trained import load_trained
from ast_fast_kernels.errors import InputError

RATE = 16000
PITCHES = (300.0, 700.0, 1500.0, 3200.0)
PAIRS = [(first, second) for first in PITCHES for second in PITCHES if first != second]
BEFORE, AFTER = PAIRS[::2], PAIRS[1::2]
"""Classes, a pitch after another: those trained on first, and those of fine-tuning."""

CLIPS = [
    *("--audio.clip-seconds", "0.5", "--features.target-frames", "48", "--folds", "1"),
    *("--fbank.num-mel-bins", "32", "--augment.time-mask", "8", "--augment.freq-mask", "4"),
    *("--backend", "reference", "--device", "cpu", "--threads", "1"),
]
FIRST = [
    *("--model.patch-size", "8", "8", "--model.patch-stride", "8", "8", "--model.embed-dim", "32"),
    *("--model.num-heads", "2", "--model.depth", "2", "--model.pool", "distilled"),
    *("--model.token-positions", "--model.head-norm", "--features.no-norm-per-sample"),
    *("--features.padding", "zero", "--augment.mix-probability", "0", "--augment.patch-drop", "0"),
    *("--augment.no-roll", "--training.epochs", "25", "--training.batch-size", "16"),
    *("--training.warmup-epochs", "1", "--training.ema-decay", "0.9"),
]
SHORT = [
    *("--training.epochs", "6", "--training.learning-rate", "1e-3", "--training.batch-size", "8"),
]


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    """Give other tests their threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_data(root: Path, pairs: list[tuple[float, float]], num_training: int) -> Path:
    """Write noisy clips of two pitches each: fold 1 to test on, fold 2 to train on."""
    rng = np.random.default_rng(num_training)
    is_late = np.arange(RATE // 2) >= RATE // 4
    rows = ["filename,fold,target,category"]
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    for fold, count in ((1, 8), (2, num_training)):
        for target, pair in enumerate(pairs):
            for take in range(count):
                pitch = np.where(is_late, pair[1], pair[0]) * rng.uniform(0.95, 1.05)
                tone = 0.06 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
                file = f"{fold}-{target}-{take}.wav"
                noise = 0.025 * rng.standard_normal(len(tone))
                soundfile.write(root / "audio" / file, tone + noise, RATE)
                rows.append(f"{file},{fold},{target},{pair[0]:g} then {pair[1]:g}")
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder as transformers writes it, of a model that was trained here on other classes."""
    root = tmp_path_factory.mktemp("before")
    data = write_data(root / "data", BEFORE, 32)
    flags = ["--data", str(data), "--cache", str(cache), "--out", str(root / "run")]
    assert main([*flags, *CLIPS, *FIRST]) == 0
    trained = load_trained(root / "run" / "fold-1" / "model.safetensors")
    assert trained.statistics is not None
    model = pretrained.Pretrained(
        trained.model, trained.config, trained.class_names, trained.statistics, multi_label=False
    )
    pretrained.save(model, root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> list[str]:
    data = write_data(tmp_path_factory.mktemp("after") / "data", AFTER, 6)
    return ["--data", str(data), "--cache", str(cache), *CLIPS, *SHORT]


@pytest.fixture(scope="module")
def tuned(theirs: Path, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    assert main([*flags, "--model.pretrained", str(theirs), "--out", str(out)]) == 0
    return out


def accuracy(out: Path) -> float:
    return float(json.loads((out / "report.json").read_text())["accuracy"]["mean"])


def test_fine_tuning_gains_over_scratch(tuned: Path, tmp_path: Path) -> None:
    settings = tomllib.loads((tuned / "config.toml").read_text())
    del settings["model"]["pretrained"]
    same = tmp_path / "same.toml"
    same.write_text(tomli_w.dumps(settings))
    assert main(["--config", str(same), "--out", str(tmp_path / "scratch")]) == 0
    assert accuracy(tuned) >= 0.9
    assert accuracy(tuned) > accuracy(tmp_path / "scratch") + 0.2


def test_a_fine_tuned_fold_stands_alone(tuned: Path, theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "fold-1").mkdir()
    for file in ("model.safetensors", "manifest.json"):
        shutil.copy(tuned / "fold-1" / file, tmp_path / "fold-1" / file)
    trained = load_trained(tmp_path / "fold-1" / "model.safetensors")
    assert trained.config.model.pretrained is None
    assert trained.statistics is not None  # those of the training clips
    assert str(theirs) not in (tmp_path / "fold-1" / "model.safetensors").read_bytes().decode(
        "latin-1"
    )
    run = json.loads((tuned / "run.json").read_text())
    assert run["pretrained_sha256"] == digest_of_model(theirs)


def test_a_resumed_run_keeps_its_model(
    tuned: Path, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(tuned, out)
    shutil.copytree(theirs, moved)
    resume = ["--resume", "--out", str(out), "--model.pretrained", str(moved)]
    assert main(resume) == 0
    settings = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps(settings | {"mean": 1.0}))
    capsys.readouterr()
    assert main(resume) == 2
    assert "must keep the facts of the run" in (error := capsys.readouterr().err)
    assert "pretrained_sha256 was" in error


def test_a_model_that_changes_before_a_fold_is_refused(
    theirs: Path,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each fold reads it again, hours after the run's digest of it was taken."""
    copied = shutil.copytree(theirs, tmp_path / "copied")
    settings = json.loads((copied / "preprocessor_config.json").read_text())

    def change(*_: object) -> None:
        (copied / "preprocessor_config.json").write_text(json.dumps(settings | {"mean": 1.0}))

    monkeypatch.setattr("ast_fast.cv.say_what_runs", change)
    given = ["--model.pretrained", str(copied), "--out", str(tmp_path / "run")]
    assert main([*flags, *given]) == 2
    message = (
        f"error: model.pretrained {copied} must stay as it was when the run began, and differs"
    )
    assert message in capsys.readouterr().err.splitlines()


def test_every_process_begins_with_the_same_model(theirs: Path) -> None:
    config = parse_config([*CLIPS, "--model.pretrained", str(theirs)], finetuning_defaults)

    class Second(Ranks):
        def same(self, value: object) -> object:
            return "0" * 64

    assert digest_of_pretrained(config, ALONE) == digest_of_model(theirs)
    with pytest.raises(InputError, match=r"must be the same in every process, .* and 0{64} in the"):
        digest_of_pretrained(config, Second(1, 2))


def test_a_fold_begins_with_no_fresh_weights_but_the_heads(
    theirs: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_last_norm(config: Config) -> dict[str, torch.Tensor]:
        weights = pretrained_weights(config)
        del weights["norm.weight"]
        return weights

    monkeypatch.setattr("ast_fast.training.fold.pretrained_weights", without_the_last_norm)
    given = ["--model.pretrained", str(theirs), "--out", str(tmp_path / "run")]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"norm.weight\""):
        main([*flags, *given])


def test_a_run_that_was_interrupted_ends_with_the_same_bits(
    tuned: Path,
    theirs: Path,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save, epochs = _FoldTraining._save_checkpoint, itertools.count(1)

    def save_and_be_interrupted(training: _FoldTraining) -> None:
        save(training)
        if next(epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(_FoldTraining, "_save_checkpoint", save_and_be_interrupted)
    out = tmp_path / "run"
    assert main([*flags, "--model.pretrained", str(theirs), "--out", str(out)]) == 130
    assert not (out / "fold-1" / "model.safetensors").exists()
    assert main(["--resume", "--out", str(out)]) == 0
    ended, whole = (load_file(run / "fold-1" / "model.safetensors") for run in (out, tuned))
    assert ended.keys() == whole.keys()
    assert all(torch.equal(ended[name], tensor) for name, tensor in whole.items())


def test_a_run_begins_with_all_weights_but_the_heads(theirs: Path) -> None:
    given = {"model.pretrained": theirs}
    config = parse_config([*CLIPS, "--model.pretrained", str(theirs)], finetuning_defaults)
    assert finetuning_defaults(given).items() >= {"model.depth": 2, "training.epochs": 25}.items()
    assert config.training.learning_rate == 1e-5
    assert config.features.padding == "zero"
    weights = pretrained_weights(config)
    model = pretrained.load(theirs).model.state_dict()
    left = {"head.weight", "head.bias", "head_norm.weight", "head_norm.bias"}
    assert model.keys() - weights.keys() == left
    assert all(torch.equal(weights[name], model[name]) for name in weights)
    longer = replace(config, features=replace(config.features, target_frames=80))
    assert len(pretrained_weights(longer)["patch_embedding.position"]) == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--model.depth", "4"), "model.depth must be 2, as in {}, got 4"),
        (("--model.pool", "cls"), "model.pool must be 'distilled', as in {}, got 'cls'"),
        (
            ("--fbank.sample-frequency", "32000"),
            "fbank.sample_frequency must be 16000.0, as in {}, got 32000.0",
        ),
        (("--fbank.preset", "whisper"), "fbank."),
        (("--model.pretrained", "nowhere.pth"), "nowhere.pth must be a checkpoint, but does not"),
    ],
)
def test_what_contradicts_the_model_is_refused(
    theirs: Path,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: tuple[str, ...],
    message: str,
) -> None:
    given = ["--model.pretrained", str(theirs)] if "--model.pretrained" not in changes else []
    assert main([*flags, *given, *changes, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: " + message.format(theirs))
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_head_begins_a_run_too(theirs: Path, tmp_path: Path) -> None:
    loaded = pretrained.load(theirs)
    pretrained.save(replace(loaded, class_names=[]), tmp_path / "headless")
    configs = (
        parse_config([*CLIPS, "--model.pretrained", str(path)], finetuning_defaults)
        for path in (theirs, tmp_path / "headless")
    )
    whole, headless = map(pretrained_weights, configs)
    assert whole.keys() == headless.keys()
    assert all(torch.equal(headless[name], tensor) for name, tensor in whole.items())


def test_weights_that_contradict_their_settings_are_refused_before_data_is_read(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(theirs, tmp_path / "deeper")
    settings = json.loads((theirs / "config.json").read_text())
    deeper = settings | {"num_hidden_layers": 3}
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(deeper))
    flags = ["--data", str(tmp_path / "nowhere"), "--model.pretrained", str(tmp_path / "deeper")]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = "audio_spectrogram_transformer.encoder.layer.2.layernorm_before.weight"
    assert line == f"error: {tmp_path / 'deeper'} must hold the tensor {name}, which is missing"


def test_the_real_size_needs_memory_for_weights_gradients_and_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = ("--model.embed-dim", "768", "--model.num-heads", "12", "--model.depth", "12")
    config = parse_config([*base, "--training.optimizer", "adamw", "--training.ema-decay", "0"])
    needs = {"num_samples": 80000, "num_clips": 2000, "num_classes": 50}
    monkeypatch.setattr("ast_fast.settings.rules._physical_memory", lambda: int(1.2 * 2**30))
    with pytest.raises(InputError, match=r"model.depth 12 .* need at least 1\.29"):
        check_memory(config, **needs)
    monkeypatch.setattr("ast_fast.settings.rules._physical_memory", lambda: 2 * 2**30)
    check_memory(config, **needs)
