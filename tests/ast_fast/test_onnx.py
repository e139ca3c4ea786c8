"""A whole model, waveforms to logits, runs in onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import ModelConfig
from ast_fast_kernels import Fbank, normalise, use_backend
from ast_fast_kernels.compat.onnx import translations

SMALL = replace(
    ModelConfig(), embed_dim=32, num_heads=2, depth=1, stem_widths=(8, 16),
    conditional_position=True, conv_depth=1,
)  # fmt: skip


class WaveformsToLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fbank = Fbank()
        self.model = AudioSpectrogramTransformer(
            SMALL, num_mel_bins=128, num_frames=128, num_classes=5
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        silence = self.fbank.config.log_silence
        features = normalise(self.fbank(waveforms), 128, log_silence=silence, std_floor=0.01)
        logits: Tensor = self.model(features)
        return logits


def test_logits_of_an_exported_model_are_the_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = WaveformsToLogits().eval(), tmp_path / "model.onnx"
    with use_backend("reference"):
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 20000),),
            dynamo=True,
            opset_version=20,
            custom_translation_table=translations(),
            dynamic_shapes=({0: "batch", 1: "samples"},),
            verbose=False,
        )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for shape in [(1, 20000), (3, 30001)]:  # padded, and cut
        waveforms = torch.randn(shape) * 0.1
        with torch.no_grad():
            wanted = model(waveforms)
        (logits,) = session.run(None, {name: waveforms.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-4, atol=1e-5)
