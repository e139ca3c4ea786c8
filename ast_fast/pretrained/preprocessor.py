"""How waveforms become the input of others' models: transformers' ASTFeatureExtractor, as settings.

Theirs is Kaldi's filterbank of the waveform in [-1, 1], cut or padded with zeros to a number of
frames, and then normalised: (x − mean) / (2 · std).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_fast.features import Statistics
from ast_fast.pretrained.documents import Document
from ast_fast.settings.config import AudioConfig, Config, FeatureConfig, ModelConfig
from ast_fast_kernels.fbank.config import FbankConfig

PREPROCESSOR = "preprocessor_config.json"

AUDIOSET = Statistics(-4.2677393, 4.5689974)
STATISTICS = {
    527: AUDIOSET,
    50: Statistics(-6.6268077, 5.358466),
    35: Statistics(-6.845978, 5.5654526),
}
"""Of the original's data sets by their number of classes: AudioSet, ESC-50, Speech Commands.
Source: YuanGongND/ast, src/run.py."""

UNCHANGED = Statistics(0.0, 0.5)
"""What normalises to the same value: (x − 0) / (2 · 0.5)."""


@dataclass(frozen=True)
class Preprocessor:
    """Settings of the features that a model was trained on."""

    sample_rate: int = 16000
    num_mel_bins: int = 128
    num_frames: int = 1024
    statistics: Statistics = AUDIOSET

    @classmethod
    def read(cls, path: Path) -> Preprocessor:
        """Return what a preprocessor_config.json says.

        Raises:
            InputError: It is missing, or a value is out of range.
        """
        document = Document(path)
        statistics = Statistics(
            document.number("mean", AUDIOSET.mean), document.number("std", AUDIOSET.std, above=0)
        )
        return cls(
            sample_rate=document.integer("sampling_rate", cls.sample_rate),
            num_mel_bins=document.integer("num_mel_bins", cls.num_mel_bins),
            num_frames=document.integer("max_length", cls.num_frames),
            statistics=statistics if document.flag("do_normalize", True) else UNCHANGED,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of a preprocessor_config.json."""
        return {
            "do_normalize": True,
            "feature_extractor_type": "ASTFeatureExtractor",
            "feature_size": 1,
            "max_length": self.num_frames,
            "mean": self.statistics.mean,
            "num_mel_bins": self.num_mel_bins,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "sampling_rate": self.sample_rate,
            "std": self.statistics.std,
        }

    def config(self, model: ModelConfig) -> Config:
        """Return the settings of a run on such features; a clip is as long as they take it."""
        fbank = self.fbank
        num_samples = (self.num_frames - 1) * fbank.window_shift + fbank.window_size
        return Config(
            audio=AudioConfig(clip_seconds=num_samples / self.sample_rate),
            features=FeatureConfig(
                norm_per_sample=False, target_frames=self.num_frames, padding="zero"
            ),
            fbank=fbank,
            model=model,
        )

    @property
    def fbank(self) -> FbankConfig:
        """The filterbank: the AST's, at this rate and with these bins."""
        return FbankConfig(sample_frequency=float(self.sample_rate), num_mel_bins=self.num_mel_bins)
