"""Drop-ins for streaming libraries, called as their users call them: samples in, frames out.

Both take turns in one run, as in bench_projects.py, on one thread: the library has no more.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

import ast_fast_kernels.compat.kaldi_native_fbank as ours
from ast_fast_kernels import FbankConfig
from bench.bench_fbank import check, make_inputs
from bench.bench_projects import INT16_RANGE, compare, count, features_of
from bench.peers import local

RATE = 16000
CHUNKS = {"whole-clip": None, "100-ms": 1600, "10-ms": 160}
"""Samples of a call; None is all of a clip's."""


def stream(module: ModuleType, chunk: int | None, kind: type) -> Callable[..., np.ndarray]:
    """Return a function for the features of a clip, (1, samples), frame by frame."""
    options = module.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80

    def run(batch: np.ndarray) -> np.ndarray:
        online, clip = module.OnlineFbank(options), batch[0]
        frames, size = [], chunk or len(clip)
        for at in range(0, len(clip), size):
            samples = clip[at : at + size]
            online.accept_waveform(RATE, samples.tolist() if kind is list else samples)
            while len(frames) < online.num_frames_ready:
                frames.append(online.get_frame(len(frames)))
        online.input_finished()
        return np.stack(frames)[None]

    return run


@pytest.mark.benchmark(group="kaldi-native-fbank")
@pytest.mark.parametrize("threads", [1], indirect=True, ids=["1-thread"])
@pytest.mark.parametrize("kind", [np.ndarray, list], ids=["arrays", "lists"])
@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_kaldi_native_fbank(
    benchmark, request, clips: np.ndarray, chunk: int | None, kind: type, threads: int
) -> None:
    """Take a clip in calls of one size, and every frame as soon as it is ready."""
    library = pytest.importorskip(
        "kaldi_native_fbank",
        reason="kaldi-native-fbank is not installed: pip install -e '.[bench]'",
    )
    inputs = [INT16_RANGE * clip for clip in make_inputs(clips, 1, "float32")]
    ways = {
        "ours": local(stream(ours, chunk, kind), inputs, threads),
        "kaldi-native-fbank": local(stream(library, chunk, kind), inputs, threads),
    }
    config = FbankConfig.preset("kaldi", num_mel_bins=80)
    check(features_of(ways["ours"]), features_of(ways["kaldi-native-fbank"]), config)
    compare(benchmark, request.config, ways, count(inputs), "numba")
