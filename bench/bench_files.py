"""From files to features: 16 clips of 5 s, against soundfile, soxr HQ and torchaudio's kaldi.fbank.

The other way reads float32, takes the mean of two channels, resamples, and computes AST's features.
torchaudio's part runs in its own interpreter and is timed there; files are in the page cache. Two
threads are compared with one of ours. `extra_info` is that of bench_projects.py.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from ast_fast_kernels import FbankConfig, fbank_files
from ast_fast_kernels.testing.signals import make_signal
from bench import torchaudio_client
from bench.bench_projects import compare, features_of
from bench.turns import Way, settle

AST = FbankConfig()
MANY, SECONDS = 16, 5
KINDS = {
    "wav-16000": ("WAV", "PCM_16", 16000, 1),
    "wav-44100": ("WAV", "PCM_16", 44100, 1),
    "wav-44100-stereo": ("WAV", "PCM_16", 44100, 2),
    "flac-44100": ("FLAC", "PCM_16", 44100, 1),
    "ogg-44100": ("OGG", "VORBIS", 44100, 1),
    "mp3-44100": ("MP3", "MPEG_LAYER_III", 44100, 1),
}
RESAMPLED = 2e-4
"""Mean difference of log-mel features between two good resamplers, in the bins below both bands."""
BELOW_EDGE = 118
"""Bins below 7.0 kHz."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def paths(kind: str, tmp_path: Path) -> list[Path]:
    file_format, subtype, rate, channels = KINDS[kind]
    made = []
    for number in range(MANY):
        wave = make_signal("bursts", SECONDS * rate, seed=number)
        if channels == 2:
            wave = np.stack([wave, 0.5 * np.roll(wave, 20)], axis=1)
        made.append(tmp_path / f"{number}.{file_format.lower()}")
        soundfile.write(made[-1], wave, rate, format=file_format, subtype=subtype)
    return made


def decoded(path: Path) -> np.ndarray:
    """Return a waveform as soundfile and soxr give it."""
    wave, rate = soundfile.read(path, dtype="float32")
    if wave.ndim == 2:  # a tenth of the time of wave.mean(axis=1)
        wave = (wave[:, 0] + wave[:, 1]) / 2
    return wave if rate == 16000 else soxr.resample(wave, rate, 16000, quality="HQ")


def theirs(paths: list[Path], folder: Path) -> dict[str, Way]:
    """Return the other way: what is timed here, and what torchaudio's interpreter times."""
    waves = [decoded(path)[None] for path in paths]
    shortest = min(wave.shape[1] for wave in waves)
    named = torchaudio_client.ways("kaldi.fbank", [wave[:, :shortest] for wave in waves], 1, folder)
    fbank = named["clip by clip"]

    def turn() -> float:
        begin = time.perf_counter()
        for path in paths:
            decoded(path)
        here = time.perf_counter() - begin
        fbank.settle()
        return here + fbank.seconds()

    return {"soundfile, soxr and torchaudio": Way(turn, fbank.features, 1, fbank.settle)}


def ours(paths: list[Path], threads: int) -> Way:
    def features() -> np.ndarray:
        return np.stack([found.features for found in fbank_files(paths, AST, threads=threads)])

    def turn() -> None:
        for _ in fbank_files(paths, AST, threads=threads):
            pass

    return Way(turn, features, threads, settle)


@pytest.mark.benchmark(group="files")
def test_files_to_features(benchmark, request, tmp_path: Path, kind: str, paths: list[Path]):
    ways = {"ours": ours(paths, 1), "ours on 2 threads": ours(paths, 2), **theirs(paths, tmp_path)}
    features, by_two, expected = (features_of(way) for way in ways.values())
    np.testing.assert_array_equal(features, by_two)
    frames = expected.shape[1]
    difference = features[:, :frames, :BELOW_EDGE] - expected[..., :BELOW_EDGE]
    assert np.abs(difference).mean() <= RESAMPLED
    compare(benchmark, request.config, ways, MANY, "numba")
