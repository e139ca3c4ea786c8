"""Files classified with a model that others trained, as a user of the command would."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ast_fast.classifier import load_any_classifier
from ast_fast.extract import ModelExtractor
from ast_fast.predict import ClassifiedFile, main
from ast_fast.pretrained.checkpoint import load
from ast_fast.pretrained.digest import digest_of_model
from ast_fast.streaming import StreamingClassifier
from ast_fast_kernels.errors import InputError

transformers = pytest.importorskip("transformers")

SECONDS = {"a-short": 0.02, "b-middle": 0.7, "c-whole": 1.295}
"""Less than a frame; a part of the model's 128 frames; all of them."""


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    folder = tmp_path / "audio"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, seconds in SECONDS.items():
        soundfile.write(
            folder / f"{name}.wav", 0.3 * rng.uniform(-1, 1, int(16e3 * seconds)), 16000
        )
    return folder


def predicted(
    capsys: pytest.CaptureFixture[str], *arguments: object, says_several: bool | None = None
) -> dict[str, dict[str, float]]:
    assert main([*map(str, arguments), "--json", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    if says_several is not None:
        note = "note: a clip can be of several classes: probabilities need not sum to 1"
        assert (note in captured.err.splitlines()) == says_several
    lines = map(json.loads, captured.out.splitlines())
    return {Path(line["file"]).stem: line["probabilities"] for line in lines}


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("multi_label", [True, False])
def test_files_get_the_probabilities_of_their_extractor_and_model(
    make: Callable[..., Any],
    write: Callable[..., Path],
    audio: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    multi_label: bool,
) -> None:
    kind = "multi" if multi_label else "single"
    names = {n: f"sound {n}" for n in range(35)}
    theirs = make(problem_type=f"{kind}_label_classification", id2label=names)
    folder = write(theirs, tmp_path / "model")
    capsys.readouterr()
    found = predicted(capsys, folder, audio, says_several=multi_label)
    assert list(found) == list(SECONDS)
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    for name, probabilities in found.items():
        waveform, _ = soundfile.read(audio / f"{name}.wav", dtype="float32")
        waveform = np.pad(waveform, (0, max(0, 400 - len(waveform))))
        features = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values
        with torch.inference_mode():
            logits = theirs(features.float()).logits[0]
        expected = logits.sigmoid() if multi_label else logits.softmax(dim=0)
        for number, label in names.items():
            assert probabilities[label] == pytest.approx(expected[number].item(), abs=1e-4)
    alone = predicted(capsys, folder, audio / "b-middle.wav", "--batch-size", "1")
    for label, probability in alone["b-middle"].items():
        assert probability == pytest.approx(found["b-middle"][label], abs=1e-6)


def test_a_pth_classifies_too_and_is_explained(
    pth: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predicted(capsys, pth, audio, "--explain", tmp_path / "maps")
    assert sum(found["c-whole"].values()) == pytest.approx(1.0)
    assert "class 34" in found["c-whole"]
    drawn = sorted(path.stem for path in (tmp_path / "maps").glob("*.png"))
    assert drawn == list(SECONDS)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_embeddings_have_a_row_for_each_classified_file(
    small: Any,
    folder: Path,
    audio: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (audio / "b-broken.wav").write_bytes(b"no audio")
    rows_at = tmp_path / "out.npy"
    arguments = [str(folder), str(audio), "--json", "--device", "cpu"]
    assert main([*arguments, "--embeddings", str(rows_at)]) == 1
    printed = [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()]
    named = list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))
    assert [row["file"] for row in named] == printed
    assert [Path(file).stem for file in printed] == list(SECONDS)
    rows = np.load(rows_at)
    assert rows.shape == (3, 128)
    assert rows.dtype == np.float32
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    waveform, _ = soundfile.read(audio / "c-whole.wav", dtype="float32")
    features = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values
    with torch.inference_mode():
        expected = small.audio_spectrogram_transformer(features.float()).pooler_output[0]
    np.testing.assert_allclose(rows[2], expected, atol=1e-3)


def test_embeddings_keep_no_audio(
    folder: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's clearest clip is a whole window: of 10,000 files, 3 GB."""
    alive: list[int] = []

    def write(path: Path, names: Any, *_: Any) -> None:
        assert len(names) == len(SECONDS)
        alive.append(sum(type(one) is ClassifiedFile for one in gc.get_objects()))

    monkeypatch.setattr("ast_fast.predict.write_embeddings", write)
    out = tmp_path / "out.npy"
    assert main([str(folder), str(audio), "--device", "cpu", "--embeddings", str(out)]) == 0
    assert alive[0] <= 1  # the last one


@pytest.mark.parametrize("name", ["out.txt", "missing/out.npy", "clips.npy", "folder.npy"])
def test_a_place_that_takes_no_embeddings_is_refused_first(
    folder: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A list of inputs is no list of rows, and may have any name."""
    (tmp_path / "clips.jsonl").write_text("{}")
    (tmp_path / "folder.jsonl").mkdir()
    assert main([str(folder), str(audio), "--embeddings", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: --embeddings must ")
    assert not captured.out
    assert (tmp_path / "clips.jsonl").read_text() == "{}"


def test_a_corpus_gets_the_probabilities_of_predict(
    folder: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predicted(capsys, folder, audio)
    extractor = ModelExtractor(folder, "probabilities", device="cpu")
    waveforms = [soundfile.read(audio / f"{name}.wav", dtype="int16")[0] for name in SECONDS]
    for name, row in zip(SECONDS, extractor(waveforms), strict=True):
        expected = [found[name][label] for label in extractor.class_names]
        np.testing.assert_allclose(row, expected, atol=1e-6)
    model = extractor.settings()["model"]
    assert model["sha256"] == digest_of_model(folder)
    assert model["multi_label"] is False


def test_what_has_no_head_gives_embeddings_alone(
    headless: Path, folder: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(headless), str(audio)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: CHECKPOINT must have a head that classifies, which {headless}")
    waveforms = [soundfile.read(audio / f"{name}.wav", dtype="int16")[0] for name in SECONDS]
    rows, expected = (
        ModelExtractor(model, "embeddings", device="cpu")(waveforms) for model in (headless, folder)
    )
    np.testing.assert_array_equal(rows, expected)
    with pytest.raises(InputError, match="must have a head that classifies"):
        ModelExtractor(headless, "logits", device="cpu")


@pytest.mark.parametrize("name", ["nowhere", "audio"])
def test_what_is_no_model_is_one_line_that_says_what_is(
    audio: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main([str(audio.parent / name), str(audio)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a folder with transformers' config.json or a .pth of the original AST, got" in line


def test_a_damaged_model_is_one_line(
    copied: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "preprocessor_config.json").unlink()
    assert main([str(copied), str(audio)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("must hold preprocessor_config.json, which is missing")


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_clips_of_another_length_have_their_positions_cut(
    folder: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By predict and extract alike, whose settings say it, so that --resume compares it."""
    found = predicted(capsys, folder, audio, "--seconds", "0.6")
    short = load_any_classifier(folder, torch.device("cpu"), seconds=0.6)
    cut = load(folder, num_frames=58)
    assert short.config.features.target_frames == 58
    assert StreamingClassifier(short).first == 0.6
    assert torch.equal(
        short.model.patch_embedding.position, cut.model.patch_embedding.position
    )  # of 12 x 5 patches
    waveforms = [soundfile.read(audio / f"{name}.wav", dtype="int16")[0] for name in SECONDS]
    extractor, whole = (
        ModelExtractor(folder, "probabilities", device="cpu", seconds=seconds)
        for seconds in (0.6, None)
    )
    for name, row in zip(SECONDS, extractor(waveforms), strict=True):
        expected = [found[name][label] for label in extractor.class_names]
        np.testing.assert_allclose(row, expected, atol=1e-6)
    clip = torch.from_numpy(waveforms[2][None, :9600])
    np.testing.assert_allclose(
        extractor([waveforms[2][:9600]])[0], short.probabilities(clip)[0], atol=1e-6
    )
    assert extractor.settings()["model"]["window_seconds"] == 0.6
    assert whole.settings() != extractor.settings()


@pytest.mark.parametrize("seconds", ["0", "nan", "-1", "1e9", "0.01"])
def test_a_length_that_no_clip_has_is_one_line(
    seconds: str, folder: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), str(audio), f"--seconds={seconds}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
