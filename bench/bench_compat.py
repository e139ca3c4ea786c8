"""Drop-ins of `ast_fast_kernels.compat` beside the objects that they stand for.

Both run one clip of 10 s at the extractor's rate, given as an array, and return tensors; they take
turns as in bench_projects.py. transformers computes AST's and Speech2Text's features by torchaudio
where that is installed, and by numpy where it is not. `extra_info` is as there, and has

- library: how transformers computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.bench_fbank import LARGEST_DIFFERENCE, MEAN_DIFFERENCE
from bench.bench_projects import compare, features_of
from bench.peers import local

EXTRACTORS = (
    "ASTFeatureExtractor",
    "ClapFeatureExtractor",
    "SeamlessM4TFeatureExtractor",
    "Speech2TextFeatureExtractor",
    "SpeechT5FeatureExtractor",
    "WhisperFeatureExtractor",
)
SECONDS = 10
PER_LOG = {"ClapFeatureExtractor": 10 / np.log(10)}
"""How much features grow with the natural logarithm of an energy, where it is more than 1."""


@pytest.mark.benchmark(group="compat-transformers")
@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractor(benchmark, request, clips: np.ndarray, name: str, threads: int) -> None:
    """Call an extractor for one clip; SpeechT5's for the features of a target."""
    theirs = pytest.importorskip("transformers")
    from ast_fast_kernels.compat import transformers as ours

    extractors = {"ours": getattr(ours, name)(), "transformers": getattr(theirs, name)()}
    rate = extractors["ours"].sampling_rate
    samples = clips.astype(np.float32).reshape(-1) / 32768
    inputs = [np.resize(samples, (1, SECONDS * rate))]
    argument = "audio_target" if name == "SpeechT5FeatureExtractor" else "raw_speech"

    def run(extractor: Any) -> Any:
        return lambda batch: next(
            iter(extractor(**{argument: batch}, sampling_rate=rate, return_tensors="pt").values())
        )

    ways = {side: local(run(extractor), inputs, threads) for side, extractor in extractors.items()}
    difference = np.abs(features_of(ways["ours"]) - features_of(ways["transformers"]))
    scale = PER_LOG.get(name, 1.0)
    assert difference.max() <= scale * LARGEST_DIFFERENCE
    assert difference.mean() <= scale * MEAN_DIFFERENCE
    by_torchaudio = not hasattr(extractors["transformers"], "mel_filters")
    benchmark.extra_info |= {
        "library": "torchaudio" if by_torchaudio else "torch" if "Whisper" in name else "numpy",
        "difference": float(difference.max()),
    }
    compare(benchmark, request.config, ways, 1, "numba")
