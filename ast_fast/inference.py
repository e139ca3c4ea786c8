"""A trained model made ready for inference on a CPU: packed weights, a few clips at a time."""

from __future__ import annotations

from typing import NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ast_fast.machine.device import multiplies_bfloat16
from ast_fast.model import AudioSpectrogramTransformer, Linear
from ast_fast_kernels.cores import on_one_thread_if_forked
from ast_fast_kernels.linear.packed import linear_packed, pack, packs_faster_here

ROWS_OF_A_THREAD = 768
"""Tokens that a thread has in a turn: as fast as more, and what lies between is small."""

LEAST_VALUES = 2**18
"""Smallest weight to pack in float32, in values: smaller ones take little of a large model."""


NONE_TO_GIVE = "one made ready for a CPU (InferenceModel, Classifier.ready) has none to give"


class InferenceModel(nn.Module):
    """A model that gives logits and embeddings, but neither gradients nor its weights.

    Clips are taken a few at a time, so memory does not grow with the batch. Its precision is its
    own: autocast around it changes nothing.
    """

    def __init__(
        self, model: AudioSpectrogramTransformer, *, precision: torch.dtype = torch.float32
    ) -> None:
        """Take a model on the CPU, in float32 and in eval mode, whose blocks it changes.

        Its large weights are packed by oneDNN where that multiplies faster than torch's own
        product: not copied, so they cannot be trained, saved or exported from here on.

        Args:
            model: The trained model.
            precision: Of products, float32 or bfloat16. A CPU that would only emulate bfloat16
                multiplies in float32: several times as fast, and more exact.
        Raises:
            ValueError: `precision` is another, or the model is not as `check_plain` wants it.
        """
        super().__init__()
        if precision not in (torch.float32, torch.bfloat16):
            raise ValueError(f"precision must be torch.float32 or torch.bfloat16, got {precision}")
        check_plain(model)
        self.lowered = precision == torch.bfloat16 and multiplies_bfloat16(torch.device("cpu"))
        rows = model.num_patches + model.num_class_tokens
        if self.lowered:
            _freeze(model.blocks, rows, torch.bfloat16, least=1)
        if packs_faster_here():
            _freeze(model, rows, torch.float32, least=LEAST_VALUES)
        self.model = model.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of every clip, as the model's own `forward`."""
        return self.classify(self.embed(features))

    @on_one_thread_if_forked
    @torch.no_grad()
    def classify(self, embeddings: Tensor) -> Tensor:
        """Return the logits of clips from their embeddings, as the model's own `classify`."""
        with self._autocast():
            return self.model.classify(embeddings)

    @on_one_thread_if_forked
    @torch.no_grad()
    def embed(self, features: Tensor) -> Tensor:
        """Return the embedding of every clip, as the model's own `embed`."""
        rows = torch.get_num_threads() * ROWS_OF_A_THREAD
        clips = max(rows // (self.model.num_patches + self.model.num_class_tokens), 1)
        starts = range(0, max(len(features), 1), clips)
        with self._autocast():
            parts = [self.model.embed(features[first : first + clips]) for first in starts]
        return torch.cat(parts)

    def train(self, mode: bool = True) -> Self:
        """Refuse training mode, which would switch dropout on."""
        if mode:
            raise ValueError("a model made ready for inference must stay in eval mode")
        return super().train(mode)

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled or copied: packed weights can be read by oneDNN alone."""
        _refuse_copies()

    def _autocast(self) -> torch.autocast:
        """Return the context that lowers what is not frozen, or keeps all in float32."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.lowered)


class FrozenLinear(nn.Module):
    """A projection whose weight no longer changes, packed by oneDNN where that is faster."""

    def __init__(self, projection: Linear, rows: int, precision: torch.dtype) -> None:
        """Freeze a projection for about so many rows of tokens, multiplied in a precision."""
        super().__init__()
        bias: Tensor | None = projection.bias
        weight = projection.weight.detach().to(precision)
        self.precision, self.is_packed = precision, packs_faster_here(precision)
        self.weight = pack(weight, rows) if self.is_packed else weight
        self.bias = None if bias is None else bias.detach().to(precision).contiguous()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the projected tokens: (..., in_features) to (..., out_features)."""
        project = linear_packed if self.is_packed else functional.linear
        return project(tokens.to(self.precision), self.weight, self.bias)

    def gelu(self, tokens: Tensor) -> Tensor:
        """Return GELU of the projected tokens; torch's own pass is faster than oneDNN's."""
        hidden: Tensor = torch.ops.aten.gelu_(self(tokens))
        return hidden

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> NoReturn:
        """Refuse a state_dict of a model, which would lack this weight."""
        raise ValueError(
            f"model must have all its weights to be saved, lacks {prefix}weight; {NONE_TO_GIVE}"
        )

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled or copied, as the model that it is part of."""
        _refuse_copies()


def check_plain(model: nn.Module) -> None:
    """Raise unless a model has all its weights, in float32 on the CPU, and is in eval mode.

    Raises:
        ValueError: It is not so.
    """
    if model.training:
        raise ValueError("model must be in eval mode, got one in training mode")
    for name, module in model.named_modules():
        if isinstance(module, FrozenLinear):
            raise ValueError(
                f"model must have all its weights, lacks {name}.weight; {NONE_TO_GIVE}"
            )
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise ValueError(
                f"model must be in float32 on the CPU, got {name} in {parameter.dtype} on "
                f"{parameter.device}"
            )


def _refuse_copies() -> NoReturn:
    raise TypeError(
        "a model made ready for inference cannot be pickled or copied; load it in each process"
    )


def _freeze(model: nn.Module, rows: int, precision: torch.dtype, *, least: int) -> None:
    """Freeze a model's projections of at least so many values, each freed before the next."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Linear) and child.weight.numel() >= least:
                setattr(module, name, FrozenLinear(child, rows, precision))
