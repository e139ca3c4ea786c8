"""Conventions of other libraries: changes to `FbankConfig`'s defaults, and what follows of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

PresetName = Literal[
    "ast",
    "kaldi",
    "seed",
    "lhotse",
    "librosa",
    "melspectrogram",
    "nemo",
    "python_speech_features",
    "speechbrain",
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
        "dither_over": "waveform",
        "snip_edges": False,
        "left_padding": "lhotse",
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
        "n_fft": 2048,
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
        "whole_nyquist": True,
        "triangle_axis": "hertz",
        "use_log_fbank": False,
    },
    # NVIDIA NeMo, collections/asr/parts/preprocessing/features.py, FilterbankFeatures
    "nemo": {
        **_STFT,
        **_SLANEY,
        "frame_length": 20.0,
        "window_periodic": False,
        "dither_over": "waveform",
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
        "n_fft": 512,
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
    # speechbrain/lobes/features.py, Fbank; speechbrain/processing/features.py
    "speechbrain": {
        **_STFT,
        "n_fft": 400,
        "window_type": "hamming",
        "pad_mode": "constant",
        "num_mel_bins": 40,
        "whole_nyquist": True,
        "filter_shape": "symmetric",
        "triangle_axis": "hertz",
        "log_type": "db",
        "log_floor": 1e-10,
        "top_db": 80.0,
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
        "dither_over": "waveform",
        "pad_mode": "reflect",
        "drop_last_frame": True,
        "num_mel_bins": 80,
        "high_freq": 8000.0,
        "whole_nyquist": True,
        "log_type": "log10",
        "log_floor": 1e-10,
        "top_db": 80.0,
        "output_shift": 4.0,
        "output_scale": 0.25,
    },
}
"""Each convention's changes to the defaults, with its source; sizes may be in samples."""

ROUNDING: dict[str, Callable[[float], int]] = {
    "lhotse": math.floor,
    "nemo": math.floor,
    "python_speech_features": lambda samples: math.floor(samples + 0.5),
    "speechbrain": round,
    "vggish": round,
}
"""How a library makes whole samples of seconds times Hz; others truncate as `window_size` does."""


def follow(name: str, values: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return a preset's fields with those set that its library derives from others.

    Args:
        name: The preset.
        values: Its fields, changed; `window_size` and `window_shift` are there, in samples.
        changes: The fields that the caller set. They stay.
    Raises:
        ValueError: The library takes such a change to mean what no field says.
    """
    derived: dict[str, Any] = {}
    size, n_fft = values["window_size"], values.get("n_fft")
    sized = "window_size" in changes or "frame_length" in changes
    if name == "lhotse" and values["window_type"] == "blackman":
        derived["window_periodic"] = True  # its other windows are symmetric
    if name in _WINDOW_OF_FFT and n_fft is not None and not sized:
        derived["window_size"] = size = n_fft
    if name == "whisper" and sized:
        derived["n_fft"] = size
    if name == "melspectrogram" and not ("window_shift" in changes or "frame_shift" in changes):
        derived["window_shift"] = max(size // 2, 1)
    if name in _FRAMES_OF_FFT and not changes.get("center", True):
        derived["snip_edges"] = True
        if changes.get("snip_edges", True) and n_fft not in (None, size):
            raise ValueError(
                f"window_size must be n_fft ({n_fft}) when center is False in preset {name}, "
                f"which cuts frames of n_fft samples, got {size}"
            )
    return {**values, **{field: derived[field] for field in derived.keys() - changes.keys()}}


_WINDOW_OF_FFT = ("librosa", "melspectrogram", "whisper")
"""Presets whose window is as long as the FFT unless it is set."""

_FRAMES_OF_FFT = ("librosa", "melspectrogram")
"""Presets whose library takes center=False: frames then begin at the first sample."""
