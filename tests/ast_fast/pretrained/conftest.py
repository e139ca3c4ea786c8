"""Models of transformers with random weights, in the layouts that checkpoints have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

transformers = pytest.importorskip("transformers")

NUM_CLASSES = 35
"""Speech Commands', whose models have 128 frames and 144 patches."""

Changes = dict[str, Any]


def build(**changes: object) -> Any:
    """Return a small model whose every weight differs from its initial value."""
    sizes: dict[str, Any] = {
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 320, "max_length": 128, "num_labels": NUM_CLASSES, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ASTForAudioClassification(transformers.ASTConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def write_folder(model: Any, folder: Path, **preprocessor: object) -> Path:
    """Write a model by transformers itself, with its extractor's settings."""
    config = model.config
    sizes = {"max_length": config.max_length, "num_mel_bins": config.num_mel_bins}
    model.save_pretrained(folder)
    transformers.ASTFeatureExtractor(**sizes | preprocessor).save_pretrained(folder)
    return folder


def rename_to_version_5(model: Any, folder: Path) -> Path:
    """Put a state_dict's own names into a folder that transformers wrote."""
    path = folder / "model.safetensors"
    path.unlink()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


MODULES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    **{
        f"layers.{number}.{theirs}": f"blocks.{number}.{name}"
        for number in range(12)
        for theirs, name in (
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.o_proj", "attn.proj"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        )
    },
}


def as_original(model: Any) -> dict[str, torch.Tensor]:
    """Return a model's weights as the original project names and joins them."""
    theirs = model.state_dict()
    ast = {
        name.removeprefix("audio_spectrogram_transformer."): tensor
        for name, tensor in theirs.items()
    }
    found = {
        "v.cls_token": ast["embeddings.cls_token"],
        "v.dist_token": ast["embeddings.distillation_token"],
        "v.pos_embed": ast["embeddings.position_embeddings"],
        "v.head.weight": torch.ones(1000, model.config.hidden_size),  # ImageNet's
        "v.head_dist.bias": torch.ones(1000),
    }
    for kind in ("weight", "bias"):
        for name, theirs_name in (("0", "layernorm"), ("1", "dense")):
            found[f"mlp_head.{name}.{kind}"] = ast[f"classifier.{theirs_name}.{kind}"]
        for module, name in MODULES.items():
            if f"{module}.{kind}" in ast:
                found[f"v.{name}.{kind}"] = ast[f"{module}.{kind}"]
        for number in range(model.config.num_hidden_layers):
            parts = [ast[f"layers.{number}.attention.{p}_proj.{kind}"] for p in "qkv"]
            found[f"v.blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    return {f"module.{name}": tensor.clone() for name, tensor in found.items()}


@pytest.fixture(scope="session")
def small() -> Any:
    return build()


@pytest.fixture(scope="session")
def folder(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(small, tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="session")
def headless(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the small model's ASTModel, which has no head."""
    folder = tmp_path_factory.mktemp("headless")
    small.audio_spectrogram_transformer.save_pretrained(folder)
    transformers.ASTFeatureExtractor(max_length=128).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A folder to damage."""
    to = tmp_path / "copied"
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.fixture(scope="session")
def pth(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "best_audio_model.pth"
    torch.save(as_original(small), path)
    return path


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    return build


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    return write_folder


@pytest.fixture(scope="session")
def write_version_5() -> Callable[[Any, Path], Path]:
    return rename_to_version_5


@pytest.fixture(scope="session")
def original_weights() -> Callable[[Any], dict[str, torch.Tensor]]:
    return as_original
