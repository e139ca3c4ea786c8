"""transformers' extractors of log-mel features, computed by our filterbank.

Each class has its library's name, arguments, defaults, errors and warnings, and gives what it gives
but for float rounding. It subclasses the library's class, which it imports when it is first asked
for; so it reads and writes the same `preprocessor_config.json`, and goes into processors and
pipelines.

Beyond the library, tensors are taken where arrays are, and mono as (1, num_samples) in a list. A
tensor or an array of two axes is a batch. A clip of several channels is an error, except in
`SeamlessM4TFeatureExtractor`, which takes the first, as the library does.

With `return_tensors="pt"` the features are the memory that the kernel wrote. Where an extractor's
`mel_filters` or `window` are not what our configuration says, they are taken as they are, by a
slower numpy path in float64. A torchaudio that cannot be imported counts as absent.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ast_fast_kernels.compat.transformers.audio_spectrogram import ASTFeatureExtractor
    from ast_fast_kernels.compat.transformers.clap import ClapFeatureExtractor
    from ast_fast_kernels.compat.transformers.seamless_m4t import SeamlessM4TFeatureExtractor
    from ast_fast_kernels.compat.transformers.speech_to_text import Speech2TextFeatureExtractor
    from ast_fast_kernels.compat.transformers.speecht5 import SpeechT5FeatureExtractor
    from ast_fast_kernels.compat.transformers.whisper import WhisperFeatureExtractor

__all__ = [
    "ASTFeatureExtractor",
    "ClapFeatureExtractor",
    "SeamlessM4TFeatureExtractor",
    "Speech2TextFeatureExtractor",
    "SpeechT5FeatureExtractor",
    "WhisperFeatureExtractor",
]

_HOMES = {
    "ASTFeatureExtractor": "audio_spectrogram",
    "ClapFeatureExtractor": "clap",
    "SeamlessM4TFeatureExtractor": "seamless_m4t",
    "Speech2TextFeatureExtractor": "speech_to_text",
    "SpeechT5FeatureExtractor": "speecht5",
    "WhisperFeatureExtractor": "whisper",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
