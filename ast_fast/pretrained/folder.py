"""A folder as transformers writes it: config.json, preprocessor_config.json, safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ast_fast.pretrained.documents import Document
from ast_fast.pretrained.found import AUDIOSET_CLASSES, Found, original_sizes
from ast_fast.pretrained.labels import labels_of
from ast_fast.pretrained.layouts import transformers_layout
from ast_fast.pretrained.preprocessor import PREPROCESSOR, Preprocessor
from ast_fast.pretrained.tensors import Safetensors
from ast_fast.settings.config import ModelConfig

CONFIG = "config.json"
MODEL_TYPE = "audio-spectrogram-transformer"
KINDS = {"multi_label_classification": True, "single_label_classification": False}
"""transformers' problem types, and whether a clip can be of several classes."""


def folder_of(path: Path) -> Path:
    """Return the folder of a model.safetensors that has a config.json beside it; else the path."""
    is_inside = path.suffix == ".safetensors" and (path.parent / CONFIG).is_file()
    return path.parent if is_inside else path


def find_in_folder(folder: Path) -> Found:
    """Return what a folder holds.

    Raises:
        InputError: A file is missing or damaged, or describes another model.
    """
    document = Document(folder / CONFIG)
    for key, default, only in (("model_type", None, MODEL_TYPE), ("hidden_act", "gelu", "gelu")):
        if document.values.get(key, default) != only:
            raise document.wrong(key, f"must be {only}")
    preprocessor = Preprocessor.read(folder / PREPROCESSOR)
    for key, default_size, size in (
        ("max_length", 1024, preprocessor.num_frames),
        ("num_mel_bins", 128, preprocessor.num_mel_bins),
    ):
        if document.integer(key, default_size) != size:
            raise document.wrong(key, f"must be that of {PREPROCESSOR}, {size}")
    files = Safetensors(folder)
    layout = transformers_layout(files.shapes)
    class_names = labels_of(document) if layout.has_head else []
    return Found(
        path=folder,
        layout=layout,
        model=_model_in(document),
        preprocessor=preprocessor,
        class_names=class_names,
        multi_label=_is_multi_label(document, len(class_names)),
        shapes=files.shapes,
        read=files.read,
    )


def _is_multi_label(document: Document, num_classes: int) -> bool:
    """Return what config.json says; AudioSet's checkpoints say nothing, and are."""
    said: Any = document.values.get("problem_type")
    if said is None:
        return num_classes == AUDIOSET_CLASSES
    if not isinstance(said, str) or said not in KINDS:
        raise document.wrong("problem_type", f"must be one of {', '.join(KINDS)}")
    return KINDS[said]


def _model_in(document: Document) -> ModelConfig:
    """Return the sizes in config.json; what is not there has transformers' default."""
    width = document.integer("hidden_size", 768)
    num_heads = document.integer("num_attention_heads", 12)
    if width != num_heads * document.integer("head_dim", width // num_heads, least=0):
        rule = f"must be that of one head of {num_heads} in hidden_size {width}"
        raise document.wrong("head_dim", rule)
    patch = document.integer("patch_size", 16)
    eps = document.number("layer_norm_eps", 1e-12, above=0)
    return original_sizes(
        patch_size=(patch, patch),
        patch_stride=(
            document.integer("frequency_stride", 10),
            document.integer("time_stride", 10),
        ),
        embed_dim=width,
        num_heads=num_heads,
        depth=document.integer("num_hidden_layers", 12),
        hidden_width=document.integer("intermediate_size", 3072),
        norm_eps=eps,
        head_norm_eps=eps,
        qkv_bias=document.flag("qkv_bias", True),
        dropout=document.number("hidden_dropout_prob", 0.0, above=-1),
    )
