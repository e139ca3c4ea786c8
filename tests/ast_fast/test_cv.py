import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file

from ast_fast import cv, predict
from ast_fast.classifier import load_classifier
from ast_fast.cv import main
from ast_fast.data import synth
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.run import folder, kernels
from ast_fast.run.endings import exhausted_resource
from ast_fast.training import checkpoint
from ast_fast.training.calibration import at_temperature, fit_temperature
from ast_fast.training.progress import TrainingProgress
from ast_fast.training.results import EpochRow
from ast_fast_kernels._cpu import simd
from ast_fast_kernels._torch.onednn import IS_FASTER

CLASSES = ("low hum", "high hum", "hiss")
NUM_FOLDS = 2
CLIPS_PER_CLASS = 4
SAMPLE_RATE = 16000

TINY = [
    *(
        "--audio.clip-seconds",
        "0.5",
        "--fbank.num-mel-bins",
        "32",
        "--features.target-frames",
        "48",
    ),
    *("--model.embed-dim", "16", "--model.num-heads", "2", "--model.depth", "1"),
    *("--augment.freq-mask", "4", "--augment.time-mask", "8", "--threads", "1"),
    *("--training.batch-size", "4", "--training.warmup-epochs", "1", "--training.ema-decay", "0.5"),
    *("--training.epochs", "20", "--training.learning-rate", "3e-3"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three easy classes in two folds."""
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    """Give other tests their threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(data: Path, cache: Path) -> list[str]:
    """The flags that every run here has; the reference spares compiling."""
    return ["--data", str(data), "--cache", str(cache), "--backend", "reference", *TINY]


@pytest.fixture(scope="module")
def finished(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main([*base, "--tensorboard", "--out", str(out)]) == 0
    return out


def write_data(root: Path, *, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    times = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    (root / "audio").mkdir()
    (root / "meta").mkdir()
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for fold in range(1, NUM_FOLDS + 1):
            for target, name in enumerate(CLASSES):
                for take in range(CLIPS_PER_CLASS):
                    filename = f"{fold}-{target}-{take}.wav"
                    noise = rng.normal(size=len(times))
                    tone = np.sin(
                        2 * np.pi * (300, 3000, 0)[target] * rng.uniform(0.9, 1.1) * times
                    )
                    samples = 0.3 * tone + (0.2 if name == "hiss" else 0.01) * noise
                    soundfile.write(root / "audio" / filename, samples, SAMPLE_RATE)
                    writer.writerow([filename, fold, target, name, target < 2, 0, "A"])


def changed(arguments: list[str], *given: str) -> list[str]:
    """Return the arguments with the flags that are given in the place of their own."""
    flags = {token for token in given if token.startswith("--")}
    kept, drop = [], False
    for token in arguments:
        if token.startswith("--"):
            drop = token in flags
        if not drop:
            kept.append(token)
    return [*kept, *given]


def read_report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same_results(out: Path, expected: Path) -> None:
    assert read_report(out)["accuracy"] == read_report(expected)["accuracy"]
    for fold in range(1, NUM_FOLDS + 1):
        here, there = (folder / f"fold-{fold}" for folder in (out, expected))
        name = "predictions.csv"
        assert (here / name).read_bytes() == (there / name).read_bytes()
        weights, wanted = (load_file(folder / "model.safetensors") for folder in (here, there))
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def run_until_checkpoint(arguments: list[str], out: Path) -> subprocess.Popen[str]:
    """Start a run in a process of its own and return when its first checkpoint is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ast_fast.cv", *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "fold-1" / "checkpoint.safetensors").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint within a minute"
        time.sleep(0.002)
    return process


def test_a_run_writes_its_folder(finished: Path) -> None:
    per_fold = ["history.csv", "manifest.json", "measured.json"]
    per_fold += ["model.safetensors", "predictions.csv"]
    expected = ["config.toml", "report.html", "report.json", "run.json"]
    expected += [f"fold-{fold}/{name}" for fold in (1, 2) for name in per_fold]
    curves = [name for name in files_under(finished) if "tfevents" in name]
    assert [Path(name).parent.name for name in curves] == ["fold-1", "fold-2"]
    others = [name for name in files_under(finished) if name not in curves]
    assert [name for name in others if name != ".lock"] == sorted(expected)


def test_a_run_learns_easy_sounds(base: list[str], tmp_path: Path) -> None:
    longer = changed(base, "--training.epochs", "40", "--augment.patch-drop", "0")
    assert main([*longer, "--out", str(tmp_path / "run")]) == 0
    assert read_report(tmp_path / "run")["accuracy"]["mean"] > 0.8


def test_predictions_list_every_test_clip_with_its_probabilities(finished: Path) -> None:
    report = read_report(finished)
    for fold in (1, 2):
        with (finished / f"fold-{fold}" / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(CLASSES) * CLIPS_PER_CLASS
        assert {row["fold"] for row in rows} == {str(fold)}
        for row in rows:
            assert sum(float(row[name]) for name in CLASSES) == pytest.approx(1, abs=1e-5)
        right = np.mean([row["target"] == row["predicted"] for row in rows])
        assert report["accuracy"]["per_fold"][str(fold)] == right


def test_a_model_carries_the_temperature_that_the_report_has(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = read_report(finished)
    for fold, other in (("1", "2"), ("2", "1")):
        row = report["folds"][fold]
        at = finished / f"fold-{fold}"
        model = load_classifier(at / "model.safetensors", torch.device("cpu"))
        assert model.temperature == row["temperature"]
        shares, labels, _ = of_test(finished / f"fold-{other}")
        assert row["temperature"] == fit_temperature(shares, labels)
        shares, labels, files = of_test(at)
        calibrated = at_temperature(shares, row["temperature"])
        losses = -np.log(calibrated[np.arange(len(labels)), labels])
        assert row["calibrated_loss"] == pytest.approx(losses.mean())
        clip = Path(report["data"]["path"]) / "audio" / files[0]
        command = [str(at / "model.safetensors"), str(clip), "--json", "--device", "cpu"]
        assert predict.main(command) == 0
        found = json.loads(capsys.readouterr().out)["probabilities"]
        np.testing.assert_allclose([found[name] for name in CLASSES], calibrated[0], atol=1e-4)


def of_test(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Return the probabilities, labels and files of a fold's predictions."""
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    shares = np.array([row[4:] for row in rows], np.float32)
    return shares, np.array([int(row[2]) for row in rows]), [row[0] for row in rows]


def test_run_json_says_what_ran_where(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["command"].startswith("python -m ast_fast.cv --data ")
    assert {"python", "torch", "numpy"} <= run["versions"].keys()
    assert {"cpu", "cores", "memory_gib", "gpu"} <= run["machine"].keys()
    assert run["threads"] == 1
    operations = ["mix", "fbank", "normalise", "layer_norm", "attention", "linear", "gelu"]
    assert run["kernels"] == dict.fromkeys(operations, "reference")
    assert run["started"] <= run["ended"]
    assert run["peak_memory_gib"] > 0


@pytest.fixture(scope="module")
def three_folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of the synthesised data set: four batches of 32 train on two of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth, "NUM_FOLDS", 3)
        return synth.synthesise(tmp_path_factory.mktemp("data"), console=Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["defaults", "esc50"])
def test_a_run_stays_below_two_gib(three_folds: Path, tmp_path: Path, recipe: str) -> None:
    """With batches and clips of the real sizes; what a data set maps comes beside."""
    path = Path(__file__).parents[2] / "recipes" / "esc50.toml"
    flags = ["--config", str(path)] if recipe == "esc50" else []
    flags += ["--data", str(three_folds), "--training.epochs", "1", "--folds", "1"]
    flags += ["--threads", "2", "--device", "cpu"]
    flags += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "ast_fast.cv", *flags]
    subprocess.run(command, check=True, capture_output=True)
    peak = json.loads((tmp_path / "run" / "run.json").read_text())["peak_memory_gib"]
    assert 0.3 < peak < 2


def test_config_toml_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    config = ["--config", str(finished / "config.toml")]
    assert "out" not in tomllib.loads((finished / "config.toml").read_text())
    assert main([*config, "--out", str(out), "--folds", "1"]) == 0
    name = "fold-1/predictions.csv"
    assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_a_killed_run_resumes_to_the_same_bits(
    base: list[str], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = run_until_checkpoint(base, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()
    assert not (out / "fold-1" / "model.safetensors").exists(), "it was killed too late"
    assert main(["--resume", "--out", str(out)]) == 0
    same_results(out, finished)
    report = read_report(out)
    assert len(report["run"]["resumed"]) == 1
    timing = report["timing"]
    stages = timing["stages"]
    steps = sum(
        float(row["seconds"])
        for fold in (1, 2)
        for row in csv.DictReader((out / f"fold-{fold}" / "history.csv").open())
    )  # of both processes
    assert timing["epochs"] == 40
    assert stages["features"] + stages["forward"] + stages["backward"] > 0.9 * steps
    assert timing["total_seconds"] > steps


@pytest.mark.parametrize(
    ("number", "word", "code"),
    [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)],
    ids=["ctrl-c", "sigterm"],
)
def test_an_interrupted_run_says_how_to_resume(
    number: signal.Signals, word: str, code: int, base: list[str], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a folder"
    process = run_until_checkpoint(base, out)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    command = f"python -m ast_fast.cv --resume --out '{out}'"
    assert errors.strip() == f"{word}; finished epochs are kept; resume with: {command}"
    assert not [name for name in files_under(out) if "partial" in name]
    assert main(["--resume", "--out", str(out)]) == 0
    same_results(out, finished)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_finalizer_loses_ends_the_run_all_the_same(
    number: signal.Signals,
    code: int,
    base: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lose(self: TrainingProgress, row: EpochRow) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)

    monkeypatch.setattr(TrainingProgress, "on_epoch", lose)
    before = signal.getsignal(number)
    assert main([*base, "--out", str(tmp_path / "run")]) == code
    assert signal.getsignal(number) is before
    assert (tmp_path / "run" / "fold-1" / "checkpoint.safetensors").is_file()


def test_an_interrupt_before_the_run_leaves_nothing(
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cv, "open_dataset", interrupt)
    assert main([*base, "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == (
        "\ninterrupted; no run was started, and nothing is left behind\n"
    )
    assert not any(tmp_path.iterdir())


def test_resuming_a_finished_run_rewrites_the_report_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = read_report(out)
    (out / "report.html").unlink()
    assert main(["--resume", "--out", str(out)]) == 0
    assert "finished earlier" in capsys.readouterr().out
    assert (out / "report.html").is_file()
    after = read_report(out)
    unchanged = ("folds", "classes", "confusion", "kernels", "data", "calibration", "wrong_clips")
    assert {key: after[key] for key in unchanged} == {key: before[key] for key in unchanged}
    same_results(out, finished)
    for fold in ("fold-1", "fold-2"):
        for name in ("model.safetensors", "manifest.json"):
            assert (out / fold / name).read_bytes() == (finished / fold / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "difference"),
    [
        (["--seed", "1"], "seed was 0 and is now 1"),
        (["--training.epochs", "21"], "training.epochs was 20 and is now 21"),
        (["--folds", "1"], "folds was [] and is now [1]"),
        (["--backend", "auto"], "backend was reference and is now auto"),
        (["--threads", "2"], "threads was 1 and is now 2"),
    ],
    ids=["seed", "epochs", "folds", "backend", "threads"],
)
def test_a_resume_with_other_settings_is_refused(
    given: list[str],
    difference: str,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {name: (finished / name).stat().st_mtime_ns for name in files_under(finished)}
    assert main(["--resume", "--out", str(finished), *given]) == 2
    assert capsys.readouterr().err == (
        f"error: --resume must keep the settings of the run in {finished}: {difference}; "
        "leave it out, or start a new run with another --out\n"
    )
    assert before == {name: (finished / name).stat().st_mtime_ns for name in files_under(finished)}


def test_a_resume_with_other_audio_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    write_data(tmp_path / "other", seed=1)
    arguments = ["--resume", "--out", str(finished), "--data", str(tmp_path / "other")]
    assert main(arguments) == 2
    message = f"error: --resume must keep the facts of the run in {finished}: data_key was"
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("finished_folds", [1, 2], ids=["unfinished", "finished"])
def test_a_resume_with_other_folds_is_refused(
    finished: Path,
    finished_folds: int,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(finished, out)
    if finished_folds == 1:
        shutil.rmtree(out / "fold-2")
    shutil.copytree(data, other)
    table = other / "meta" / "esc50.csv"
    text = table.read_text()
    for old, new in (("1-0-0.wav,1,", "1-0-0.wav,2,"), ("2-0-0.wav,2,", "2-0-0.wav,1,")):
        assert old in text
        text = text.replace(old, new)
    table.write_text(text)
    assert main(["--resume", "--out", str(out), "--data", str(other)]) == 2
    assert f"must keep the facts of the run in {out}: data_key was" in capsys.readouterr().err


def test_a_resume_from_a_moved_data_set_goes_on(finished: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.copytree(data, tmp_path / "moved")
    assert main(["--resume", "--out", str(out), "--data", str(tmp_path / "moved")]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--trainin.epochs 3", "unknown flag --trainin.epochs; did you mean --training.epochs?"),
        ("--training.epochs 0", "training.epochs must be at least 1, got 0"),
        ("--threads -1", "threads must be from 0 to 1024, got -1"),
        ("--threads 2000000000", "threads must be from 0 to 1024, got 2000000000"),
        ("--audio.workers -1", "audio.workers must be from 0 to 1024, got -1"),
        (
            "--audio.clip-seconds 1e12",
            "audio.clip-seconds must be from one sample to 3600 seconds, got 1e+12",
        ),
        (
            "--fbank.sample-frequency 1e12",
            "fbank.sample-frequency must be a whole number of Hz from 100 to 1000000, got 1e+12",
        ),
        (
            "--features.target-frames 47",
            "features.target_frames must be at least the 48 frames of a clip "
            "(audio.clip_seconds 0.5 at fbank.sample_frequency 16000), got 47",
        ),
        ("--data {long}", "--data {long} cannot be read: File name too long"),
        ("--out {long}", "--out {long} cannot be used: File name too long"),
        ("--out {long} --resume", "--out {long} cannot be read: File name too long"),
        ("--folds 7", "--folds must name folds of {table} (1, 2), got 7"),
        ("--folds 1 1", "--folds must name each fold once, got 1 twice"),
        (
            "--model.embed-dim 100 --model.num-heads 3",
            "model.embed_dim must be divisible by model.num_heads (3), got 100",
        ),
        (
            "--model.patch-size 33 16",
            "model.patch_size must fit into the spectrogram (32 mel bins by 48 frames), got 33 16",
        ),
        (
            "--model.patch-size 16 49",
            "model.patch_size must fit into the spectrogram (32 mel bins by 48 frames), got 16 49",
        ),
        ("--data {missing}", "--data {missing} does not exist; --download fetches ESC-50"),
        ("--resume", "--out must hold a run to resume, got {out}, which has no config.toml"),
    ],
    ids=lambda text: text.split(" ")[0].lstrip("-") if text.startswith("--") else "",
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    given: str,
    message: str,
    base: list[str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {
        "out": tmp_path / "deep" / "run",
        "missing": tmp_path / "missing",
        "long": tmp_path / ("long" * 99),
        "table": data / "meta" / "esc50.csv",
    }
    arguments = changed([*base, "--out", str(names["out"])], *given.format(**names).split())
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message.format(**names)}\n"
    assert captured.out == ""
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "most"),
    [
        (
            ["--model.embed-dim", "2147483647", "--model.num-heads", "1"],
            "model.embed_dim 2147483647, model.depth 1 and model.mlp_ratio 4 need",
        ),
        (["--model.depth", "2147483647"], "model.embed_dim 16, model.depth 2147483647 and"),
        (
            ["--model.stem-widths", "8", "2147483647"],
            "model.stem_widths 8 2147483647 need",
        ),
        (
            ["--model.conv-depth", "2147483647"],
            "model.conv_depth 2147483647 and model.conv_mlp_ratio 2 need",
        ),
        (["--model.mlp-ratio", "1e12"], "model.depth 1 and model.mlp_ratio 1e+12 need"),
        (
            ["--features.target-frames", "2147483647"],
            "training.batch_size 4, features.target_frames 2147483647 and fbank.num_mel_bins 32",
        ),
        (["--fbank.num-mel-bins", "2147483647"], "fbank.num_mel_bins 2147483647 and"),
        (["--fbank.n-fft", "2147483646"], "fbank.num_mel_bins 32 and an FFT of 2147483646 samples"),
    ],
    ids=["width", "depth", "stem", "convolutions", "mlp", "frames", "bins", "fft"],
)
def test_settings_beyond_the_machine_s_memory_are_named_and_leave_nothing(
    given: list[str], most: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(changed([*base, "--out", str(tmp_path / "run")], *given)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert most in error
    assert re.search(r"need at least [0-9.e+]+ GiB of memory; this machine has [0-9.]+\n$", error)
    assert not any(tmp_path.iterdir())


def test_what_no_clip_can_use_is_only_checked_for_its_own_size(
    base: list[str], tmp_path: Path
) -> None:
    huge = str(2**31 - 1)
    given = ["--model.patch-stride", huge, huge, "--training.batch-size", huge]
    given += ["--training.epochs", "1", "--folds", "1", "--out", str(tmp_path / "run")]
    assert main(changed(base, *given)) == 0


def test_a_model_that_cannot_be_allocated_leaves_nothing(
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 B")

    monkeypatch.setattr(AudioSpectrogramTransformer, "__init__", fail)
    assert main([*base, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        "error: out of memory: lower training.batch_size or the model's size; "
        "no run was started, and nothing is left behind\n"
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--backend", "triton"],
            "--backend triton needs a CUDA device, got cpu; use --backend numba on the CPU",
        ),
        (
            ["--device", "cuda"],
            "device must be one that this machine has, got cuda, which torch does not find; "
            "use --device cpu",
        ),
    ],
    ids=["triton", "cuda"],
)
def test_a_machine_without_cuda_says_so(
    given: list[str],
    message: str,
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(changed([*base, "--out", str(tmp_path / "run")], *given)) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not any(tmp_path.iterdir())


def test_an_out_that_holds_a_run_is_refused(
    base: list[str], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*base, "--out", str(finished)]) == 2
    assert capsys.readouterr().err == (
        f"error: --out {finished} holds another run; name a new folder, or resume it with "
        "--resume\n"
    )


def test_an_out_that_holds_other_files_is_refused(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert main([*base, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: --out must be a new or empty folder, got {tmp_path}, which holds other files\n"
    )
    assert files_under(tmp_path) == ["thesis.txt"]


def test_an_out_below_a_file_is_refused(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_text("")
    assert main([*base, "--out", str(path)]) == 2
    assert main([*base, "--out", str(path / "run")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: --out must be a folder, got {path}, which is a file",
        f"error: --out {path / 'run'} cannot be made: {path} is a file",
    ]


def test_an_out_that_is_a_broken_link_is_refused(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link"
    link.symlink_to("gone")
    assert main([*base, "--out", str(link)]) == 2
    assert main([*base, "--out", str(link / "run")]) == 2
    reason = f"cannot be made: {link} is a link to gone, which does not exist"
    assert capsys.readouterr().err.splitlines() == [
        f"error: --out {link} {reason}",
        f"error: --out {link / 'run'} {reason}",
    ]


def test_a_folder_that_is_not_utf8_is_refused(
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = tmp_path / "\udcff"
    odd.mkdir()
    monkeypatch.chdir(odd)
    assert main(base) == 2
    assert capsys.readouterr().err.startswith("error: --out must be a path in UTF-8, got ")
    assert not any(odd.iterdir())


@pytest.mark.parametrize(
    "names", [[".lock", "run.json"], [".config.0123abcd.partial.toml"]], ids=["run", "partial"]
)
def test_an_out_left_by_a_run_killed_before_it_began_is_taken(
    names: list[str], base: list[str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    given = ["--folds", "1", "--training.epochs", "1", "--out", str(tmp_path)]
    assert main(changed(base, *given)) == 0
    assert not [name for name in files_under(tmp_path) if "partial" in name]


def test_of_two_runs_begun_in_the_same_second_each_has_a_folder(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        folder, "default_outs", lambda: iter([Path("runs/now"), Path("runs/now-2")])
    )
    arguments = changed(base, "--folds", "1", "--training.epochs", "1")
    open_dataset = cv.open_dataset

    def be_overtaken(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(cv, "open_dataset", open_dataset)
        assert main(arguments) == 0
        return open_dataset(*given, **named)

    monkeypatch.setattr(cv, "open_dataset", be_overtaken)
    assert main(arguments) == 0
    assert (tmp_path / "runs/now/report.html").is_file()
    assert (tmp_path / "runs/now-2/report.html").is_file()


@pytest.mark.parametrize("below", [[], ["deep", "run"]], ids=["there", "new"])
def test_training_clips_of_silence_leave_the_folder_as_it_was(
    below: list[str], base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "silent", tmp_path / "out"
    root.mkdir()
    out.mkdir()
    write_data(root)
    for path in (root / "audio").iterdir():
        soundfile.write(path, np.zeros(SAMPLE_RATE // 2), SAMPLE_RATE)
    given = ["--data", str(root), "--out", str(out.joinpath(*below))]
    assert main(changed(base, *given, "--features.no-norm-per-sample")) == 2
    assert "the 12 training clips hold only silence" in capsys.readouterr().err
    assert out.is_dir() is not bool(below) or not any(out.iterdir())


def test_a_loss_that_is_no_number_at_once_leaves_nothing(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--training.learning-rate", "1e12", "--training.clip-grad-norm", "0"]
    given += ["--training.warmup-epochs", "0", "--training.batch-size", "2"]
    assert main(changed([*base, "--out", str(tmp_path / "run")], *given)) == 2
    assert "the loss of fold 1 became" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_resumed_run_keeps_what_an_error_finds(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "fold-1" / "predictions.csv").write_text("")
    before = files_under(out)
    assert main(["--resume", "--out", str(out)]) == 2
    assert "to train the fold again" in capsys.readouterr().err
    assert files_under(out) == before


def test_compiling_is_in_no_stage_but_other(
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log_mel = kernels.log_mel

    def slow_once(*given: Any, **named: Any) -> torch.Tensor:
        monkeypatch.setattr(kernels, "log_mel", log_mel)
        time.sleep(1.5)
        return log_mel(*given, **named)

    monkeypatch.setattr(kernels, "log_mel", slow_once)
    given = ["--folds", "1", "--training.epochs", "1", "--out", str(tmp_path / "run")]
    assert main(changed(base, *given)) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^warmed up kernels and model in \d+\.\d s$", printed, re.MULTILINE)
    timing = read_report(tmp_path / "run")["timing"]
    assert timing["stages"]["other"] >= 1.5
    assert timing["total_seconds"] - timing["stages"]["other"] < 1.5


def test_a_fold_that_is_trained_again_is_measured_again(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    measured = json.loads((out / "fold-1" / "measured.json").read_text())
    (out / "fold-1" / "measured.json").write_text(json.dumps(measured | {"seconds": 12345.0}))
    for name in ("manifest.json", "model.safetensors"):
        (out / "fold-1" / name).unlink()
    assert main(["--resume", "--out", str(out)]) == 0
    assert read_report(out)["timing"]["total_seconds"] < 12345


def test_where_files_come_from_may_change(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    changes = ["--audio.download-url", "http://localhost", "--audio.workers", "1"]
    assert main(["--resume", "--out", str(out), *changes]) == 0


@pytest.mark.parametrize("content", ["5", "[" * 100000], ids=["number", "nested"])
def test_a_damaged_run_json_is_named(
    content: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "run.json").write_text(content)
    assert main(["--resume", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {out / 'run.json'} ")


def test_an_output_that_lacks_a_character_gets_another(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii", write_through=True))
    assert main(["--resume", "--out", str(tmp_path / "run")]) == 0
    assert b" % ? " in output.getvalue()


def test_help_is_printed_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii", write_through=True))
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert b"--training.epochs" in output.getvalue()


def test_help_whose_reader_leaves_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["--help"]) == 0


def test_a_run_goes_on_when_its_reader_leaves(base: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "ast_fast.cv", *base, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("data ")
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert errors == "standard output was closed; the run continues without it\n"
    assert (out / "report.html").is_file()


def test_an_out_in_use_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    program = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(out / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        assert main(["--resume", "--out", str(out)]) == 2
    finally:
        holder.communicate()
    assert capsys.readouterr().err == f"error: --out {out} is in use by another process\n"


def test_of_two_runs_begun_at_once_one_goes_on(
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    arguments = changed(base, "--folds", "1", "--training.epochs", "1", "--out", str(out))
    open_dataset = cv.open_dataset

    def be_overtaken(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(cv, "open_dataset", open_dataset)
        assert main(arguments) == 0
        return open_dataset(*given, **named)

    monkeypatch.setattr(cv, "open_dataset", be_overtaken)
    assert main(arguments) == 2
    assert "holds another run" in capsys.readouterr().err
    assert (out / "report.html").is_file()
    assert main(["--resume", "--out", str(out)]) == 0


def test_a_resume_without_run_json_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "run.json").write_text("{}")
    assert main(["--resume", "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"error: {out / 'run.json'} must have data_key, which is missing\n"
    )


def test_a_disk_that_fills_up_while_training_leaves_a_run_to_resume(
    base: list[str],
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"

    saved: list[Path] = []

    def fill(path: Path, *arguments: Any) -> None:
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        saved.append(path)
        save(path, *arguments)

    save = checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", fill)
        assert main([*base, "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        "error: the disk is full: free some space; finished epochs are kept; "
        f"resume with: python -m ast_fast.cv --resume --out {out}\n"
    )
    assert main(["--resume", "--out", str(out)]) == 0
    same_results(out, finished)


def test_a_disk_that_is_full_from_the_start_leaves_nothing(
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "config_to_toml", fill)
    assert main([*base, "--out", str(tmp_path / "deep" / "run")]) == 2
    assert capsys.readouterr().err == (
        "error: the disk is full: free some space; no run was started, and nothing is left behind\n"
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "the disk is full: free some space"),
        (MemoryError(), "out of memory: lower training.batch_size or the model's size"),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"
            ),
            "out of memory: lower training.batch_size or the model's size",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "out of memory: lower training.batch_size or the model's size",
        ),
        (OSError(5, "Input/output error"), None),
        (RuntimeError("a defect"), None),
    ],
    ids=["disk", "memory", "torch-memory", "gpu-memory", "broken-disk", "defect"],
)
def test_exhausted_resources_are_told_from_defects(error: Exception, reason: str | None) -> None:
    assert exhausted_resource(error) == reason


def test_a_defect_is_not_hidden(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(cv, "open_dataset", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main([*base, "--out", str(tmp_path / "run")])


def test_the_default_kernels_run_and_are_compared(
    data: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = [
        "--data",
        str(data),
        "--cache",
        str(cache),
        *changed(TINY, "--training.epochs", "1"),
    ]
    assert main([*arguments, "--folds", "2", "--out", str(out)]) == 0
    report = read_report(out)
    assert report["accuracy"]["per_fold"].keys() == {"2"}
    assert report["accuracy"]["std"] == 0
    for op, backend in (("fbank", "numba"), ("attention", "sdpa")):
        kernel = report["kernels"][op]
        assert kernel["backend"] == kernel["per_fold"]["2"]["backend"] == backend
        assert 0 <= kernel["max_abs_error"] < 1e-2
        assert kernel["speed_ratio"] > 0
    shown = capsys.readouterr().out
    assert f"data     {data}" in shown
    assert "FBANK by numba, attention by sdpa" in shown
    assert f"report   {out / 'report.html'}" in shown


@pytest.mark.parametrize("backend", ["auto", "numba"])
@pytest.mark.parametrize(("heads", "attention"), [("1", "numba"), ("2", "sdpa")])
def test_attention_runs_by_numba_where_its_head_dim_fits(
    base: list[str], tmp_path: Path, backend: str, heads: str, attention: str
) -> None:
    out = tmp_path / "run"
    given = ["--backend", backend, "--model.num-heads", heads, "--training.amp", "off"]  # 16 wide
    arguments = changed(base, *given, "--training.epochs", "1", "--folds", "1")
    assert main([*arguments, "--out", str(out)]) == 0
    run = json.loads((out / "run.json").read_text())
    linear = "onednn" if IS_FASTER else "reference"
    assert run["kernels"] == {
        **dict.fromkeys(("mix", "fbank", "normalise"), "numba"),
        **dict.fromkeys(("linear", "gelu"), linear),
        "attention": attention,
        "layer_norm": "reference",
    }
    kernel = read_report(out)["kernels"]["attention"]
    assert kernel["backend"] == kernel["per_fold"]["1"]["backend"] == attention
    assert 0 <= kernel["max_abs_error"] < 1e-5
    assert kernel["speed_ratio"] > 0


def test_attention_of_a_run_in_bfloat16_is_by_numba(
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simd, "has_bfloat16_matrices", lambda: False)
    out = tmp_path / "run"
    given = ["--backend", "auto", "--model.num-heads", "1", "--training.amp", "bfloat16"]
    arguments = changed(base, *given, "--training.epochs", "1", "--folds", "1")
    assert main([*arguments, "--out", str(out)]) == 0
    assert json.loads((out / "run.json").read_text())["kernels"]["attention"] == "numba"
    assert "attention by numba" in capsys.readouterr().out
    kernel = read_report(out)["kernels"]["attention"]
    assert kernel["backend"] == kernel["per_fold"]["1"]["backend"] == "numba"
    assert 0 <= kernel["max_abs_error"] < 0.05
    assert kernel["speed_ratio"] > 0


@pytest.mark.parametrize(("width", "backend"), [("8", "numba"), ("6", "reference")])
def test_a_stem_runs_by_numba_where_its_widths_fit(
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    width: str,
    backend: str,
) -> None:
    out = tmp_path / "run"
    given = ["--backend", "auto", "--model.stem-widths", width]
    arguments = changed(base, *given, "--training.epochs", "1", "--folds", "1")
    assert main([*arguments, "--out", str(out)]) == 0
    assert json.loads((out / "run.json").read_text())["kernels"]["stem"] == backend
    kernel = read_report(out)["kernels"]["stem"]
    assert kernel["backend"] == kernel["per_fold"]["1"]["backend"] == backend
    is_compared = kernel["speed_ratio"] is not None
    assert is_compared == (backend == "numba")
    assert ("Stem, forward + backward" in (out / "report.html").read_text()) == is_compared
    assert re.search(r"fold +accuracy .* stem +error", capsys.readouterr().out)


def test_times_of_a_fold_that_was_not_measured_are_those_of_its_training(
    finished: Path, tmp_path: Path
) -> None:
    """As after a kill between a fold's end and the comparison of its kernels."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = read_report(out)["timing"]
    (out / "fold-2" / "measured.json").unlink()
    assert main(["--resume", "--out", str(out)]) == 0
    after = read_report(out)["timing"]
    assert after["stages"]["forward"] >= 0.9 * before["stages"]["forward"]
    assert after["stages"]["backward"] == before["stages"]["backward"]
