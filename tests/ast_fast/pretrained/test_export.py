"""A checkpoint of transformers, exported by the command, in onnxruntime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from ast_fast import pretrained
from ast_fast.export import main

transformers = pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_onnxruntime_gives_transformers_logits_of_a_waveform(
    small: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert main([str(folder), str(out)]) == 0
    shown = capsys.readouterr().out
    samples = 127 * 160 + 400
    assert f"waveform: float32 (batch, {samples}), 1.295 s at 16000 Hz" in shown
    assert "logits: float32 (batch, 35), for a softmax" in shown
    assert re.search(r"float32: logits differ .* same top class in 6 of 6 clips", shown)
    waveforms = np.random.default_rng(0).uniform(-0.3, 0.3, (2, samples)).astype(np.float32)
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    features = extractor(list(waveforms), sampling_rate=16000, return_tensors="pt").input_values
    with torch.inference_mode():
        wanted = small(features).logits
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"waveform": waveforms})
    torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-4, atol=1e-4)


def test_another_length_has_its_positions_cut(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert main([str(folder), str(out), "--seconds", "0.6", "--int8"]) == 0
    shown = capsys.readouterr().out
    assert "waveform: float32 (batch, 9600), 0.6 s at 16000 Hz" in shown
    assert re.search(r"int8: logits differ from the model's by 0\.\d+ at most", shown)
    assert pretrained.load(folder, num_frames=58).model.num_patches == 12 * 5
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 9600]


@pytest.mark.parametrize("seconds", ["0", "nan", "-1", "1e9", "0.01"])
def test_a_length_that_no_clip_has_is_one_error(
    seconds: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), str(tmp_path / "model.onnx"), f"--seconds={seconds}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_one_error(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "model.safetensors").write_bytes(b"damaged")
    assert main([str(copied), str(tmp_path / "model.onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.safetensors" in line
