"""A trained model made ready for inference on a CPU: packed weights, a few clips at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ast_fast.model import AudioSpectrogramTransformer, Linear
from ast_fast_kernels.linear.packed import linear_packed, pack, packs_faster_here

ROWS_OF_A_THREAD = 768
"""Tokens that a thread has in a turn: as fast as more, and what lies between is small."""

LEAST_VALUES = 2**18
"""Smallest weight to pack, in values: the head's product is a few rows."""


class InferenceModel(nn.Module):
    """A model that gives logits and embeddings, but neither gradients nor its weights.

    Clips are taken a few at a time, so memory does not grow with the batch.
    """

    def __init__(self, model: AudioSpectrogramTransformer) -> None:
        """Take a model on the CPU, in float32 and in eval mode, which is of no more use itself.

        Its large weights are packed by oneDNN where that multiplies faster than torch's own
        product: not copied, so they cannot be trained or saved from here on.

        Args:
            model: The trained model.
        Raises:
            ValueError: It is in training mode, on another device or in another precision.
        """
        super().__init__()
        if model.training:
            raise ValueError("model must be in eval mode, got one in training mode")
        for name, parameter in model.named_parameters():
            if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
                raise ValueError(
                    f"model must be in float32 on the CPU, got {name} in {parameter.dtype} on "
                    f"{parameter.device}"
                )
        if packs_faster_here():
            _pack(model, model.num_patches + model.num_class_tokens)
        self.model = model.requires_grad_(False)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of every clip, as the model's own `forward`."""
        logits: Tensor = self.model.classify(self.embed(features))
        return logits

    @torch.no_grad()
    def embed(self, features: Tensor) -> Tensor:
        """Return the embedding of every clip, as the model's own `embed`."""
        rows = torch.get_num_threads() * ROWS_OF_A_THREAD
        clips = max(rows // (self.model.num_patches + self.model.num_class_tokens), 1)
        starts = range(0, max(len(features), 1), clips)
        return torch.cat([self.model.embed(features[first : first + clips]) for first in starts])


class PackedLinear(nn.Module):
    """A projection by oneDNN, of a weight in the order that it reads."""

    def __init__(self, projection: Linear, rows: int) -> None:
        """Pack a projection's weight for so many rows of tokens."""
        super().__init__()
        bias: Tensor | None = projection.bias
        self.packed = pack(projection.weight, rows)
        self.bias = None if bias is None else bias.detach().contiguous()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the projected tokens: (..., in_features) to (..., out_features).

        Raises:
            RuntimeError: Autocast is on, which cannot lower packed weights.
        """
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("packed weights are of float32; call the model without autocast")
        return linear_packed(tokens, self.packed, self.bias)

    def gelu(self, tokens: Tensor) -> Tensor:
        """Return GELU of the projected tokens; torch's own pass is faster than oneDNN's."""
        hidden: Tensor = torch.ops.aten.gelu_(self(tokens))
        return hidden


def _pack(model: nn.Module, rows: int) -> None:
    """Put packed projections into a model; each weight is freed before the next is packed."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Linear) and child.weight.numel() >= LEAST_VALUES:
                setattr(module, name, PackedLinear(child, rows))
