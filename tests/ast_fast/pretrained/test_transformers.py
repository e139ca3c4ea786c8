"""transformers' folders, read and written: the live models give the same logits and gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ast_fast import pretrained
from ast_fast.features import Statistics, model_input
from ast_fast.pretrained import Pretrained
from ast_fast.pretrained.layouts import TRANSFORMERS_5, to_ours
from ast_fast_kernels.errors import InputError

transformers = pytest.importorskip("transformers")

WITHIN = 1e-5
"""Of logits of about 1: float32's rounding through twelve blocks, which add in another order."""
GRADIENTS_WITHIN = 1e-5
"""Of a gradient, by its norm relative to theirs."""


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def logits_of(theirs: Any, features: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = theirs(features).logits
    return logits


def ours(loaded: Pretrained, features: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = loaded.model(features)
    return logits


def check_gradients(loaded: Pretrained, theirs: Any, features: Tensor) -> None:
    """Compare every gradient of a loss; queries, keys and values as the one matrix that ours is.

    By themselves the gradients of the keys' biases are rounding: softmax makes them 0.
    """
    for model in (loaded.model, theirs):
        model.zero_grad()
        output = model(features)
        getattr(output, "logits", output).square().sum().backward()
    there = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = to_ours(there, TRANSFORMERS_5, loaded.model.state_dict())
    for name, parameter in loaded.model.named_parameters():
        assert parameter.grad is not None
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < GRADIENTS_WITHIN, name


def test_logits_and_gradients_are_theirs(small: Any, folder: Path) -> None:
    loaded = pretrained.load(folder)
    features = images(3, 128, 128)
    torch.testing.assert_close(
        ours(loaded, features), logits_of(small, features), atol=WITHIN, rtol=0
    )
    check_gradients(loaded, small, features)
    with torch.inference_mode():
        pooled = small.audio_spectrogram_transformer(features).pooler_output
        torch.testing.assert_close(loaded.model.embed(features), pooled, atol=WITHIN, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"qkv_bias": False},
        {"frequency_stride": 16, "time_stride": 16},
        {"frequency_stride": 7, "time_stride": 12, "num_mel_bins": 40, "max_length": 101},
        {"layer_norm_eps": 1e-3, "patch_size": 8, "num_labels": 2, "intermediate_size": 321},
    ],
    ids=["no-bias", "tiled", "other-sizes", "two-classes"],
)
def test_every_setting_counts(
    changes: dict[str, Any],
    make: Callable[..., Any],
    write: Callable[..., Path],
    tmp_path: Path,
) -> None:
    theirs = make(hidden_size=64, num_hidden_layers=1, **changes)
    write(theirs, tmp_path)
    loaded = pretrained.load(tmp_path)
    features = images(2, theirs.config.max_length, theirs.config.num_mel_bins)
    expected = logits_of(theirs, features)
    torch.testing.assert_close(ours(loaded, features), expected, atol=WITHIN, rtol=0)
    pretrained.save(loaded, tmp_path / "saved")
    again = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits_of(again, features), expected)


def test_names_of_version_5_and_several_files_are_the_same_weights(
    small: Any, folder: Path, copied: Path, write_version_5: Callable[..., Path], tmp_path: Path
) -> None:
    weights = pretrained.load(folder).model.state_dict()
    write_version_5(small, copied)
    small.save_pretrained(tmp_path / "parts", max_shard_size="300KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
    settings = "preprocessor_config.json"
    (tmp_path / "parts" / settings).write_bytes((folder / settings).read_bytes())
    for place in (copied, tmp_path / "parts", folder / "model.safetensors"):
        same = pretrained.load(place).model.state_dict()
        assert all(torch.equal(same[name], tensor) for name, tensor in weights.items())


def test_a_model_without_a_head_gives_embeddings(
    small: Any, folder: Path, headless: Path, tmp_path: Path
) -> None:
    loaded, whole = pretrained.load(headless), pretrained.load(folder)
    assert loaded.class_names == []
    assert loaded.config == whole.config
    features = images(2, 128, 128)
    with torch.inference_mode():
        embeddings = loaded.model.embed(features)
        assert torch.equal(embeddings, whole.model.embed(features))
    assert ours(loaded, features).shape == (2, 0)
    weights, theirs = loaded.model.state_dict(), small.state_dict()
    renamed = {name: tensor for name, tensor in theirs.items() if "classifier" not in name}
    save_file(
        {name.partition(".")[2]: tensor.contiguous() for name, tensor in renamed.items()},
        headless.parent / "version-5.safetensors",
    )  # a state_dict's own names
    pretrained.save(loaded, tmp_path / "saved")
    again = transformers.ASTModel.from_pretrained(tmp_path / "saved").eval()
    with torch.inference_mode():
        pooled = small.audio_spectrogram_transformer(features).pooler_output
        assert torch.equal(again(features).pooler_output, pooled)
    (tmp_path / "saved" / "model.safetensors").write_bytes(
        (headless.parent / "version-5.safetensors").read_bytes()
    )
    same = pretrained.load(tmp_path / "saved").model.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in weights.items())


def test_half_precision_becomes_float32(
    make: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    theirs = make(hidden_size=64, num_hidden_layers=1).to(torch.bfloat16)
    loaded = pretrained.load(write(theirs, tmp_path))
    features = images(1, 128, 128)
    expected = logits_of(theirs.float(), features)
    torch.testing.assert_close(ours(loaded, features), expected, atol=WITHIN, rtol=0)


def test_labels_and_settings_come_along(
    make: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    names = [f"sound {n}" for n in range(12)]
    theirs = make(
        hidden_size=64, num_hidden_layers=1, num_labels=12,
        id2label=dict(enumerate(names)), problem_type="multi_label_classification",
    )  # fmt: skip
    loaded = pretrained.load(write(theirs, tmp_path, sampling_rate=8000, mean=-5.5, std=3.25))
    assert loaded.class_names == names
    assert loaded.multi_label
    assert loaded.statistics == Statistics(-5.5, 3.25)
    assert loaded.config.fbank.sample_frequency == 8000
    assert loaded.config.audio.clip_seconds == (127 * 80 + 200) / 8000
    assert not loaded.model.training
    pretrained.save(loaded, tmp_path / "saved")
    again = pretrained.load(tmp_path / "saved")
    assert again.class_names == names
    assert (again.config, again.statistics, again.multi_label) == (
        loaded.config, loaded.statistics, True,
    )  # fmt: skip
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "saved")
    assert (extractor.mean, extractor.std, extractor.sampling_rate) == (-5.5, 3.25, 8000)
    config = transformers.ASTConfig.from_pretrained(tmp_path / "saved")
    assert config.id2label == dict(enumerate(names))


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("do_normalize", [True, False])
def test_a_waveform_gives_the_logits_of_their_extractor_and_model(
    small: Any, write: Callable[..., Path], tmp_path: Path, do_normalize: bool
) -> None:
    """Shorter than the model's input, so padded; and longer, so cut.

    Features differ by what two correct float32 filterbanks do (tests/kernels/test_parity.py).
    """
    scale = 1 / (2 * 4.5689974) if do_normalize else 1.0
    loaded = pretrained.load(write(small, tmp_path, do_normalize=do_normalize))
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    for num_samples in (11_000, 24_000):
        waveform = (0.3 * rng.standard_normal(num_samples)).astype(np.float32)
        theirs = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values
        batch = torch.from_numpy(waveform)[None]
        features = model_input(batch, loaded.config, loaded.statistics)
        assert features.shape == (1, 128, 128)
        assert (features - theirs).abs().max() < scale * 4e-3  # of quiet bins next to loud ones
        assert (features - theirs).abs().mean() < scale * 1e-5
        expected = logits_of(small, theirs.float())
        torch.testing.assert_close(ours(loaded, features), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "mean", "token_positions": False}, "model.pool must be distilled, got mean"),
        (
            {"head_norm_eps": 1e-5},
            r"model.norm_eps \(1e-12\), as .* got 1e-05; give layer_norm_eps",
        ),
        ({"patch_size": (16, 8)}, r"model.patch_size must be square, got \(16, 8\)"),
    ],
    ids=["pool", "epsilon", "patch"],
)
def test_what_transformers_has_not_is_not_written(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    loaded = pretrained.load(folder)
    other = replace(loaded.config, model=replace(loaded.config.model, **change))
    with pytest.raises(InputError, match=message):
        pretrained.save(replace(loaded, config=other), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_folder_that_holds_something_is_not_written_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="folder must be new or empty"):
        pretrained.save(pretrained.load(folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_the_base_model_of_audioset(
    make: Callable[..., Any],
    write: Callable[..., Path],
    original_weights: Callable[[Any], dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    """87 million weights: logits of 10 s; gradients on 1.3 s, by positions cut from the middle."""
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    sizes |= {"intermediate_size": 3072, "max_length": 1024, "num_labels": 527}
    theirs = make(**sizes)
    loaded = pretrained.load(write(theirs, tmp_path))
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 86_594_063
    assert loaded.multi_label
    features = images(1, 1024, 128)
    expected = logits_of(theirs, features)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(ours(loaded, features), expected, atol=WITHIN, rtol=0)

    torch.save(original_weights(theirs), tmp_path / "audioset.pth")
    original = pretrained.load(tmp_path / "audioset.pth").model.state_dict()
    weights = loaded.model.state_dict()
    assert original.keys() == weights.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in weights.items())

    short = pretrained.load(tmp_path, num_frames=128)
    embeddings = theirs.audio_spectrogram_transformer.embeddings
    table = embeddings.position_embeddings.detach()
    grid = table[:, 2:].unflatten(1, (12, 101))[:, :, 44:56].flatten(1, 2)
    embeddings.position_embeddings = torch.nn.Parameter(torch.cat((table[:, :2], grid), dim=1))
    check_gradients(short, theirs, images(1, 128, 128))


def test_config_json_is_what_transformers_writes(folder: Path, tmp_path: Path) -> None:
    """But for what depends on its version, and the kind of problem, which ours always says."""
    pretrained.save(pretrained.load(folder), tmp_path / "saved")
    for name in ("config.json", "preprocessor_config.json"):
        written = json.loads((tmp_path / "saved" / name).read_text())
        theirs = json.loads((folder / name).read_text())
        theirs.pop("transformers_version", None)
        assert written.pop("problem_type", None) in (None, "single_label_classification")
        assert written == theirs
