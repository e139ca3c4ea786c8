"""A stream's decisions are what the model says of each window, however the stream is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from ast_fast.classifier import Classifier
from ast_fast.data.audio import as_int16
from ast_fast.features import Statistics, log_mel
from ast_fast.machine.device import Placement
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.predict import classify
from ast_fast.settings.config import AudioConfig, Config, FeatureConfig, ModelConfig
from ast_fast.streaming import Decision, StreamingClassifier
from ast_fast_kernels import FbankConfig, fbank, resample, use_backend

RATE = 16000
CLIP = 4800
"""Samples of the model's clip, 0.3 s; features are padded from 28 to 32 frames."""
TRAINED_HERE = FeatureConfig(target_frames=32)
BY_OTHERS = FeatureConfig(target_frames=32, norm_per_sample=False, padding="zero")


class Recorder(Classifier):
    """A classifier that keeps the features that it was given."""

    def outputs(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what comes, then classify it."""
        seen.append(windows[0].numpy())
        return super().outputs(windows)


seen: list[np.ndarray] = []


def build(
    features: FeatureConfig = TRAINED_HERE,
    fbank: FbankConfig | None = None,
    kind: type[Classifier] = Classifier,
) -> Classifier:
    """Return a model with random weights, none of which is its initial value."""
    config = Config(
        audio=AudioConfig(clip_seconds=CLIP / RATE, resample_quality="hq"),
        features=features,
        fbank=fbank or FbankConfig(),
        model=ModelConfig(embed_dim=16, num_heads=2, depth=1),
    )
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer(
        config.model, num_mel_bins=128, num_frames=32, num_classes=5
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    shortest = None if features is TRAINED_HERE else config.fbank.window_size
    placement = Placement(torch.device("cpu"), None)
    return kind(model, config, list("abcde"), Statistics(-5.0, 4.0), placement, shortest=shortest)


def sound(num_samples: int) -> np.ndarray:
    """Return noise that grows, so that each window has a level of its own."""
    noise = np.random.default_rng(0).normal(0, 3000, num_samples)
    return (noise * np.linspace(0.1, 2, num_samples)).astype(np.int16)


def run(stream: StreamingClassifier, waveform: np.ndarray, chunk: int) -> list[Decision]:
    found = []
    for first in range(0, len(waveform), chunk):
        found += stream.accept_waveform(waveform[first : first + chunk])
    return found + stream.finish()


def check(decisions: list[Decision], classifier: Classifier, waveform: np.ndarray) -> None:
    """Compare with the classifier on the samples of each window, padded as a file's are."""
    least = classifier.shortest or CLIP
    for decision in decisions:
        window = waveform[round(decision.start * RATE) : round(decision.end * RATE)]
        padded = np.pad(window, (0, max(least - len(window), 0)))
        embeddings, probabilities = classifier.outputs(torch.from_numpy(padded[None]))
        np.testing.assert_array_equal(decision.probabilities, probabilities[0])
        np.testing.assert_array_equal(decision.embedding, embeddings[0])


@pytest.mark.parametrize(
    ("features", "chunk", "dtype"),
    [
        (TRAINED_HERE, 1600, "int16"),
        (TRAINED_HERE, 12007, "int16"),
        (TRAINED_HERE, 79, "float32"),
        (TRAINED_HERE, 1600, "tensor"),
        (BY_OTHERS, 79, "int16"),
        (BY_OTHERS, 1600, "float64"),
    ],
)
def test_decisions_are_the_classifiers_on_each_window(
    features: FeatureConfig, chunk: int, dtype: str
) -> None:
    classifier, waveform = build(features), sound(12007)
    given: Any = waveform if dtype == "int16" else waveform / np.float64(32768)
    if dtype == "float32":
        given = given.astype(np.float32)
    if dtype == "tensor":
        given = torch.from_numpy(given)
    decisions = run(StreamingClassifier(classifier, every=0.1), given, chunk)
    # The last ends with the stream, at a frame's beginning: 12007 samples have 73 frames.
    assert [decision.start for decision in decisions] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4, 0.45]
    )
    ends = [0.3, 0.4, 0.5, 0.6, 0.7, 12007 / RATE]
    assert [decision.end for decision in decisions] == pytest.approx(ends)
    check(decisions, classifier, waveform)
    assert decisions[0].probabilities.shape == (5,)
    assert decisions[0].embedding.shape == (16,)
    assert len({decision.probabilities.tobytes() for decision in decisions}) == len(decisions)


@pytest.mark.parametrize("features", [TRAINED_HERE, BY_OTHERS], ids=["own-norm", "statistics"])
def test_the_first_decisions_can_be_on_what_there_is(features: FeatureConfig) -> None:
    classifier, waveform = build(features), sound(8000)
    stream = StreamingClassifier(classifier, every=0.1, first=0.05)
    decisions = run(stream, waveform, 100)
    assert [decision.end for decision in decisions] == pytest.approx(
        [0.05, 0.15, 0.25, 0.35, 0.45, 0.5]
    )
    assert [decision.start for decision in decisions] == pytest.approx([0, 0, 0, 0.05, 0.15, 0.2])
    check(decisions, classifier, waveform)


@pytest.mark.parametrize("features", [TRAINED_HERE, BY_OTHERS], ids=["own-norm", "statistics"])
@pytest.mark.parametrize("num_samples", [100, 3001, CLIP])
def test_a_stream_no_longer_than_a_window_is_classified_as_a_file(
    features: FeatureConfig, num_samples: int, tmp_path: Path
) -> None:
    classifier, waveform = build(features), sound(num_samples)
    soundfile.write(tmp_path / "a.wav", waveform, RATE, "PCM_16")
    (decision,) = run(StreamingClassifier(classifier), waveform, 1000)
    (file,) = classify(classifier, [tmp_path / "a.wav"], 1)
    np.testing.assert_array_equal(decision.probabilities, file.probabilities.astype(np.float32))
    assert (decision.start, decision.end) == (0, num_samples / RATE)


def test_another_sample_rate_is_resampled_as_files_are() -> None:
    classifier, waveform = build(), sound(44100)
    stream = StreamingClassifier(classifier, every=0.2, sample_rate=44100.0)
    decisions = run(stream, waveform, 441)
    assert len(decisions) == 5
    assert decisions[-1].end == 1.0
    check(decisions, classifier, as_int16(np.asarray(resample(waveform, 44100, RATE))))


def test_frames_that_reach_beyond_a_window_have_the_samples_that_are_there() -> None:
    """Two frames of a centred filterbank do; nothing else differs, and the end is a clip's."""
    classifier = build(fbank=FbankConfig(snip_edges=False, center=True), kind=Recorder)
    waveform = sound(8000)
    seen.clear()
    with use_backend("reference"):
        decisions = run(StreamingClassifier(classifier, every=0.1), waveform, 500)
        given = seen.copy()
        starts = [round(decision.start * RATE) for decision in decisions]
        windows = torch.from_numpy(np.stack([waveform[s : s + CLIP] for s in starts]))
        clips = log_mel(windows, classifier.config).numpy()
    assert starts == [0, 1600, 3200]
    np.testing.assert_allclose(given[0], clips[0], atol=1e-4)
    for ours, clip in zip(given[1:], clips[1:], strict=True):
        np.testing.assert_allclose(ours[2:], clip[2:], atol=1e-4)
        assert np.abs(ours[:2] - clip[:2]).max(axis=1).min() > 0.1


def test_a_constant_offset_of_a_clip_is_no_feature() -> None:
    """The original AST subtracts a clip's mean first, which a stream cannot know."""
    waveform = (sound(16000) / 32768 + 0.05).astype(np.float32)
    without = fbank(waveform - waveform.mean(dtype=np.float64).astype(np.float32))
    np.testing.assert_allclose(fbank(waveform), without, atol=2e-3)


def test_reset_begins_another_stream() -> None:
    classifier, waveform = build(), sound(6000)
    stream = StreamingClassifier(classifier, every=0.1, sample_rate=RATE)
    first = run(stream, waveform, 700)
    with pytest.raises(RuntimeError, match="finished"):
        stream.accept_waveform(waveform)
    stream.reset()
    stream.accept_waveform(waveform[::-1].copy())  # left unfinished
    stream.reset()
    again = run(stream, waveform, 900)
    assert [decision.end for decision in again] == [decision.end for decision in first]
    check(again, classifier, waveform)


class FailsOnce(Classifier):
    """A classifier whose n-th call fails, as where memory runs out."""

    def outputs(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Classify, unless this is the call that fails."""
        calls.append(len(calls))
        if len(calls) == fails_at[0]:
            raise RuntimeError("out of memory")
        return super().outputs(windows)


calls: list[int] = []
fails_at = [0]


@pytest.mark.parametrize(("number", "chunk"), [(1, 4000), (2, 12007), (5, 12007), (6, 4000)])
def test_a_decision_that_fails_is_made_by_the_next_call(number: int, chunk: int) -> None:
    """Six decisions, the last of which is the stream's end; none is lost, moved or made twice."""
    waveform, found = sound(12007), []
    stream = StreamingClassifier(build(kind=FailsOnce), every=0.1)
    calls.clear()
    fails_at[0] = number
    errors = []
    pieces = [waveform[first : first + chunk] for first in range(0, len(waveform), chunk)]
    for call in [*(lambda piece=piece: stream.accept_waveform(piece) for piece in pieces),
                 stream.finish]:  # fmt: skip
        try:
            found += call()
        except RuntimeError as error:
            errors.append(str(error))
    if number == 6:
        found += stream.finish()
    assert errors == ["out of memory"]
    assert len(calls) == 7
    ends = [0.3, 0.4, 0.5, 0.6, 0.7, 12007 / RATE]
    assert [decision.end for decision in found] == pytest.approx(ends)
    check(found, build(), waveform)
    with pytest.raises(RuntimeError, match="finished"):
        stream.finish()


def test_a_call_without_samples_repeats_a_decision_and_reset_forgets_it() -> None:
    stream = StreamingClassifier(build(kind=FailsOnce), every=0.1, sample_rate=48000)
    waveform = np.repeat(sound(8000), 3)
    for fails in (2, 0):
        calls.clear()
        fails_at[0] = fails
        stream.reset()
        if fails:
            with pytest.raises(RuntimeError, match="out of memory"):
                stream.accept_waveform(waveform)
            again = stream.accept_waveform(waveform[:0])
        else:
            whole = stream.accept_waveform(waveform)
    assert [decision.end for decision in again] == [0.3, 0.4] == [one.end for one in whole]
    for ours, wanted in zip(again, whole, strict=True):
        np.testing.assert_array_equal(ours.probabilities, wanted.probabilities)


def test_a_stream_that_is_behind_can_make_the_newest_decision_alone() -> None:
    classifier, waveform = build(kind=FailsOnce), sound(12007)
    stream = StreamingClassifier(classifier, every=0.1, newest_only=True)
    calls.clear()
    fails_at[0] = 2
    found = stream.accept_waveform(waveform[:4000])
    assert found == []
    found += stream.accept_waveform(waveform[4000:7000])  # due at 0.3 and 0.4 s
    with pytest.raises(RuntimeError, match="out of memory"):
        stream.accept_waveform(waveform[7000:8100])  # at 0.5 s
    found += stream.accept_waveform(waveform[8100:9700])  # at 0.5 and 0.6 s
    assert stream.accept_waveform(waveform[9700:11000]) == []
    found += stream.accept_waveform(waveform[11000:])  # at 0.7 s
    found += stream.finish()
    ends = [0.4, 0.6, 0.7, 12007 / RATE]
    assert [decision.end for decision in found] == pytest.approx(ends)
    assert len(calls) == 5
    check(found, classifier, waveform)
    stream.reset()
    assert stream.accept_waveform(waveform[:100]) == []
    assert [decision.end for decision in stream.finish()] == [100 / RATE]


def test_times_of_a_stream_of_years_are_those_of_its_samples() -> None:
    stream = StreamingClassifier(build(), every=0.1)
    number = 10**9  # three years
    assert stream._end(number) == CLIP + 1600 * number
    assert (CLIP + 1600 * number) / RATE == 0.3 + 10.0**8


def test_a_long_stream_holds_a_window_of_frames() -> None:
    stream = StreamingClassifier(build(), every=60.0)
    for _ in range(500):
        stream.accept_waveform(np.zeros(16, np.int16))
    assert list(map(len, stream._frames)) == [1] * stream._window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0.001}, r"every must be at least a frame's shift, 0\.01 s, got 0\.001"),
        ({"every": float("nan")}, r"every must be .* got nan"),
        ({"every": float("inf")}, r"every must be .* got inf"),
        ({"first": 0.0}, r"first must be above 0 and at most a clip, 0\.3 s, got 0\.0"),
        ({"first": 0.31}, r"first must be .* got 0\.31"),
        ({"sample_rate": 0}, r"sample_rate must be a whole number of Hz from 1 to 1000000, got 0"),
        ({"sample_rate": 44100.5}, r"sample_rate must be .* got 44100\.5"),
        ({"sample_rate": "16k"}, r"sample_rate must be .* got '16k'"),
        ({"quality": "HQ"}, r"quality must be one of .* got 'HQ'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamingClassifier(build(), **changes)


def test_a_filterbank_that_needs_the_whole_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="top_db"):
        StreamingClassifier(build(fbank=FbankConfig(top_db=80.0)))


@pytest.mark.parametrize(
    ("chunk", "kind", "message"),
    [
        (np.zeros((160, 1), np.float32), ValueError, r"\(num_samples,\), .* got \(160, 1\)"),
        (np.float32(0), ValueError, r"waveform must be \(num_samples,\), of one channel, got \(\)"),
        (np.array([0.0, np.nan]), ValueError, "waveform must be finite, got NaN or infinity"),
        (np.zeros(160, np.int32), TypeError, "waveform must be float32, float64, int16, got int32"),
        ([0.0] * 160, TypeError, "waveform must be a tensor or a numpy array, got list"),
    ],
)
def test_a_chunk_that_is_no_sound_is_refused(
    chunk: Any, kind: type[Exception], message: str
) -> None:
    stream = StreamingClassifier(build())
    with pytest.raises(kind, match=message):
        stream.accept_waveform(chunk)
    with pytest.raises(RuntimeError, match="empty"):
        stream.finish()
