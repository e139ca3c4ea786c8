"""A model as one file in ONNX: its logits, its metadata, its weights in int8, what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ast_fast import __version__
from ast_fast.classifier import Classifier
from ast_fast.data.cache import decode_settings
from ast_fast.export import export_model, main
from ast_fast.exporting import compared, graph
from ast_fast.exporting.compared import difference, logits_of_model, sounds
from ast_fast.exporting.int8 import LARGEST, rounded
from ast_fast.features import Statistics
from ast_fast.machine.device import Placement
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import AudioConfig, Config, FeatureConfig, ModelConfig
from ast_fast_kernels import FbankConfig
from ast_fast_kernels.errors import InputError

SMALL = replace(ModelConfig(), embed_dim=32, num_heads=2, depth=2, mlp_ratio=2.0)
CONVOLUTIONS = Config(
    audio=AudioConfig(clip_seconds=0.7),
    features=FeatureConfig(target_frames=64),  # fewer than a clip has
    fbank=FbankConfig(num_mel_bins=64),
    model=replace(SMALL, stem_widths=(8, 16), conditional_position=True, conv_depth=1),
)
CLASS_TOKEN = Config(
    audio=AudioConfig(clip_seconds=0.5),
    features=FeatureConfig(target_frames=64, norm_per_sample=False),
    fbank=FbankConfig.preset("whisper", dither=0.5),
    model=replace(
        SMALL, pool="cls", patch_stride=(10, 10), position_embedding="sinusoidal", qkv_bias=False
    ),
)
STRONGEST = replace(CLASS_TOKEN, model=replace(CLASS_TOKEN.model, pool="strongest"))
DISTILLED = Config(
    audio=AudioConfig(clip_seconds=0.5),
    features=FeatureConfig(target_frames=64, norm_per_sample=False, padding="zero"),
    fbank=FbankConfig(num_mel_bins=64),
    model=replace(
        SMALL, embed_dim=128, num_heads=2, pool="distilled", token_positions=True, head_norm=True
    ),
)


def classifier_of(config: Config) -> Classifier:
    """Return a model whose every weight differs from its initial value."""
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer.of(config, 5).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    names = [f"sound {n}, ½" for n in range(5)]
    placement = Placement(torch.device("cpu"), None)
    return Classifier(model, config, names, Statistics(-6.0, 4.0), placement, multi_label=True)


def run(path: Path, waveforms: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"waveform": waveforms.astype(np.float32)})
    return logits


def noise(config: Config, batch: int) -> np.ndarray:
    shape = (batch, decode_settings(config).num_samples)
    return np.random.default_rng(batch).uniform(-0.3, 0.3, shape).astype(np.float32)


@pytest.mark.parametrize(
    "config",
    [CONVOLUTIONS, STRONGEST, CLASS_TOKEN],
    ids=["convolutions", "strongest", "class-token"],
)
def test_a_file_has_the_logits_of_its_model(config: Config, tmp_path: Path) -> None:
    classifier, path = classifier_of(config), tmp_path / "model.onnx"
    exported = export_model(classifier, path)
    assert exported.int8 is None
    assert exported.num_bytes == path.stat().st_size
    assert os.listdir(tmp_path) == ["model.onnx"]
    for batch in (1, 4):
        waveforms = noise(config, batch)
        wanted = logits_of_model(classifier, waveforms)
        logits = run(path, waveforms)
        assert logits.shape == (batch, 5)
        assert difference(logits, wanted).relative <= 1e-5


def test_the_softmax_of_a_file_s_logits_is_calibrated(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    plain = replace(classifier_of(CONVOLUTIONS), multi_label=False)
    classifier = replace(plain, temperature=0.3)
    export_model(classifier, path)
    waveforms = noise(CONVOLUTIONS, 3)
    logits = run(path, waveforms)
    assert difference(logits, logits_of_model(plain, waveforms) / np.float32(0.3)).relative <= 1e-5
    shares = torch.from_numpy(logits).softmax(dim=1)
    expected = classifier.probabilities(torch.from_numpy(waveforms))
    torch.testing.assert_close(shares, expected, rtol=1e-3, atol=1e-5)
    assert facts_of(path)["temperature"] == "0.3"
    export_model(plain, path)
    assert "temperature" not in facts_of(path)


def facts_of(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return facts


def test_int8_has_the_error_that_is_reported(tmp_path: Path) -> None:
    classifier, path = classifier_of(DISTILLED), tmp_path / "model.onnx"
    path.write_text("an earlier file")
    exported = export_model(classifier, path, int8=True)
    assert exported.float32.relative <= 1e-5
    clips = sounds(exported.sample_rate, exported.num_samples)
    assert not clips[2, exported.num_samples // 2 :].any()  # as a padded clip
    with torch.inference_mode():
        model = classifier.model
        wanted = model(classifier.features(torch.from_numpy(clips))).numpy()
    found = np.concatenate([run(path, clips[:1]), run(path, clips[1:3]), run(path, clips[3:])])
    assert exported.int8 is not None
    assert exported.int8.absolute == pytest.approx(float(np.abs(found - wanted).max()), rel=1e-3)
    assert 0 < exported.int8.relative < 0.05
    assert exported.int8.same_class == 6
    # A clip's scales are its own.
    np.testing.assert_allclose(run(path, clips)[2:4], found[2:4], rtol=0, atol=1e-6)


def test_a_file_in_int8_is_plain_onnx_with_metadata(tmp_path: Path) -> None:
    classifier, path = classifier_of(DISTILLED), tmp_path / "model.onnx"
    exported = export_model(classifier, path, int8=True)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert {(entry.domain, entry.version) for entry in proto.opset_import} == {("", 20)}
    assert [node.op_type for node in proto.graph.node].count("MatMulInteger") == 2 * 4
    kinds = {len(tensor.dims): tensor.data_type for tensor in proto.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds.values()
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(facts.pop("class_names")) == classifier.class_names == exported.class_names
    assert facts == {
        "sample_rate": "16000",
        "num_samples": "8000",
        "multi_label": "true",
        "ast_fast_version": __version__,
    }
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()  # no traces of here


@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_pairs_of_rounded_weights_do_not_saturate(width: int) -> None:
    weight = np.random.default_rng(0).standard_normal((width, 50)).astype(np.float32)
    weight[:, 0] = 0.0
    weight[:, 1] = 1.0
    steps, unit = rounded(weight)
    even = np.concatenate((steps, np.zeros((width % 2, 50), np.int8)))
    products = 255 * even.reshape(-1, 2, 50).astype(int)
    for sign in (1, -1):
        assert np.maximum(sign * products, 0).sum(axis=1).max() <= 2**15 - 1
    assert np.abs(steps).max() <= LARGEST
    assert (np.abs(steps * unit - weight) <= 0.5001 * unit).all()


def test_int8_refuses_a_model_without_a_large_projection(tmp_path: Path) -> None:
    config = replace(CLASS_TOKEN, model=replace(SMALL, depth=1))
    with pytest.raises(InputError, match=r"at least 64 wide \(model.embed_dim\)"):
        export_model(classifier_of(config), tmp_path / "model.onnx", int8=True)
    assert not os.listdir(tmp_path)


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, path = classifier_of(replace(CLASS_TOKEN, model=SMALL)), tmp_path / "model.onnx"
    path.write_text("an earlier file")

    def wrong(module: graph.WaveformModel, waveform: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = module.model(graph.model_input(waveform, *module.settings))
        return logits * (1 + 1e-4) if torch.compiler.is_exporting() else logits

    monkeypatch.setattr(compared.WaveformModel, "forward", wrong)
    with pytest.raises(InputError, match=r"within 1e-05 of the largest one, got 1\.0e-04"):
        export_model(classifier, path)
    assert path.read_text() == "an earlier file"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_model_in_another_mode_or_precision_is_refused(tmp_path: Path) -> None:
    classifier, path = classifier_of(CLASS_TOKEN), tmp_path / "model.onnx"
    model = classifier.model
    with pytest.raises(ValueError, match="eval mode, got one in training mode"):
        export_model(replace(classifier, model=model.train()), path)
    with pytest.raises(ValueError, match=r"float32 on the CPU, got \S+ in torch.float64 on cpu"):
        export_model(replace(classifier, model=model.eval().double()), path)
    other = torch.nn.Identity().eval()
    with pytest.raises(ValueError, match="AudioSpectrogramTransformer to be exported, got Identit"):
        export_model(replace(classifier, model=other), path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("model.pt", "OUT must end in .onnx, got"),
        ("none/model.onnx", "OUT must be a file in a folder to write in, got"),
        ("folder.onnx", "OUT must be a file in a folder to write in, got"),
        ("n" * 300 + "/model.onnx", "cannot be written: File name too long"),
        ("model.onnx", "CHECKPOINT must be a run's fold-N/model.safetensors, a folder with "),
    ],
)
def test_a_path_that_cannot_be_used_is_one_error(
    out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    assert main([str(tmp_path / "no-checkpoint"), str(tmp_path / out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_missing_package_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert main(["checkpoint", str(tmp_path / "model.onnx")]) == 2
    assert capsys.readouterr().err == (
        "error: an export needs onnxruntime, which is not installed: pip install 'ast-fast[onnx]'\n"
    )
