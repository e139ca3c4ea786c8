"""Where a model looks: attention rolled out over the patches, drawn over the spectrogram."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ast_fast.model import AudioSpectrogramTransformer
from ast_fast_kernels.files.atomic import atomic_write


def attention_rollout(model: AudioSpectrogramTransformer, features: Tensor) -> Tensor:
    """Return the share of each patch's token in what the head reads, by all blocks' attention.

    Heads are averaged, and each block's residual counts as half: the rollout is the product over
    blocks of (attention + identity) / 2. The shares are the mean of its rows, or of the rows of the
    class and distillation tokens; the strongest tokens count as all do. With a stem or convolutions
    a patch's token also holds parts of its neighbours.

    Args:
        model: In eval mode.
        features: The model's input, shape (batch, num_frames, num_mel_bins).
    Returns:
        Shares, shape (batch, patches along frequency, patches along time). A clip's sum is 1, or
        1 less the share of these tokens.
    Source: Abnar, Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3.
    """
    projected: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        projected.append(output)

    attentions: list[Any] = [block.attention for block in model.blocks]
    handles = [attention.qkv.register_forward_hook(keep) for attention in attentions]
    try:
        with torch.no_grad():
            model(features)
    finally:
        for handle in handles:
            handle.remove()
    rollout: Tensor | None = None
    for attention, output in zip(attentions, projected, strict=True):
        packed = output.view(*output.shape[:2], 3, attention.num_heads, -1)
        q, k, _ = packed.permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
        step = 0.5 * (weights + torch.eye(weights.shape[-1], device=weights.device))
        rollout = step if rollout is None else step @ rollout
    assert rollout is not None
    count = model.num_class_tokens
    shares = (rollout[:, :count] if count else rollout).mean(dim=1)[:, count:]
    return shares.reshape(len(shares), *model.patch_embedding.grid)


def save_explanation(
    path: Path,
    features: Tensor,
    shares: Tensor,
    *,
    covered: tuple[int, int],
    frame_shift: float,
    title: str,
) -> None:
    """Draw a clip's spectrogram, and below it the model's attention over the same.

    Args:
        path: PNG file to write.
        features: Features of one clip, shape (num_frames, num_mel_bins).
        shares: Shares of its patches, shape (patches along frequency, along time).
        covered: Mel bins and frames that the patches cover.
        frame_shift: Hop between frames, in milliseconds.
        title: Title of the figure, one line without control characters.
    """
    num_frames, num_mel_bins = features.shape
    seconds = num_frames * frame_shift / 1000.0
    figure = Figure(figsize=(9, 5), layout="constrained")
    figure.suptitle(title, parse_math=False)  # a name may hold dollars
    axes = figure.subplots(2, 1, sharex=True)
    for axis, label in zip(axes, ("log-mel", "attention"), strict=True):
        axis.imshow(
            features.T.cpu().numpy(), origin="lower", aspect="auto", cmap="gray_r",
            extent=(0.0, seconds, 0, num_mel_bins),
        )  # fmt: skip
        axis.set_ylabel(f"{label}\nmel bin")
    overlay = axes[1].imshow(
        (shares * shares.numel()).cpu().numpy(), origin="lower", aspect="auto", cmap="inferno",
        alpha=0.6, interpolation="bilinear", vmin=0.0,
        extent=(0.0, covered[1] * frame_shift / 1000.0, 0, covered[0]),
    )  # fmt: skip
    figure.colorbar(overlay, ax=axes, label="attention, relative to an even share")
    axes[0].set_xlim(0.0, seconds)
    axes[1].set_xlabel("seconds")
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in another script
        figure.savefig(temporary, dpi=120)
