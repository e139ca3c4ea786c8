"""Conventions of other libraries, each as its changes to the defaults of `FbankConfig`."""

from __future__ import annotations

from typing import Literal

PresetName = Literal[
    "ast",
    "kaldi",
    "seed",
    "lhotse",
    "librosa",
    "melspectrogram",
    "nemo",
    "python_speech_features",
    "vggish",
    "whisper",
]

_PLAIN: dict[str, object] = {
    "window_periodic": True,
    "preemphasis_coefficient": 0.0,
    "remove_dc_offset": False,
    "low_freq": 0.0,
}
_STFT: dict[str, object] = {**_PLAIN, "snip_edges": False, "center": True}
_SLANEY: dict[str, object] = {
    "mel_scale": "slaney",
    "mel_norm": "slaney",
    "triangle_axis": "hertz",
}

PRESETS: dict[str, dict[str, object]] = {
    "ast": {},
    "kaldi": {"window_type": "povey", "num_mel_bins": 23},
    "seed": {**_PLAIN, "use_power": False, "log_floor": 0.0, "log_offset": 1e-10},
    # lhotse/features/kaldi/layers.py, Wav2LogFilterBank
    "lhotse": {
        "window_type": "povey",
        "snip_edges": False,
        "num_mel_bins": 80,
        "high_freq": -400.0,
        "mel_dtype": "float32",
    },
    # librosa/feature/spectral.py, melspectrogram; librosa/core/spectrum.py, power_to_db
    "librosa": {
        **_STFT,
        **_SLANEY,
        "sample_frequency": 22050.0,
        "window_size": 2048,
        "window_shift": 512,
        "pad_mode": "constant",
        "log_type": "db",
        "log_floor": 1e-10,
        "top_db": 80.0,
    },
    # torchaudio/transforms/_transforms.py, MelSpectrogram
    "melspectrogram": {
        **_STFT,
        "window_size": 400,
        "window_shift": 200,
        "n_fft": 400,
        "pad_mode": "reflect",
        "triangle_axis": "hertz",
        "use_log_fbank": False,
    },
    # NVIDIA NeMo, collections/asr/parts/preprocessing/features.py, FilterbankFeatures
    "nemo": {
        **_STFT,
        **_SLANEY,
        "frame_length": 20.0,
        "window_periodic": False,
        "preemphasis_coefficient": 0.97,
        "preemphasis_over": "waveform",
        "pad_mode": "constant",
        "drop_last_frame": True,
        "num_mel_bins": 64,
        "log_floor": 0.0,
        "log_offset": 2.0**-24,
        "norm_per_feature": True,
    },
    # python_speech_features/base.py, logfbank
    "python_speech_features": {
        "window_type": "rectangular",
        "preemphasis_over": "waveform",
        "pad_tail": True,
        "remove_dc_offset": False,
        "divide_by_n_fft": True,
        "num_mel_bins": 26,
        "low_freq": 0.0,
        "triangle_axis": "bins",
        "log_floor": 2.0**-52,
        "floor_zeros_only": True,
    },
    # tensorflow/models, research/audioset/vggish/mel_features.py and vggish_params.py
    "vggish": {
        **_PLAIN,
        "use_power": False,
        "num_mel_bins": 64,
        "low_freq": 125.0,
        "high_freq": 7500.0,
        "log_floor": 0.0,
        "log_offset": 0.01,
    },
    # openai/whisper, audio.py; transformers, feature_extraction_whisper.py
    "whisper": {
        **_STFT,
        **_SLANEY,
        "window_size": 400,
        "window_shift": 160,
        "n_fft": 400,
        "pad_mode": "reflect",
        "drop_last_frame": True,
        "num_mel_bins": 80,
        "log_type": "log10",
        "log_floor": 1e-10,
        "top_db": 80.0,
        "output_shift": 4.0,
        "output_scale": 0.25,
    },
}
"""Each convention's changes to the defaults, with its source; sizes may be in samples."""
