"""The minimal Audio Spectrogram Transformer: log-mel features in, class logits out.

Follows Gong, Chung, Glass, "AST: Audio Spectrogram Transformer" (Interspeech 2021), section 2.1.
What its pre-trained models have beyond that (a distillation token, a norm before the head) are
settings. Patches are numbered as there, frequency first: patch `f * num_patches_time + t`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ast_fast.settings.config import Config, ModelConfig
from ast_fast.settings.rules import check_model
from ast_fast_kernels import add_layer_norm, attention, linear, linear_gelu, norm_gelu_conv
from ast_fast_kernels.stem.reference import add_neighbours

INIT_STD = 0.02
"""Standard deviation of the truncated normal that initialises every weight matrix, as in AST, ViT
and BERT."""


class AudioSpectrogramTransformer(nn.Module):
    """Classify log-mel features with a transformer over their patches."""

    def __init__(
        self, config: ModelConfig, *, num_mel_bins: int, num_frames: int, num_classes: int
    ) -> None:
        """Build the model with fresh weights.

        Args:
            config: Sizes; checked by `check_model`.
            num_mel_bins: Mel bins of the features.
            num_frames: Frames of the features, padding included.
            num_classes: Width of the logits.
        Raises:
            InputError: The sizes do not fit each other.
        """
        super().__init__()
        check_model(config, num_mel_bins, num_frames)
        width, self.num_class_tokens = config.embed_dim, config.num_class_tokens
        self.patch_embedding = PatchEmbedding(config, num_mel_bins, num_frames)
        self.class_token, self.distillation_token = (
            nn.Parameter(torch.zeros(width)) if self.num_class_tokens >= needed else None
            for needed in (1, 2)
        )
        self.token_position = (
            nn.Parameter(torch.zeros(self.num_class_tokens, width))
            if config.token_positions
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        rates = (config.stochastic_depth * (n + 1) / config.depth for n in range(config.depth))
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.pools_strongest = config.pool == "strongest"
        pooled, eps = config.pooled_width, config.head_norm_eps
        self.head_norm = nn.LayerNorm(pooled, eps=eps) if config.head_norm else None
        self.head = Linear(pooled, num_classes)
        self._initialise()

    @classmethod
    def of(cls, config: Config, num_classes: int) -> Self:
        """Return the model of a run's settings, with fresh weights."""
        return cls(
            config.model,
            num_mel_bins=config.fbank.num_mel_bins,
            num_frames=config.features.target_frames,
            num_classes=num_classes,
        )

    @classmethod
    def weight_shapes(cls, config: Config, num_classes: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights of a run's settings, by name; nothing is allocated."""
        repeated = {
            "blocks.0.": config.model.depth,
            "patch_embedding.blocks.0.": config.model.conv_depth,
        }
        one_each = replace(config.model, depth=1, conv_depth=min(1, config.model.conv_depth))
        with torch.device("meta"):
            model = cls.of(replace(config, model=one_each), num_classes)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in model.state_dict().items():
            first = next((start for start in repeated if name.startswith(start)), None)
            if first is None:
                shapes[name] = tuple(tensor.shape)
                continue
            for number in range(repeated[first]):
                shapes[f"{first[:-2]}{number}.{name[len(first) :]}"] = tuple(tensor.shape)
        return shapes

    @classmethod
    def from_weights(cls, config: Config, num_classes: int, weights: Mapping[str, Tensor]) -> Self:
        """Return the model of a run's settings with these weights, which are not copied.

        Args:
            config: The run's settings.
            num_classes: Width of the logits.
            weights: Tensors of `weight_shapes`, by name.
        """
        with torch.device("meta"):
            model = cls.of(config, num_classes)
        model.load_state_dict(weights, assign=True)
        return model

    @property
    def num_patches(self) -> int:
        """The number of patches of the whole spectrogram."""
        return self.patch_embedding.num_patches

    def forward(self, features: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """Return the logits of every clip.

        Args:
            features: As `embed` takes them.
            keep: Likewise.
        Returns:
            Logits, shape (batch, num_classes).
        """
        return self.classify(self.embed(features, keep=keep))

    def classify(self, embeddings: Tensor) -> Tensor:
        """Return the logits of clips, (batch, num_classes), from their embeddings."""
        if self.head_norm is not None:
            embeddings = self.head_norm(embeddings)
        logits: Tensor = self.head(embeddings)
        return logits

    def embed(self, features: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """Return the vector of every clip that the head classifies: its tokens, normed and pooled.

        Args:
            features: Normalised log-mel features, shape (batch, num_frames, num_mel_bins).
            keep: Indices of the patches to keep, shape (batch, num_kept); None keeps all. Dropped
                patches cost nothing, not even a projection, unless patches see their neighbours
                (`ModelConfig.sees_all_patches`).
        Returns:
            Embeddings, shape (batch, `ModelConfig.pooled_width`), before the head's own norm.
        """
        tokens = self.patch_embedding(features, keep)  # (batch, tokens, embed_dim)
        if self.num_class_tokens:
            first = self._class_tokens().to(tokens.dtype).expand(tokens.shape[0], -1, -1)
            tokens = torch.cat((first, tokens), dim=1)
        tokens = self.dropout(tokens)
        update: Tensor | None = None
        for block in self.blocks[:-1]:
            tokens, update = block(tokens, update)
        tokens, update = self.blocks[-1](tokens, update, self.num_class_tokens or None)
        normed = _add_norm(tokens, update, self.norm)[1]
        mean = normed.mean(dim=1)
        return torch.cat((mean, strongest(normed)), dim=1) if self.pools_strongest else mean

    def _class_tokens(self) -> Tensor:
        """Return the tokens before those of the patches, shape (num_class_tokens, embed_dim)."""
        named = (self.class_token, self.distillation_token)
        tokens = torch.stack([token for token in named if token is not None])
        return tokens if self.token_position is None else tokens + self.token_position

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _truncated_normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.patch_embedding.position, nn.Parameter):
            _truncated_normal(self.patch_embedding.position)
        for parameter in (self.class_token, self.distillation_token, self.token_position):
            if parameter is not None:
                _truncated_normal(parameter)


def strongest(tokens: Tensor) -> Tensor:
    """Return the mean of each feature's largest eighth over the tokens, at least one of them.

    Args:
        tokens: Shape (batch, tokens, embed_dim).
    Returns:
        Shape (batch, embed_dim).
    """
    count = max(1, tokens.shape[1] // 8)
    values, places = tokens.detach().topk(count, dim=1, sorted=False)
    if not tokens.requires_grad:
        return values.mean(dim=1)
    # With deterministic algorithms the gradient of topk on a GPU is a scatter of values, which some
    # versions of torch compute with a copy from the host: a captured CUDA graph refuses it.
    shares = torch.zeros_like(tokens).scatter_(1, places, 1 / count)
    return (tokens * shares).sum(dim=1)


class Linear(nn.Linear):
    """A projection by the machine's fastest matrix product."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the projected tokens: (..., in_features) to (..., out_features)."""
        bias: Tensor | None = self.bias
        if bias is None:  # the kernels always add one
            bias = self.weight.new_zeros(self.out_features)
        projected: Tensor = linear(tokens, self.weight, bias)
        return projected

    def gelu(self, tokens: Tensor) -> Tensor:
        """Return GELU of the projected tokens, the bias and GELU in one pass."""
        hidden: Tensor = linear_gelu(tokens, self.weight, self.bias)
        return hidden


class Neighbours(nn.Conv2d):
    """A depth-wise 3 × 3 convolution over a grid of tokens, added to them."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, kernel_size=3, padding=1, groups=width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens, same shape: (batch, grid freq, grid time, width)."""
        assert self.bias is not None
        return add_neighbours(tokens, self.weight, self.bias)


class StemStage(nn.Module):
    """Project each cell of a grid, normalise it, convolve with its neighbours, and join 2 × 2."""

    def __init__(self, in_features: int, width: int, norm_eps: float) -> None:
        super().__init__()
        self.projection = Linear(in_features, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.neighbours = Neighbours(width)

    def forward(self, cells: Tensor) -> Tensor:
        """Return (batch, freq / 2, time / 2, 4 * width) of (batch, freq, time, in_features)."""
        norm, neighbours = self.norm, self.neighbours
        assert neighbours.bias is not None
        joined: Tensor = norm_gelu_conv(
            self.projection(cells),
            norm.weight,
            norm.bias,
            neighbours.weight,
            neighbours.bias,
            eps=norm.eps,
        )
        return joined


class ConvolutionStem(nn.Sequential):
    """Stages over ever coarser cells, each of 2 × 2 cells of the stage before, up to a patch.

    A cheap form of strided convolutions in front of a transformer (Xiao et al., "Early Convolutions
    Help Transformers See Better", NeurIPS 2021). The strided part does not overlap, so it is a
    matrix product; the overlapping part is depth-wise.
    """

    def __init__(self, config: ModelConfig) -> None:
        eps = config.norm_eps
        super().__init__(
            *(StemStage(stage.values, stage.width, eps) for stage in config.stem_stages)
        )
        self.cell_size = config.stem_cell

    def forward(self, image: Tensor) -> Tensor:
        """Return the last stage's values of every patch.

        Args:
            image: Shape (batch, num_mel_bins, num_frames), a whole number of patches each way.
        Returns:
            Shape (batch, grid freq, grid time, 4 * the last stage's width).
        """
        (height, length), (batch, freq, time) = self.cell_size, image.shape
        parts = image.reshape(batch, freq // height, height, time // length, length)
        cells = parts.transpose(2, 3).flatten(3)
        for stage in self:
            cells = stage(cells)
        return cells


class Mlp(nn.Sequential):
    """Two projections with GELU between; the first one's bias and GELU take one pass."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__(Linear(embed_dim, hidden_dim), nn.GELU(), Linear(hidden_dim, embed_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens after both projections, same shape: (..., embed_dim)."""
        expansion: Any = self[0]
        contracted: Tensor = self[2](expansion.gelu(tokens))
        return contracted


class ConvolutionBlock(nn.Module):
    """A transformer block with a convolution over the grid in place of attention.

    Source: Liu et al., "A ConvNet for the 2020s" (CVPR 2022), figure 4, here with a 3 × 3
        convolution added to its input; Dai et al., "CoAtNet" (NeurIPS 2021), for its place before
        attention.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.neighbours = Neighbours(config.embed_dim)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = Mlp(config.embed_dim, config.conv_hidden_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return all tokens, same shape, or those that `keep` names, in its order.

        Args:
            tokens: Shape (batch, grid freq, grid time, embed_dim).
            keep: Shape (batch, num_kept), int64: the MLP runs for these alone. None keeps all.
        """
        tokens = self.neighbours(tokens)
        if keep is not None:
            tokens = _picked(tokens, keep)
        tokens, normed = _add_norm(tokens, None, self.norm)
        heard: Tensor = tokens + self.dropout(self.mlp(normed))
        return heard


class PatchEmbedding(nn.Module):
    """Cut features into patches, project each patch and add its position's embedding.

    With `stem_widths` a `ConvolutionStem` turns each patch into the values that are projected. With
    `conditional_position` the grid of all tokens goes through `Neighbours`, and then through
    `conv_depth` `ConvolutionBlock`s. There, kept patches see their dropped neighbours.

    Source of `conditional_position`: Chu et al., "Conditional Positional Encodings for Vision
        Transformers" (ICLR 2023), section 3, here before any block and beside the embedding.
    """

    position: Tensor  # (num_patches, embed_dim): a parameter if learned, else a buffer

    def __init__(self, config: ModelConfig, num_mel_bins: int, num_frames: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.patch_stride = config.patch_stride
        self.features_shape = (num_frames, num_mel_bins)
        self.grid = config.patch_grid(num_mel_bins, num_frames)
        self.num_patches = self.grid[0] * self.grid[1]
        self.stem = ConvolutionStem(config) if config.stem_widths else None
        self.projection = Linear(config.patch_values, config.embed_dim)
        if config.position_embedding == "learned":
            self.position = nn.Parameter(torch.zeros(self.num_patches, config.embed_dim))
        else:
            table = sinusoidal_position_embedding(self.grid, config.embed_dim)
            self.register_buffer("position", table, persistent=False)
        self.neighbours = Neighbours(config.embed_dim) if config.conditional_position else None
        self.blocks = nn.Sequential(*(ConvolutionBlock(config) for _ in range(config.conv_depth)))
        self.sees_all = config.sees_all_patches

    def forward(self, features: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the tokens of all patches, or of those that `keep` names, in its order.

        Args:
            features: Shape (batch, num_frames, num_mel_bins).
            keep: Shape (batch, num_kept), int64; None keeps all.
        Returns:
            Tokens, shape (batch, num_patches or num_kept, embed_dim).
        Raises:
            ValueError: The features have another shape than the model was built for.
        """
        self._check(features)
        image = features.transpose(1, 2)
        if keep is not None and not self.sees_all:
            return self._kept_tokens(image, keep)
        tokens = self._all_tokens(image)
        if self.blocks:
            tokens = self.blocks[-1](self.blocks[:-1](tokens), keep)
        elif keep is not None:
            tokens = _picked(tokens, keep)
        return tokens.flatten(1, 2) if keep is None else tokens

    def _check(self, features: Tensor) -> None:
        if features.ndim != 3 or features.shape[1:] != self.features_shape:
            num_frames, num_mel_bins = self.features_shape
            raise ValueError(
                f"features must be (batch, {num_frames} frames, {num_mel_bins} mel bins), "
                f"got {tuple(features.shape)}"
            )

    def _kept_tokens(self, image: Tensor, keep: Tensor) -> Tensor:
        """Return the tokens of the kept patches, (batch, num_kept, embed_dim); project those alone.

        Args:
            image: Shape (batch, num_mel_bins, num_frames).
            keep: Shape (batch, num_kept), int64.
        """
        clips = torch.arange(len(image), device=image.device).unsqueeze(1)
        patches = self._cut(image)[clips, keep // self.grid[1], keep % self.grid[1]].flatten(2)
        tokens: Tensor = self.projection(patches) + functional.embedding(keep, self.position)
        return tokens

    def _all_tokens(self, image: Tensor) -> Tensor:
        """Return the grid of all tokens, (batch, grid freq, grid time, embed_dim)."""
        if self.stem is None:
            patches = self._cut(image).flatten(3)
        else:
            (height, width), (num_freq, num_time) = self.patch_size, self.grid
            # narrow, not a slice: a slice of a fake CUDA tensor needs CUDA in torch
            covered = image.narrow(1, 0, num_freq * height).narrow(2, 0, num_time * width)
            patches = self.stem(covered)
        tokens: Tensor = self.projection(patches) + self.position.view(*self.grid, -1)
        return tokens if self.neighbours is None else self.neighbours(tokens)

    def _cut(self, image: Tensor) -> Tensor:
        """Return the patches, which may overlap, as a view of the image.

        Its shape is (batch, grid freq, grid time, patch height, patch width).
        """
        (height, width), (step_freq, step_time) = self.patch_size, self.patch_stride
        return image.unfold(1, height, step_freq).unfold(2, width, step_time)


class Attention(nn.Module):
    """Multi-head self-attention from one packed projection."""

    def __init__(self, embed_dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.projection = Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, count: int | None = None) -> Tensor:
        """Return the attended tokens, same shape, or the first `count`, which attend to all.

        Args:
            tokens: Shape (batch, tokens, embed_dim).
            count: None means all.
        """
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        attended = attention(qkv) if count is None else _attention_of_first(qkv, count)
        projected: Tensor = self.projection(attended.flatten(-2))
        return projected


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP, each added to its input.

    The MLP's result is returned apart, so that the next norm adds it in the same pass over memory.

    Args:
        config: Sizes.
        left_out: Rate at which training leaves out either of them for a clip.
    """

    def __init__(self, config: ModelConfig, left_out: float = 0.0) -> None:
        super().__init__()
        self.left_out = left_out
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.attention = Attention(config.embed_dim, config.num_heads, qkv_bias=config.qkv_bias)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = Mlp(config.embed_dim, config.hidden_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens: Tensor, update: Tensor | None = None, count: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens after attention, and the MLP's result to add to them.

        Args:
            tokens: The residual stream, shape (batch, tokens, embed_dim).
            update: The MLP's result of the block before, same shape; None for the first block.
            count: How many tokens to return, the first ones; they see all. None means all. Of the
                last block only class tokens are read: the others cost a projection, and no more.
        """
        tokens, normed = _add_norm(tokens, update, self.norm1)
        attended = self._kept(self.dropout(self.attention(normed, count)))
        if count is not None:
            tokens = tokens[:, :count]
        tokens, normed = _add_norm(tokens, attended, self.norm2)
        return tokens, self._kept(self.dropout(self.mlp(normed)))

    def _kept(self, update: Tensor) -> Tensor:
        """Leave out some clips' updates in training, and enlarge the others by as much.

        Source: Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016), section 3.
        """
        if not self.training or self.left_out == 0:
            return update
        kept = functional.dropout(update.new_ones(len(update), 1, 1), self.left_out)
        return update * kept


def sinusoidal_position_embedding(grid: tuple[int, int], embed_dim: int) -> Tensor:
    """Return fixed position embeddings of a grid of patches: half for frequency, half for time.

    Each half holds sines, then cosines, of the position at wavelengths from 2π to 10000 · 2π.

    Args:
        grid: Number of patches along (freq, time).
        embed_dim: Width of an embedding, divisible by 4.
    Returns:
        Embeddings, shape (grid freq * grid time, embed_dim), float32.
    Source: Vaswani et al., "Attention Is All You Need", section 3.5, once for each axis.
    """
    quarter = embed_dim // 4
    options: Any = {"dtype": torch.float64, "device": "cpu"}  # not meta, where weights are read
    frequencies = 10000.0 ** -(torch.arange(quarter, **options) / quarter)
    halves = []
    for positions in torch.meshgrid(
        torch.arange(grid[0], **options), torch.arange(grid[1], **options), indexing="ij"
    ):
        angles = positions.reshape(-1, 1) * frequencies  # (num_patches, embed_dim / 4)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()


def _attention_of_first(qkv: Tensor, count: int) -> Tensor:
    """Return the attention of the first tokens to all, (batch, count, heads, head_dim).

    Plain torch: for so few queries, all that takes time is one pass over keys and values.

    Args:
        qkv: Shape (batch, tokens, 3, heads, head_dim).
        count: How many.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, head_dim)
    scores = (q[:, :, :count] * q.shape[-1] ** -0.5) @ k.mT
    attended: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return attended.transpose(1, 2)


def _picked(tokens: Tensor, keep: Tensor) -> Tensor:
    """Return the tokens of a grid that `keep` names, shape (batch, num_kept, embed_dim).

    They are looked up as rows of one table: the gradient has the same bits each time, even without
    torch's deterministic algorithms.
    """
    batch, grid_freq, grid_time, width = tokens.shape
    num_tokens = grid_freq * grid_time
    first = num_tokens * torch.arange(batch, device=keep.device).unsqueeze(1)
    return functional.embedding(keep + first, tokens.reshape(-1, width))


def _add_norm(tokens: Tensor, update: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return add_layer_norm(tokens, update, norm.weight, norm.bias, eps=norm.eps)


def _truncated_normal(parameter: Tensor) -> None:
    nn.init.trunc_normal_(parameter, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
