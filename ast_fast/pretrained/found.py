"""What a checkpoint says of itself, before its tensors are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ast_fast.pretrained.layouts import Layout
from ast_fast.pretrained.preprocessor import Preprocessor
from ast_fast.pretrained.tensors import Shapes
from ast_fast.settings.config import ModelConfig

AUDIOSET_CLASSES = 527


@dataclass(frozen=True)
class Found:
    """A checkpoint, whichever its layout."""

    path: Path
    layout: Layout
    model: ModelConfig
    preprocessor: Preprocessor
    class_names: list[str]
    """None where the layout has no head."""
    multi_label: bool
    shapes: Shapes
    """Of all tensors, by their names in the file."""
    read: Callable[[], dict[str, Tensor]]
    """Reads them, as float32."""


def original_sizes(
    *,
    patch_size: tuple[int, int],
    patch_stride: tuple[int, int],
    embed_dim: int,
    num_heads: int,
    depth: int,
    hidden_width: int,
    norm_eps: float,
    head_norm_eps: float,
    qkv_bias: bool = True,
    dropout: float = 0.0,
) -> ModelConfig:
    """Return the settings of the original AST's model in these sizes."""
    ratio = hidden_width / embed_dim
    if int(embed_dim * ratio) != hidden_width:  # rounded down
        ratio = (hidden_width + 0.5) / embed_dim
    return ModelConfig(
        patch_size=patch_size,
        patch_stride=patch_stride,
        embed_dim=embed_dim,
        num_heads=num_heads,
        depth=depth,
        mlp_ratio=ratio,
        dropout=dropout,
        pool="distilled",
        token_positions=True,
        qkv_bias=qkv_bias,
        norm_eps=norm_eps,
        head_norm=True,
        head_norm_eps=head_norm_eps,
    )
