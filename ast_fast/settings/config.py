"""Every setting of a run, as frozen dataclasses with their defaults.

The docstrings of the fields are the text of `--help`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from ast_fast_kernels.fbank.config import FbankConfig

ESC50_URL = (
    "https://github.com/karolpiczak/ESC-50/archive/33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6.zip"
)
"""One commit, not the branch: the archive of a branch changes with every commit to it."""
ESC50_SHA256 = "661183a6f53ef04f12c9bd618fed0ddc1713280d6c94a5a5431e844ba6f6a21f"
"""SHA-256 of that archive (645,832,161 bytes), as several projects that pin it publish it."""

Backend = Literal["auto", "reference", "numba", "triton"]
Pool = Literal["mean", "strongest", "cls", "distilled"]


@dataclass(frozen=True)
class Paths:
    """Where things are read and written."""

    data: Path | None = None
    """Data set in ESC-50's layout (audio/ and meta/esc50.csv), or features of an extraction whose
    manifest has fold, target and category; none: a small synthesised one."""
    out: Path | None = None
    """Folder for the run's outputs; none: runs/<date-time>."""
    cache: Path | None = None
    """Folder for decoded, synthesised and downloaded data; none: the user's cache folder."""


@dataclass(frozen=True)
class AudioConfig:
    """How audio files become clips of one length and sample rate."""

    clip_seconds: float = 5.0
    """Length to which every clip is cut or zero-padded, in seconds."""
    resample_quality: Literal["QQ", "LQ", "MQ", "HQ", "VHQ", "hq", "fast"] = "HQ"
    """For files whose sample rate is not fbank.sample_frequency: a quality of soxr, or hq or fast
    of ast_fast_kernels.resample, which takes less time."""
    workers: int = 0
    """Decoding threads; 0 uses every core."""
    download_url: str = ESC50_URL
    """Zip archive that --download fetches."""
    download_sha256: str = ESC50_SHA256
    """SHA-256 of that archive; if empty, only the zip's own checksums are checked."""


@dataclass(frozen=True)
class FeatureConfig:
    """What happens between the log-mel filterbank and the model."""

    norm_per_sample: bool = True
    """Normalise each clip by its own mean and deviation; else by those of the training folds."""
    target_frames: int = 512
    """Frames of the model's input, at least those of a clip."""
    padding: Literal["silence", "zero"] = "silence"
    """Value of missing frames before normalisation: that of silence, or 0 as in the original AST;
    zero needs norm_per_sample off."""


class StemStageSize(NamedTuple):
    """Sizes of one stage of a convolution stem."""

    cells: int
    """Cells in a patch."""
    values: int
    """Values in a cell, the input of the stage's projection."""
    width: int
    """Output width of the projection."""


@dataclass(frozen=True)
class ModelConfig:
    """The minimal Audio Spectrogram Transformer."""

    pretrained: Path | None = None
    """Model that others trained, to fine-tune: a folder of transformers or a .pth of the original
    AST. Its sizes, its features and the settings of fine-tuning become the defaults; none: fresh
    weights."""
    patch_size: tuple[int, int] = (16, 16)
    """Height and width of a patch: mel bins, frames."""
    patch_stride: tuple[int, int] = (16, 16)
    """Step between patches: mel bins, frames; if smaller than patch_size, patches overlap."""
    embed_dim: int = 192
    """Width of a token."""
    num_heads: int = 3
    """Attention heads; embed_dim must be divisible by their number."""
    depth: int = 4
    """Transformer blocks."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP, as a multiple of embed_dim."""
    dropout: float = 0.0
    """Dropout rate after the projections of attention and MLP, and on the embeddings."""
    stochastic_depth: float = 0.0
    """Rate at which a training step leaves out the last block's attention, and its MLP, for a clip;
    that of the blocks before rises to it evenly."""
    pool: Pool = "mean"
    """What the head reads: the mean of the patch tokens, that mean and beside it the mean of each
    feature's largest eighth (strongest), a class token, or the mean of a class and a distillation
    token (distilled), as in the original AST."""
    stem_widths: tuple[int, ...] = ()
    """Widths of a convolution stem's stages, finest cells first; 2 x 2 cells make one cell of
    the next stage, and after the last stage one patch; none: no stem."""
    position_embedding: Literal["learned", "sinusoidal"] = "learned"
    """Position embedding added to the patch tokens."""
    conditional_position: bool = False
    """Add to each patch a convolution over it and its eight neighbours, before patch dropping."""
    conv_depth: int = 0
    """Convolution blocks over the grid of patches, before the transformer blocks."""
    conv_mlp_ratio: float = 2.0
    """Width of a convolution block's MLP, as a multiple of embed_dim."""
    token_positions: bool = False
    """Add a position embedding to the class and distillation tokens too."""
    qkv_bias: bool = True
    """Whether the projections to queries, keys and values have a bias."""
    norm_eps: float = 1e-5
    """Added to the variance by every LayerNorm but the head's."""
    head_norm: bool = False
    """Normalise what the head reads by a LayerNorm of its own."""
    head_norm_eps: float = 1e-5
    """Added to the variance by the head's LayerNorm."""

    @property
    def num_class_tokens(self) -> int:
        """Tokens before those of the patches: 0, 1 (class) or 2 (class and distillation)."""
        return {"mean": 0, "strongest": 0, "cls": 1, "distilled": 2}[self.pool]

    @property
    def pooled_width(self) -> int:
        """Width of what the head reads, a clip's embedding."""
        return self.embed_dim * (2 if self.pool == "strongest" else 1)

    def patch_grid(self, num_mel_bins: int, num_frames: int) -> tuple[int, int]:
        """Return the number of patches along (freq, time); the upper ends may stay unused."""
        return (
            (num_mel_bins - self.patch_size[0]) // self.patch_stride[0] + 1,
            (num_frames - self.patch_size[1]) // self.patch_stride[1] + 1,
        )

    @property
    def hidden_width(self) -> int:
        """Width of a transformer block's MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def conv_hidden_width(self) -> int:
        """Width of a convolution block's MLP."""
        return int(self.embed_dim * self.conv_mlp_ratio)

    @property
    def sees_all_patches(self) -> bool:
        """Whether dropped patches are projected too, because their neighbours need them."""
        return bool(self.stem_widths or self.conditional_position or self.conv_depth)

    @property
    def stem_cell(self) -> tuple[int, int]:
        """Height and width of the stem's finest cells: (mel bins, frames)."""
        cells = 2 ** len(self.stem_widths)
        return self.patch_size[0] // cells, self.patch_size[1] // cells

    @property
    def stem_stages(self) -> list[StemStageSize]:
        """Sizes of the stem's stages, finest cells first."""
        widths = self.stem_widths
        values = (math.prod(self.stem_cell), *(4 * width for width in widths))
        return [
            StemStageSize(4 ** (len(widths) - n), values[n], width)
            for n, width in enumerate(widths)
        ]

    @property
    def patch_values(self) -> int:
        """Values of a patch that are projected to a token: its own, or the stem's output."""
        return 4 * self.stem_widths[-1] if self.stem_widths else math.prod(self.patch_size)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training clips; every part can be switched off."""

    roll: bool = True
    """Rotate the waveform by a random number of samples."""
    gain_db: float = 6.0
    """Random gain, uniform within ± this many dB; 0 is off."""
    speeds: tuple[float, ...] = ()
    """Speeds at which half of the clips are heard, such as 0.8 and 1.25, with the pitch that they
    bring; a copy of all clips at each lies in memory; none: off."""
    polarity: bool = True
    """Flip the waveform's sign with probability one half."""
    mix_probability: float = 0.5
    """Share of clips mixed with another clip of the batch, with their labels; 0 is off."""
    cutmix_probability: float = 0.0
    """Share of clips whose features take a stretch of frames, or the mel bins on one side of a cut,
    from another clip of the batch, with as much of its label; 0 is off."""
    unmixed_share: float = 0.0
    """Share of the epochs, the last ones, in which no clip is mixed or takes features of another,
    so that training ends on clips like those of a test; 0 is off."""
    filter_db: float = 0.0
    """Standard deviation of a random filter's gains, in dB; 0 is off."""
    filter_points: int = 5
    """Evenly spaced mel bins with a random gain each; gains between them are interpolated."""
    freq_mask: int = 24
    """Largest SpecAugment mask along frequency, in mel bins; 0 is off."""
    time_mask: int = 48
    """Largest SpecAugment mask along time, in frames; 0 is off."""
    num_masks: int = 2
    """Masks of each kind."""
    patch_drop: float = 0.5
    """Share of patches that a training step drops; 0 is off."""


@dataclass(frozen=True)
class TrainingConfig:
    """The optimiser and its schedule."""

    epochs: int = 120
    """Passes over the training folds."""
    batch_size: int = 32
    """Clips per step."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """AdamW for all weights, or Muon for matrices and AdamW for the head and the rest."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Weight decay, on matrices only."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up before the cosine."""
    final_learning_rate: float = 1e-5
    """Learning rate at the end of the cosine."""
    loss: Literal["shares", "presence"] = "shares"
    """Labels of a mixture: each sound's share, by cross-entropy; or whether each is present, by
    binary cross-entropy. In tests and predictions probabilities are a softmax with either."""
    label_smoothing: float = 0.1
    """Share of each label spread over all classes; 0 is off."""
    clip_grad_norm: float = 1.0
    """Largest gradient norm; 0 is off."""
    ema_decay: float = 0.995
    """Decay of the weights' moving average, which is the model tested; 0 is off."""
    amp: Literal["auto", "off", "bfloat16", "float16"] = "auto"
    """Mixed precision; auto takes bfloat16 if the hardware multiplies it (CUDA, AMX, AVX-512)."""
    cuda_graph: bool = True
    """On a GPU, capture the training step as a CUDA graph and replay it: the same numbers sooner;
    the CPU and several processes never do."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    paths: Annotated[Paths, tyro.conf.arg(name="")] = field(default_factory=Paths)
    subset: Literal["all", "esc10"] = "all"
    """Clips to use: all, or those marked esc10."""
    folds: tuple[int, ...] = ()
    """Folds to test on, as numbered in esc50.csv; none: all folds."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and dropout."""
    backend: Backend = "auto"
    """Kernels: auto (the fastest on this machine), reference, numba (CPU) or triton (CUDA)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto takes CUDA if available."""
    threads: int = 0
    """CPU threads; 0 uses every core."""
    resume: bool = False
    """Resume the run in --out."""
    download: bool = False
    """Fetch ESC-50 into the cache folder (or into --data) and use it."""
    download_model: bool = False
    """Fetch --model.pretrained, owner/name or owner/name@revision of the Hugging Face Hub, into the
    Hub's own cache, unless it is here."""
    download_model_sha256: str = ""
    """SHA-256 that the weights of --model.pretrained must have; if empty, the Hub's own is checked
    where they are fetched."""
    tensorboard: bool = False
    """Also write each fold's curves for TensorBoard, beside history.csv."""
    skip_bad_files: bool = False
    """Skip audio files that cannot be read, and count them in the report."""
    audio: AudioConfig = field(default_factory=AudioConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    fbank: FbankConfig = field(default_factory=FbankConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def num_patches(self) -> int:
        """Number of patches of a clip's whole spectrogram."""
        grid = self.model.patch_grid(self.fbank.num_mel_bins, self.features.target_frames)
        return math.prod(grid)
