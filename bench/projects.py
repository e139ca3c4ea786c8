"""The feature settings of public projects: which library each calls, and with what.

Names and arguments only. bench_projects.py calls each library so, and ours with the import swapped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log
from typing import Any

INT16_RANGE = 32768.0
"""Kaldi's recipes give samples in int16's range, and dither is of that scale."""


@dataclass(frozen=True)
class Project:
    """How a project computes its features, a clip a call."""

    library: str
    """The library that it calls."""
    name: str
    """The function or class of that library."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its arguments, other than the waveform."""
    scale: float = 1.0
    """Factor on samples from -1 to 1 before the call."""
    rate: int = 16000
    """Sample rate, in Hz."""
    per_log: float = 1.0
    """How much features grow with the natural logarithm of an energy, if it is more than 1."""

    @property
    def call(self) -> str:
        """What it calls, with those arguments that change the features, as text."""
        given = {**self.options, **self.options.get("frame_opts", {})} | self.options.get(
            "mel_opts", {}
        )
        shown = (f"{name}={value!r}" for name, value in given.items() if name in _SHOWN)
        return f"{self.name}({', '.join(shown)})"


_SHOWN = ("num_mel_bins", "num_ceps", "num_filters", "n_mels", "num_bins", "dither", "window_type")


def kaldi(name: str = "fbank", scale: float = 1.0, **options: Any) -> Project:
    """Return a project that calls torchaudio.compliance.kaldi."""
    return Project("torchaudio", f"kaldi.{name}", options, scale)


PROJECTS = {
    # wenet/dataset/processor.py, compute_fbank; examples' conf/*.yaml
    "wenet": kaldi(
        num_mel_bins=80, frame_length=25, frame_shift=10, dither=0.1, energy_floor=0.0,
        sample_frequency=16000, scale=INT16_RANGE,
    ),
    # wespeaker/dataset/processor.py, compute_fbank
    "wespeaker": kaldi(
        num_mel_bins=80, frame_length=25, frame_shift=10, dither=1.0, sample_frequency=16000,
        window_type="hamming", use_energy=False, scale=INT16_RANGE,
    ),
    # funasr/frontends/wav_frontend.py, WavFrontend
    "FunASR": kaldi(
        num_mel_bins=80, frame_length=25, frame_shift=10, dither=1.0, energy_floor=0.0,
        window_type="hamming", sample_frequency=16000, snip_edges=True, scale=INT16_RANGE,
    ),
    # cosyvoice/cli/frontend.py, _extract_spk_embedding; the mean is subtracted after it
    "CosyVoice": kaldi(num_mel_bins=80, dither=0, sample_frequency=16000),
    # src/dataloader.py, _wav2fbank; SSAST, CAV-MAE and AudioMAE call it so too
    "AST": kaldi(
        htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning",
        num_mel_bins=128, dither=0.0, frame_shift=10,
    ),
    # beats/BEATs.py, preprocess
    "BEATs": kaldi(
        num_mel_bins=128, sample_frequency=16000, frame_length=25, frame_shift=10,
        scale=INT16_RANGE,
    ),
    # xvector_jtubespeech's README.md
    "xvector_jtubespeech": kaldi("mfcc", num_ceps=24, num_mel_bins=24),
    # egs/librispeech/ASR/local/compute_fbank_librispeech.py
    "icefall": Project("lhotse", "Fbank", {"num_filters": 80}),
    # recipes/VoxCeleb/SpeakerRec/hparams/train_ecapa_tdnn.yaml
    "speechbrain ECAPA": Project("speechbrain", "Fbank", {"n_mels": 80}, per_log=10 / log(10)),
    # sherpa-onnx/csrc/features.h, FeatureExtractorConfig
    "sherpa-onnx": Project(
        "kaldi-native-fbank", "OnlineFbank",
        {
            "frame_opts": {"dither": 0.0, "snip_edges": False},
            "mel_opts": {"num_bins": 80, "high_freq": -400.0},
        },
    ),
    "transformers AST": Project("transformers", "ASTFeatureExtractor"),
    "transformers Whisper": Project("transformers", "WhisperFeatureExtractor"),
    "transformers w2v-BERT": Project("transformers", "SeamlessM4TFeatureExtractor"),
    "transformers CLAP": Project(
        "transformers", "ClapFeatureExtractor", rate=48000, per_log=10 / log(10)
    ),
}  # fmt: skip
"""Projects by name; a comment names the file of theirs that says so, where it is not the class."""
