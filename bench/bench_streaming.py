"""A model on a stream: from the last chunk's arrival to the decision, and what batches gain.

Beside it, what one would run otherwise: transformers' extractor and model on the whole window,
each time. Both have the same random weights, and their probabilities are compared before they are
timed. `extra_info` has milliseconds to a decision, milliseconds of a chunk between decisions, how
many times as fast ours is, and the share of time that one decision a second takes. On two cores
with AVX2 the whole takes about two minutes, most of it for AST-base, which has one turn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ast_fast.classifier import Classifier, load_any_classifier
from ast_fast.streaming import StreamingClassifier
from ast_fast_kernels.testing.timing import interleaved_medians
from bench import page_streaming
from bench.turns import medians_of_calls

transformers = pytest.importorskip("transformers")

RATE, CHUNK = 16000, 1600
"""Hz; samples of a chunk: 100 ms."""
SIZES: dict[str, dict[str, Any]] = {
    "our-default-5s": {
        "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3,
        "intermediate_size": 768, "frequency_stride": 16, "time_stride": 16, "max_length": 498,
        "num_labels": 50, "problem_type": "single_label_classification",
    },
    "base-10s": {"num_labels": 527, "problem_type": "multi_label_classification"},
}  # fmt: skip
"""Sizes of models: those of this program's defaults, and those of AudioSet's published AST."""
WITHIN = 1e-4
"""Largest difference of probabilities: two filterbanks in float32 differ in quiet bins."""
BATCHES = (1, 8)


@pytest.fixture(scope="module", params=SIZES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, as transformers writes it."""
    torch.manual_seed(0)
    config = transformers.ASTConfig(**SIZES[request.param])
    to: Path = tmp_path_factory.mktemp(request.param)
    transformers.ASTForAudioClassification(config).save_pretrained(to)
    transformers.ASTFeatureExtractor(max_length=config.max_length).save_pretrained(to)
    return to


@pytest.fixture
def classifier(folder: Path) -> Classifier:
    return load_any_classifier(folder, torch.device("cpu")).ready()


@pytest.fixture
def on_whole_windows(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function for the probabilities of a window, by transformers alone."""
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    model = transformers.ASTForAudioClassification.from_pretrained(
        folder, attn_implementation="sdpa"
    ).eval()
    several = model.config.problem_type == "multi_label_classification"

    def run(window: np.ndarray) -> np.ndarray:
        inputs = extractor(window, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs).logits[0]
        return np.asarray(logits.sigmoid() if several else logits.softmax(dim=0))

    return run


@pytest.mark.benchmark(group="streaming")
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_decision(
    benchmark: Any, classifier: Classifier, on_whole_windows: Callable[[np.ndarray], np.ndarray],
    clips: np.ndarray, threads: int, rounds: int,
) -> None:  # fmt: skip
    """One decision on a whole window, of which all but the last chunk has arrived before."""
    samples = clips[:3].reshape(-1).astype(np.float32) / 32768
    length = round(classifier.config.audio.clip_seconds * RATE)
    window, chunk = samples[:length], samples[length : length + CHUNK]
    waiting, deciding = (
        StreamingClassifier(classifier, every=every) for every in (3600.0, CHUNK / RATE)
    )
    (first,) = deciding.accept_waveform(window)
    waiting.accept_waveform(window)
    assert np.abs(first.probabilities - on_whole_windows(window)).max() <= WITHIN

    def decide() -> None:
        (_,) = deciding.accept_waveform(chunk)

    ways = {"transformers": lambda: on_whole_windows(window), "ours": decide}
    rounds = 1 if classifier.config.model.embed_dim >= 768 else rounds  # seconds a decision
    medians, _ = medians_of_calls(benchmark, ways, rounds)
    features = interleaved_medians({"chunk": lambda: waiting.accept_waveform(chunk)}, rounds=50)
    benchmark.extra_info |= {
        "rounds": rounds,
        "milliseconds": {name: 1e3 * seconds for name, seconds in medians.items()},
        "milliseconds_of_a_chunk": 1e3 * features["chunk"],
        "ours_is_faster_by": {"transformers": medians["transformers"] / medians["ours"]},
        "busy_at_one_a_second": medians["ours"] + (RATE / CHUNK - 1) * features["chunk"],
    }
    page_streaming.decision_table([benchmark.params | benchmark.extra_info])


@pytest.mark.benchmark(group="batches")
@pytest.mark.parametrize("folder", ["our-default-5s"], indirect=True)
def test_batch(
    benchmark: Any, classifier: Classifier, clips: np.ndarray, threads: int, rounds: int
) -> None:
    """16 clips, so many at a time."""
    windows = torch.from_numpy(clips[:16])

    def run(batch: int) -> torch.Tensor:
        return torch.cat([classifier.probabilities(part) for part in windows.split(batch)])

    for batch in BATCHES:
        torch.testing.assert_close(run(batch), run(1))
    calls = {str(batch): partial(run, batch) for batch in BATCHES}
    medians, _ = medians_of_calls(benchmark, calls, rounds)
    benchmark.extra_info |= {
        "clips_per_second": {batch: len(windows) / medians[batch] for batch in medians},
        "faster_than_one_at_a_time": {batch: medians["1"] / medians[batch] for batch in medians},
    }
    page_streaming.batch_table([benchmark.params | benchmark.extra_info])
