"""Where each weight is in the files of others, and how it becomes one of this package's model.

Three layouts hold the same weights: the original project's, and transformers' two generations of
names. Theirs have convolutions where ours have projections, one table for all positions, and
transformers keeps queries, keys and values apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_BLOCK = re.compile(r"blocks\.([0-9]+)\.(.+)")
_MODEL = "audio_spectrogram_transformer."
"""Before transformers' names of all weights but those of the head."""
_HEAD = ("head_norm", "head")


@dataclass(frozen=True)
class Layout:
    """Names of weights in a kind of file. `{}` stands for a block's number."""

    class_token: str
    distillation_token: str
    position: str
    """Table of all positions, those of both tokens first: shape (1, 2 + patches, embed_dim)."""
    modules: Mapping[str, str]
    """Ours → theirs, for what has a weight and a bias, by the name without either."""
    qkv: tuple[str, ...]
    """Projections to queries, keys and values: three, or one of all."""
    unused: re.Pattern[str] | None = None
    """Weights that the file may hold besides, and that no logit depends on."""

    @property
    def block_mark(self) -> re.Pattern[str]:
        """What finds a block's number in the name of its first norm."""
        start, end = map(re.escape, self.modules["blocks.{}.norm1"].split("{}"))
        return re.compile(rf"{start}([0-9]{{1,6}}){end}\.weight")

    @property
    def has_head(self) -> bool:
        """Whether the file holds what turns embeddings into logits."""
        return "head" in self.modules

    def depth(self, names: Iterable[str]) -> int:
        """Return the number of blocks in a file that has these names."""
        found = (self.block_mark.fullmatch(name) for name in names)
        return 1 + max((int(match[1]) for match in found if match), default=-1)


def _transformers(blocks: str, qkv: tuple[str, str, str], rest: Mapping[str, str]) -> Layout:
    """Return a layout of transformers, of which only the names within a block differ."""
    block = f"{_MODEL}{blocks}"
    within = {"norm1": "layernorm_before", "norm2": "layernorm_after", **rest}
    return Layout(
        class_token=f"{_MODEL}embeddings.cls_token",
        distillation_token=f"{_MODEL}embeddings.distillation_token",
        position=f"{_MODEL}embeddings.position_embeddings",
        modules={
            "patch_embedding.projection": f"{_MODEL}embeddings.patch_embeddings.projection",
            **{f"blocks.{{}}.{ours}": f"{block}.{theirs}" for ours, theirs in within.items()},
            "norm": f"{_MODEL}layernorm",
            "head_norm": "classifier.layernorm",
            "head": "classifier.dense",
        },
        qkv=tuple(f"{block}.{name}" for name in qkv),
    )


TRANSFORMERS_4 = _transformers(
    "encoder.layer.{}",
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    {
        "attention.projection": "attention.output.dense",
        "mlp.0": "intermediate.dense",
        "mlp.2": "output.dense",
    },
)
"""Names in every file that transformers writes, version 5 included."""

TRANSFORMERS_5 = _transformers(
    "layers.{}",
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    {"attention.projection": "attention.o_proj", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"},
)
"""Names of transformers 5 within a program: those of a `state_dict()`."""


def without_head(layout: Layout) -> Layout:
    """Return the layout of transformers' `ASTModel` beside one of `ASTForAudioClassification`."""

    def plain(name: str) -> str:
        return name.removeprefix(_MODEL)

    return replace(
        layout,
        class_token=plain(layout.class_token),
        distillation_token=plain(layout.distillation_token),
        position=plain(layout.position),
        modules={o: plain(name) for o, name in layout.modules.items() if o not in _HEAD},
        qkv=tuple(map(plain, layout.qkv)),
    )


def transformers_layout(names: Iterable[str]) -> Layout:
    """Return the layout of transformers that a file with these names has."""
    names = list(names)
    for layout in (TRANSFORMERS_5, without_head(TRANSFORMERS_5), without_head(TRANSFORMERS_4)):
        if layout.depth(names):
            return layout
    return TRANSFORMERS_4


ORIGINAL = Layout(
    class_token="v.cls_token",
    distillation_token="v.dist_token",
    position="v.pos_embed",
    modules={
        "patch_embedding.projection": "v.patch_embed.proj",
        "blocks.{}.norm1": "v.blocks.{}.norm1",
        "blocks.{}.attention.projection": "v.blocks.{}.attn.proj",
        "blocks.{}.norm2": "v.blocks.{}.norm2",
        "blocks.{}.mlp.0": "v.blocks.{}.mlp.fc1",
        "blocks.{}.mlp.2": "v.blocks.{}.mlp.fc2",
        "norm": "v.norm",
        "head_norm": "mlp_head.0",
        "head": "mlp_head.1",
    },
    qkv=("v.blocks.{}.attn.qkv",),
    unused=re.compile(r"v\.head(_dist)?\.(weight|bias)"),
)
"""Names of YuanGongND/ast, without the `module.` that DataParallel puts before them. Its `v.head`
and `v.head_dist` are ImageNet's, which nothing uses."""


def to_theirs(
    weights: Mapping[str, Tensor], layout: Layout, patch_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the weights of a model as a file of this layout holds them.

    On tensors of device meta this gives the names and shapes that such a file must have.

    Args:
        weights: The model's `state_dict`, with both tokens, their positions and the head's norm.
            Where the layout has no head, the model's is left out.
        layout: The file's.
        patch_size: Height and width of a patch.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in ("class_token", "distillation_token"):
            theirs[getattr(layout, name)] = tensor.reshape(1, 1, -1)
        elif name == "token_position":
            whole = torch.cat((tensor, weights["patch_embedding.position"]))
            theirs[layout.position] = whole.unsqueeze(0)
        elif name == "patch_embedding.projection.weight":
            key = layout.modules["patch_embedding.projection"]
            theirs[f"{key}.weight"] = tensor.reshape(len(tensor), 1, *patch_size)
        elif name != "patch_embedding.position" and _is_there(name, layout):
            theirs.update(_module_to_theirs(name, tensor, layout))
    return theirs


def _is_there(name: str, layout: Layout) -> bool:
    """Return whether the layout has a weight that is the model's head's, or one of another part."""
    return layout.has_head or name.rpartition(".")[0] not in _HEAD


def _module_to_theirs(name: str, tensor: Tensor, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    module, _, kind = name.rpartition(".")
    block = _BLOCK.fullmatch(module)
    number = "" if block is None else block[1]
    general = module if block is None else f"blocks.{{}}.{block[2]}"
    if general == "blocks.{}.attention.qkv":
        parts = tensor.chunk(len(layout.qkv))
        for theirs, part in zip(layout.qkv, parts, strict=True):
            yield f"{theirs.format(number)}.{kind}", part
    else:
        yield f"{layout.modules[general].format(number)}.{kind}", tensor


def to_ours(
    theirs: Mapping[str, Tensor], layout: Layout, names: Iterable[str]
) -> dict[str, Tensor]:
    """Return a model's weights from the tensors of a file; the inverse of `to_theirs`.

    Args:
        theirs: Tensors of the shapes that `to_theirs` gives.
        layout: The file's.
        names: Names of the model's weights; those of a head that the layout lacks are left out.
    """
    position = theirs[layout.position].squeeze(0)
    tokens, patches = position[:2], position[2:]
    ours: dict[str, Tensor] = {}
    for name in names:
        if not _is_there(name, layout):
            continue
        match name:
            case "class_token" | "distillation_token":
                ours[name] = theirs[getattr(layout, name)].flatten()
            case "token_position":
                ours[name] = tokens
            case "patch_embedding.position":
                ours[name] = patches
            case "patch_embedding.projection.weight":
                key = layout.modules["patch_embedding.projection"]
                ours[name] = theirs[f"{key}.weight"].flatten(1)
            case _:
                ours[name] = _module_to_ours(name, theirs, layout)
    return ours


def _module_to_ours(name: str, theirs: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the weight or bias of a module."""
    module, _, kind = name.rpartition(".")
    block = _BLOCK.fullmatch(module)
    number = "" if block is None else block[1]
    general = module if block is None else f"blocks.{{}}.{block[2]}"
    if general == "blocks.{}.attention.qkv":
        return torch.cat([theirs[f"{part.format(number)}.{kind}"] for part in layout.qkv])
    return theirs[f"{layout.modules[general].format(number)}.{kind}"]
