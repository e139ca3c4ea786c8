"""A model as a folder that transformers loads: its settings, those of features, safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialise

from ast_fast.pretrained.checkpoint import Pretrained
from ast_fast.pretrained.folder import CONFIG, KINDS, MODEL_TYPE
from ast_fast.pretrained.layouts import TRANSFORMERS_4, to_theirs, without_head
from ast_fast.pretrained.preprocessor import PREPROCESSOR, Preprocessor
from ast_fast.pretrained.tensors import MODEL
from ast_fast.settings.config import Config
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import filled_folder


def save(
    pretrained: Pretrained, folder: str | Path, *, layer_norm_eps: float | None = None
) -> None:
    """Write a model as transformers does, so that `from_pretrained` loads it from the folder.

    One without classes is written as an `ASTModel`, which has no head.
    All of it appears, or nothing does. transformers has one epsilon for all norms; the original
    project's models have another in the head, so for these the one to write must be given (1e-12
    is that of the published folders).

    Args:
        pretrained: What `load` returned, trained further or not.
        folder: A folder that is new or empty.
        layer_norm_eps: Epsilon to write; None writes the model's own, which must be one.
    Raises:
        InputError: The folder holds something or cannot be written, or transformers has no such
            model.
        ValueError: The model was made ready for inference, and has not all its weights.
    """
    folder = Path(folder)
    config = pretrained.config
    preprocessor = Preprocessor(
        sample_rate=int(config.fbank.sample_frequency),
        num_mel_bins=config.fbank.num_mel_bins,
        num_frames=config.features.target_frames,
        statistics=pretrained.statistics,
    )
    _check_known(config, preprocessor)
    if layer_norm_eps is None:
        layer_norm_eps = _one_eps(config)
    documents = {
        CONFIG: _config_json(pretrained, preprocessor, layer_norm_eps),
        PREPROCESSOR: preprocessor.to_json(),
    }
    layout = TRANSFORMERS_4 if pretrained.class_names else without_head(TRANSFORMERS_4)
    weights = to_theirs(pretrained.model.state_dict(), layout, config.model.patch_size)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"folder must be new or empty, got {folder}")
        with filled_folder(folder) as inside:
            for name, document in documents.items():
                text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
                (inside / name).write_text(f"{text}\n", encoding="utf-8")
            (inside / MODEL).write_bytes(serialise(plain, metadata={"format": "pt"}))
    except OSError as error:
        raise InputError(f"folder {folder} cannot be written: {error.strerror}") from error


def _check_known(config: Config, preprocessor: Preprocessor) -> None:
    """Raise if transformers has no model, or no features, of these settings."""
    model, features = config.model, config.features
    for name, value, only in (
        ("model.pool", model.pool, "distilled"),
        ("model.token_positions", model.token_positions, True),
        ("model.head_norm", model.head_norm, True),
        ("model.position_embedding", model.position_embedding, "learned"),
        ("model.conditional_position", model.conditional_position, False),
        ("model.conv_depth", model.conv_depth, 0),
        ("model.stem_widths", model.stem_widths, ()),
        ("features.norm_per_sample", features.norm_per_sample, False),
        ("features.padding", features.padding, "zero"),
        ("fbank", config.fbank, preprocessor.fbank),
    ):
        if value != only:
            shown = "the AST's filterbank" if name == "fbank" else f"{only}, got {value}"
            raise InputError(f"{name} must be {shown}: transformers has no other AST")
    if model.patch_size[0] != model.patch_size[1]:
        raise InputError(f"model.patch_size must be square, got {model.patch_size}")


def _one_eps(config: Config) -> float:
    """Return the epsilon of all norms."""
    model = config.model
    if model.norm_eps != model.head_norm_eps:
        raise InputError(
            f"model.head_norm_eps must be model.norm_eps ({model.norm_eps:g}), as transformers has "
            f"one for both, got {model.head_norm_eps:g}; give layer_norm_eps to write another"
        )
    return model.norm_eps


def _config_json(
    pretrained: Pretrained, preprocessor: Preprocessor, layer_norm_eps: float
) -> dict[str, Any]:
    """Return the content of config.json."""
    model, names = pretrained.config.model, pretrained.class_names
    kinds = {is_multi_label: kind for kind, is_multi_label in KINDS.items()}
    head: dict[str, Any] = {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": kinds[pretrained.multi_label],
    }
    return {
        "architectures": ["ASTForAudioClassification" if names else "ASTModel"],
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
        "frequency_stride": model.patch_stride[0],
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.dropout,
        "hidden_size": model.embed_dim,
        "initializer_range": 0.02,
        "intermediate_size": model.hidden_width,
        "layer_norm_eps": layer_norm_eps,
        "max_length": preprocessor.num_frames,
        "model_type": MODEL_TYPE,
        "num_attention_heads": model.num_heads,
        "num_hidden_layers": model.depth,
        "num_mel_bins": preprocessor.num_mel_bins,
        "patch_size": model.patch_size[0],
        "qkv_bias": model.qkv_bias,
        "time_stride": model.patch_stride[1],
    } | (head if names else {})
