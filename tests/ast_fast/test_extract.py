"""What a trained model makes of a corpus, as a user of the command would."""

from __future__ import annotations

import json
import pickle
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
import torch

from ast_fast.classifier import Classifier, load_any_classifier, load_classifier
from ast_fast.data.audio import windows_of
from ast_fast.extract import ModelExtractor, main
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.predict import classify
from ast_fast.settings.agree import fold_identity
from ast_fast.settings.config import AudioConfig, Config, FeatureConfig, ModelConfig
from ast_fast.training import checkpoint
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig

CONFIG = Config(
    audio=AudioConfig(clip_seconds=0.1),
    features=FeatureConfig(target_frames=8),
    fbank=FbankConfig(num_mel_bins=16),
    model=ModelConfig(patch_size=(8, 8), patch_stride=(8, 8), embed_dim=4, num_heads=2, depth=1),
)
NAMES = ["dog", "cat", "sea"]
RATE = 16000
WINDOW = 1600


@pytest.fixture(autouse=True)
def _nothing_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AST_FAST_BACKEND", "reference")


def write_model(path: Path, seed: int = 0, config: Config = CONFIG) -> Path:
    torch.manual_seed(seed)
    model = AudioSpectrogramTransformer.of(config, len(NAMES))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    facts = {"run": fold_identity(config, 1, "0" * 64), "class_names": NAMES, "statistics": None}
    checkpoint.save(path, model.state_dict(), facts)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples).astype(np.float32)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Files of one window, of less, of several, of a whole number; stereo; one is no audio."""
    folder = tmp_path / "audio"
    (folder / "deeper").mkdir(parents=True)
    for index, length in enumerate((1600, 700, 4000, 3200, 1601)):
        soundfile.write(folder / f"{index}.wav", noise(length, index), RATE)
    stereo = np.stack([noise(5000, 8), noise(5000, 9)], axis=1)
    soundfile.write(folder / "deeper" / "stereo.flac", stereo, RATE)
    return folder


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (1, [0]),
        (1599, [0]),
        (1600, [0]),
        (1601, [0, 1]),
        (3200, [0, 1600]),
        (4000, [0, 1600, 2400]),
    ],
)
def test_windows_cover_a_waveform_and_the_last_ends_with_it(length: int, starts: list[int]) -> None:
    waveform = np.arange(1, length + 1, dtype=np.int16)
    expected = [waveform[start : start + WINDOW] for start in starts]
    padded = [np.pad(window, (0, WINDOW - len(window))) for window in expected]
    for samples in (waveform, waveform / np.float32(32768)):
        np.testing.assert_array_equal(list(windows_of([samples], WINDOW)), padded)


def test_embeddings_are_what_the_head_classifies(model: Path) -> None:
    waveforms = [noise(length) for length in (1600, 4000)]
    embeddings = ModelExtractor(model, "embeddings", per_window=True, device="cpu")(waveforms)
    logits = ModelExtractor(model, "logits", per_window=True, device="cpu")(waveforms)
    assert [rows.shape for rows in embeddings] == [(1, 4), (3, 4)]
    head = load_classifier(model, torch.device("cpu")).model.head
    for rows, expected in zip(embeddings, logits, strict=True):
        np.testing.assert_allclose(head(torch.from_numpy(rows)).numpy(), expected, rtol=1e-5)


def test_embeddings_have_the_width_that_the_head_reads(tmp_path: Path) -> None:
    config = replace(CONFIG, model=replace(CONFIG.model, pool="strongest"))
    model = write_model(tmp_path / "model.safetensors", config=config)
    (rows,) = ModelExtractor(model, "embeddings", device="cpu")([noise(1600)])
    assert rows.shape == (8,)


@pytest.mark.parametrize("what", ["embeddings", "probabilities", "logits"])
def test_a_row_is_the_mean_of_a_file_s_windows(model: Path, what) -> None:
    waveforms = [noise(length) for length in (700, 1600, 5000)]
    means = ModelExtractor(model, what, device="cpu")(waveforms)
    every = ModelExtractor(model, what, per_window=True, device="cpu")(waveforms)
    for mean, rows in zip(means, every, strict=True):
        assert mean.dtype == np.float32
        np.testing.assert_array_equal(mean, rows.mean(axis=0, dtype=np.float64).astype(np.float32))


def test_another_process_gives_the_same_rows_and_is_sent_no_model(model: Path) -> None:
    extractor = ModelExtractor(model, "logits", device="cpu")
    sent = pickle.dumps(extractor)
    assert len(sent) < 2000
    waveforms = [noise(4000), noise(100)]
    for ours, theirs in zip(extractor(waveforms), pickle.loads(sent)(waveforms), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_model_that_changes_during_a_run_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors")
    sent = pickle.dumps(ModelExtractor(path, "logits", device="cpu"))
    write_model(path, seed=1)
    with pytest.raises(InputError, match=r"must stay as it was when the run began, and differs"):
        pickle.loads(sent)([noise(1600)])


def test_the_length_of_a_run_s_own_model_stays(model: Path) -> None:
    with pytest.raises(InputError, match=r"^--seconds must not be given for .* whose clips have 0"):
        ModelExtractor(model, "logits", device="cpu", seconds=1.0)


def test_each_process_loads_and_packs_on_one_thread(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, before, ready = [], torch.get_num_threads(), Classifier.ready
    monkeypatch.setattr(
        Classifier, "ready", lambda self: threads.append(torch.get_num_threads()) or ready(self)
    )
    torch.set_num_threads(2)
    try:
        ModelExtractor(model, "logits", device="cpu")
    finally:
        torch.set_num_threads(before)
    assert threads == [1]


def test_a_model_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the rows of one model would have the digest of another."""
    path = write_model(tmp_path / "model.safetensors")

    def load_and_change(*given: Any, **more: Any) -> Classifier:
        classifier = load_any_classifier(*given, **more)
        write_model(path, seed=1)
        return classifier

    monkeypatch.setattr("ast_fast.extract.load_any_classifier", load_and_change)
    with pytest.raises(InputError, match=r"must stay as it was when the run began, and differs"):
        ModelExtractor(path, "logits", device="cpu")


def test_settings_name_the_model_its_classes_and_its_precision(model: Path) -> None:
    settings = ModelExtractor(model, "probabilities", device="cpu", batch_size=4).settings()
    about = settings.pop("model")
    assert settings == {
        "kind": "probabilities",
        "torch": torch.__version__,
        "per_window": False,
        "batch_size": 4,
        "device": "cpu",
        "precision": settings["precision"],
    }
    assert settings["precision"] in ("off", "bfloat16")
    assert about["class_names"] == NAMES
    assert (about["sample_rate"], about["window_seconds"]) == (RATE, 0.1)
    assert len(about["sha256"]) == 64


def extracted(out: Path) -> tuple[list[str], list[np.ndarray]]:
    """Return what a reader without our code finds: paths, and rows."""
    tables = [pyarrow.ipc.open_file(path).read_all() for path in sorted(out.glob("*.arrow"))]
    table = pyarrow.concat_tables(tables)
    return table["path"].to_pylist(), [np.array(row) for row in table["features"].to_pylist()]


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--device", "cpu", "--jobs", "1"])


def test_the_command_s_probabilities_are_those_of_predict(
    model: Path, audio: Path, tmp_path: Path
) -> None:
    assert run(model, audio, "--out", tmp_path / "out", "--what", "probabilities") == 0
    paths, rows = extracted(tmp_path / "out")
    assert len(paths) == 6
    classifier = load_classifier(model, torch.device("cpu"))
    files = classify(classifier, [audio / path for path in paths], batch_size=32)
    for file, row in zip(files, rows, strict=True):
        np.testing.assert_allclose(row, file.probabilities, rtol=1e-6)
    about = tomllib.loads((tmp_path / "out" / "extract.toml").read_text())
    assert about["features"]["model"]["class_names"] == NAMES


def test_the_command_keeps_a_row_for_each_window(model: Path, audio: Path, tmp_path: Path) -> None:
    assert run(model, audio, "--out", tmp_path / "out", "--per-window", "--batch-size", "3") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").open()]
    assert {line["path"]: line["frames"] for line in lines} == {
        **{"0.wav": 1, "1.wav": 1, "2.wav": 3, "3.wav": 2, "4.wav": 2},
        **{"deeper/stereo.flac": 4},
    }


def test_what_cannot_be_done_is_one_line(model: Path, audio: Path, tmp_path: Path, capsys) -> None:
    for arguments, message in (
        ((tmp_path / "no.safetensors", audio), "CHECKPOINT must be a run's fold-N/model."),
        ((model, audio, "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
    ):
        assert run(*arguments, "--out", tmp_path / "out") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
