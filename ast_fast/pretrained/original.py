"""A `.pth` of the original project, YuanGongND/ast: a `state_dict` and nothing else.

What it does not say follows from its sizes, for the models that the project published.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ast_fast.features import Statistics
from ast_fast.pretrained.found import AUDIOSET_CLASSES, Found, original_sizes
from ast_fast.pretrained.labels import labels_beside
from ast_fast.pretrained.layouts import ORIGINAL
from ast_fast.pretrained.preprocessor import STATISTICS, Preprocessor
from ast_fast.pretrained.tensors import Pickled, Shapes
from ast_fast_kernels.errors import InputError

NUM_MEL_BINS = 128
HEAD_DIM = 64
"""Of DeiT's models in every size, which the project begins with."""
NORM_EPS = 1e-6
"""Of timm's vision transformer. Source: timm 0.4.5, vision_transformer.py."""
HEAD_NORM_EPS = 1e-5
"""torch's default."""
STRIDES = (10, 12, 14, 16)
FRAMES = (1024, 512, 128)
"""Of the inputs for AudioSet, ESC-50 and Speech Commands. Source: src/run.py."""


class _Cut(NamedTuple):
    """How spectrograms become patches."""

    patch_stride: tuple[int, int]
    num_frames: int


def find_in_file(
    path: Path, statistics: Statistics | None, patch_stride: tuple[int, int] | None
) -> Found:
    """Return what a `.pth` holds.

    Args:
        path: The file.
        statistics: What normalises the input, where the number of classes does not say.
        patch_stride: Steps between patches, where the number of positions does not say.
    Raises:
        InputError: It is missing or damaged, or of another model.
    """
    file = Pickled(path)
    proj = _sizes(path, file.shapes, f"{ORIGINAL.modules['patch_embedding.projection']}.weight", 4)
    embed_dim, _, height, width = proj
    num_positions = _sizes(path, file.shapes, ORIGINAL.position, 3)[1]
    num_classes = _sizes(path, file.shapes, f"{ORIGINAL.modules['head']}.weight", 2)[0]
    hidden = ORIGINAL.modules["blocks.{}.mlp.0"].format(0)
    hidden_width = _sizes(path, file.shapes, f"{hidden}.weight", 2)[0]
    if embed_dim % HEAD_DIM:
        raise InputError(
            f"{path} must be as wide as a whole number of heads of {HEAD_DIM}, got {embed_dim}"
        )
    if statistics is None and num_classes not in STATISTICS:
        known = ", ".join(map(str, STATISTICS))
        raise InputError(
            f"{path} must be of a model with {known} classes, whose normalisation is known, got "
            f"{num_classes}; give statistics"
        )
    cut = _cut_of(path, num_positions - 2, (height, width), patch_stride)
    return Found(
        path=path,
        layout=ORIGINAL,
        model=original_sizes(
            patch_size=(height, width),
            patch_stride=cut.patch_stride,
            embed_dim=embed_dim,
            num_heads=embed_dim // HEAD_DIM,
            depth=ORIGINAL.depth(file.shapes),
            hidden_width=hidden_width,
            norm_eps=NORM_EPS,
            head_norm_eps=HEAD_NORM_EPS,
        ),
        preprocessor=Preprocessor(
            num_mel_bins=NUM_MEL_BINS,
            num_frames=cut.num_frames,
            statistics=statistics or STATISTICS[num_classes],
        ),
        class_names=labels_beside(path, num_classes),
        multi_label=num_classes == AUDIOSET_CLASSES,
        shapes=file.shapes,
        read=file.read,
    )


def _sizes(path: Path, shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a tensor that tells the model's sizes."""
    shape = shapes.get(name)
    if shape is None:
        raise InputError(f"{path} must hold the tensor {name}, which is missing")
    if len(shape) != rank or 0 in shape:
        raise InputError(f"{path}: tensor {name} must have {rank} sizes above 0, got {shape}")
    return shape


def _cut_of(
    path: Path,
    num_patches: int,
    patch_size: tuple[int, int],
    patch_stride: tuple[int, int] | None,
) -> _Cut:
    """Return the steps and frames that give so many patches."""
    height, width = patch_size
    if patch_stride is not None:
        if min(patch_stride) < 1:
            raise InputError(f"patch_stride must be at least 1 along both axes, got {patch_stride}")
        rows = (NUM_MEL_BINS - height) // patch_stride[0] + 1
        if rows < 1 or num_patches < 1 or num_patches % rows:
            raise InputError(
                f"patch_stride {patch_stride} must divide {path}'s {num_patches} patches into "
                f"{rows} rows"
            )
        return _Cut(patch_stride, (num_patches // rows - 1) * patch_stride[1] + width)
    for num_frames in FRAMES:
        for stride in STRIDES:
            grid = (NUM_MEL_BINS - height) // stride + 1, (num_frames - width) // stride + 1
            if min(grid) > 0 and grid[0] * grid[1] == num_patches:
                return _Cut((stride, stride), num_frames)
    raise InputError(
        f"{path} must have as many patches as a published model (1212 for AudioSet, 600 for "
        f"ESC-50, 144 for Speech Commands), got {num_patches}; give patch_stride"
    )
