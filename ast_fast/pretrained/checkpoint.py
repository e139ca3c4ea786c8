"""A model that others trained, read from their files into this package's model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ast_fast.data.cache import decode_settings
from ast_fast.features import Statistics
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.pretrained.folder import CONFIG, find_in_folder, folder_of
from ast_fast.pretrained.found import Found
from ast_fast.pretrained.labels import given_labels
from ast_fast.pretrained.layouts import to_ours, to_theirs
from ast_fast.pretrained.original import find_in_file
from ast_fast.pretrained.positions import resized
from ast_fast.pretrained.tensors import Shapes, check_finite, check_shapes
from ast_fast.settings.config import Config
from ast_fast.settings.rules import check_prediction
from ast_fast_kernels.errors import InputError

POSITION = "patch_embedding.position"


@dataclass(frozen=True)
class Pretrained:
    """A model on the CPU, in eval mode, with what it is used with."""

    model: AudioSpectrogramTransformer
    config: Config
    """Settings of its sizes, and of the features and clips that it takes."""
    class_names: list[str]
    """None of a model without a head: it gives embeddings, and logits of no class."""
    statistics: Statistics
    """What normalises its input: (x − mean) / (2 · std)."""
    multi_label: bool
    """Whether a clip can be of several classes: probabilities are sigmoids, not a softmax."""


def load(
    path: str | Path,
    *,
    num_frames: int | None = None,
    num_mel_bins: int | None = None,
    labels: Path | Sequence[str] | None = None,
    statistics: Statistics | None = None,
    patch_stride: tuple[int, int] | None = None,
) -> Pretrained:
    """Return a pre-trained AST from transformers' files or from the original project's.

    A folder is transformers': config.json, preprocessor_config.json and model.safetensors (or
    several files with an index), with the names of its version 4 or 5. An `ASTModel`, without a
    head, is read too. A file is a `.pth` of YuanGongND/ast; nothing in it is executed. Nothing is
    downloaded. A `.pth` says neither labels, frames nor normalisation: these follow from its sizes,
    for the models that the project published. Weights in half precision become float32.

    Args:
        path: The folder or the file.
        num_frames: Frames of the model's input, 100 for a second; None keeps those that it was
            trained with. Its position embeddings are cut or interpolated to fit.
        num_mel_bins: Mel bins of its input; None keeps those that it was trained with.
        labels: Names of the classes, or a csv of them with AudioSet's columns (index,
            display_name) or ESC-50's (target, category). None takes config.json's; for a `.pth`,
            those of class_labels_indices.csv beside it, else numbers.
        statistics: What normalises the input; None takes the checkpoint's.
        patch_stride: Steps between patches (mel bins, frames) of a `.pth` whose number of
            positions is that of no published model.
    Raises:
        InputError: A file is missing or damaged, holds another model, or one that needs more than
            this machine has.
    Source: Gong, Chung, Glass, "AST: Audio Spectrogram Transformer" (Interspeech 2021).
    """
    found = find(Path(path), statistics=statistics, patch_stride=patch_stride)
    return load_found(
        found,
        num_frames=num_frames,
        num_mel_bins=num_mel_bins,
        labels=labels,
        statistics=statistics,
    )


def load_found(
    found: Found,
    *,
    num_frames: int | None = None,
    num_mel_bins: int | None = None,
    labels: Path | Sequence[str] | None = None,
    statistics: Statistics | None = None,
) -> Pretrained:
    """Return the model of a checkpoint that `find` has looked at; arguments are those of `load`."""
    class_names = found.class_names
    if labels is not None:
        class_names = given_labels(labels, len(class_names))
    own = found.preprocessor
    wanted = replace(
        own,
        num_frames=own.num_frames if num_frames is None else num_frames,
        num_mel_bins=own.num_mel_bins if num_mel_bins is None else num_mel_bins,
    )
    trained_as, config = own.config(found.model), wanted.config(found.model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # of no head
        weights = _weights(found, check_found(found))
        _check_size(config, len(class_names))
        weights[POSITION] = resized(weights[POSITION], _grid(trained_as), _grid(config))
        model = AudioSpectrogramTransformer.from_weights(config, len(class_names), weights).eval()
    return Pretrained(model, config, class_names, statistics or own.statistics, found.multi_label)


def find(
    path: Path,
    *,
    statistics: Statistics | None = None,
    patch_stride: tuple[int, int] | None = None,
) -> Found:
    """Return what a checkpoint says of itself; the arguments are those of `load`."""
    path = folder_of(path)
    if path.suffix == ".safetensors":
        raise InputError(f"{path} must have {CONFIG} beside it, which is missing")
    if not path.is_dir():
        return find_in_file(path, statistics, patch_stride)
    if patch_stride is None:
        return find_in_folder(path)
    raise InputError(f"patch_stride must not be given for {path}, whose {CONFIG} says it")


def _grid(config: Config) -> tuple[int, int]:
    return config.model.patch_grid(config.fbank.num_mel_bins, config.features.target_frames)


def check_found(found: Found) -> Shapes:
    """Check that a checkpoint holds the tensors of its model, and none that would go unused.

    Returns:
        The shapes of the model's weights, by our names.
    Raises:
        InputError: It does not, or the model needs more than this machine has.
    """
    config = found.preprocessor.config(found.model)
    _check_size(config, len(found.class_names))
    shapes = AudioSpectrogramTransformer.weight_shapes(config, len(found.class_names))
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    theirs = to_theirs(meta, found.layout, found.model.patch_size)
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    check_shapes(found.path, found.shapes, expected, found.layout)
    return shapes


def _check_size(config: Config, num_classes: int) -> None:
    check_prediction(config, decode_settings(config).num_samples, num_classes=num_classes)


def _weights(found: Found, shapes: Shapes) -> dict[str, Tensor]:
    """Return the checked weights of the model that the checkpoint was trained as.

    Those of a head that it lacks are fresh: no rows, and a norm that changes nothing.
    """
    tensors = found.read()
    check_finite(found.path, tensors)
    ours = to_ours(tensors, found.layout, shapes)
    for name in shapes.keys() - ours.keys():
        ours[name] = torch.full(shapes[name], float(name == "head_norm.weight"))
    return ours
