"""Drop-ins for lhotse's and speechbrain's filterbanks, called as these libraries call them.

All candidates of a case take turns in one run, as in bench_projects.py, whose `extra_info` these
cases have too. speechbrain runs in the interpreter that has torchaudio, if it is installed there.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ast_fast_kernels import FbankConfig, chosen_backend
from ast_fast_kernels.compat.speechbrain import Fbank
from bench.bench_fbank import check, make_inputs
from bench.bench_projects import compare, count, features_of, torchaudio
from bench.peers import local
from bench.turns import Way

LHOTSE = FbankConfig.preset("lhotse")
RATE = 16000
MANY = 16

calls = pytest.mark.parametrize("waveforms", [1, MANY], ids=["1-clip", f"{MANY}-clips"])


@pytest.fixture
def extractors() -> dict[str, Any]:
    """Return ours and lhotse's, in this order."""
    lhotse = pytest.importorskip(
        "lhotse", reason="lhotse is not installed: pip install -e '.[bench]'"
    )
    from ast_fast_kernels.compat.lhotse import Fbank as Ours

    return {"ours": Ours(), "lhotse": lhotse.Fbank()}


def extract(extractor: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a call for one clip, as a cut's `compute_features` makes it, or for a list of many."""

    def run(batch: np.ndarray) -> np.ndarray:
        if len(batch) == 1:
            return extractor.extract(batch, RATE)[None]
        return extractor.extract_batch(list(batch), RATE)

    return run


@pytest.mark.benchmark(group="compat-lhotse")
@calls
def test_lhotse_extracts(
    benchmark, request, clips: np.ndarray, extractors: dict[str, Any], waveforms: int, threads: int
) -> None:
    inputs = make_inputs(clips, waveforms, "float32")
    ways = {name: local(extract(one), inputs, threads) for name, one in extractors.items()}
    check(*(features_of(way) for way in ways.values()), LHOTSE)
    compare(benchmark, request.config, ways, count(inputs), chosen_backend("fbank", inputs[0]))


@pytest.mark.benchmark(group="compat-lhotse-ragged")
def test_lhotse_extracts_clips_of_several_lengths(
    benchmark, request, clips: np.ndarray, extractors: dict[str, Any], threads: int
) -> None:
    """Compare all but the last two frames, which lhotse pads with zeros in a shorter clip."""
    lengths = np.linspace(RATE, clips.shape[1], MANY).astype(int)
    waves = clips[:MANY].astype(np.float32) / 32768
    listed = [wave[:length] for wave, length in zip(waves, lengths, strict=True)]

    def way(extractor: Any) -> Way:
        def features() -> np.ndarray:
            return np.concatenate([one[:-2] for one in extractor.extract_batch(listed, RATE)])

        return Way(lambda: extractor.extract_batch(listed, RATE) and None, features, threads)

    ways = {name: way(one) for name, one in extractors.items()}
    check(*(features_of(way)[None] for way in ways.values()), LHOTSE)
    compare(benchmark, request.config, ways, MANY, chosen_backend("fbank", waves))


@pytest.mark.benchmark(group="compat-lhotse-cuts")
def test_lhotse_stores_features_of_cuts(
    benchmark, request, clips: np.ndarray, extractors: dict[str, Any], threads: int
) -> None:
    """Compute and store: each cut is decoded from a WAV in memory, and its features stay there."""
    import lhotse
    from lhotse.features.io import MemoryRawWriter

    def cut(samples: np.ndarray, name: str) -> Any:
        memory = io.BytesIO()
        soundfile.write(memory, samples, RATE, format="WAV", subtype="PCM_16")
        return lhotse.Recording.from_bytes(memory.getvalue(), name).to_cut()

    cuts = lhotse.CutSet.from_cuts([cut(clip, str(i)) for i, clip in enumerate(clips[:MANY])])

    def way(extractor: Any) -> Way:
        def store() -> Any:
            return cuts.compute_and_store_features(
                extractor, "", storage_type=MemoryRawWriter, progress_bar=False
            )

        def turn() -> None:
            store()

        return Way(turn, lambda: np.stack([one.load_features() for one in store()]), threads)

    ways = {name: way(one) for name, one in extractors.items()}
    check(*(features_of(way) for way in ways.values()), LHOTSE)
    compare(
        benchmark, request.config, ways, MANY, chosen_backend("fbank", clips[:1].astype(np.float32))
    )


SPEECHBRAINS: dict[str, dict[str, Any]] = {
    "default": {},
    "80-mels": {"n_mels": 80},
    "deltas-and-context": {"deltas": True, "context": True},
}
"""Arguments of recipes: the default of 40 filters, ECAPA-TDNN's 80, and a front end of before."""


@pytest.mark.benchmark(group="compat-speechbrain")
@calls
@pytest.mark.parametrize("recipe", SPEECHBRAINS)
def test_speechbrain(
    benchmark, request, tmp_path: Path, clips: np.ndarray, recipe: str, waveforms: int, threads: int
) -> None:
    options = SPEECHBRAINS[recipe]
    module = Fbank(**options)
    inputs = make_inputs(clips, waveforms, "float32")
    ways = {
        "ours": local(lambda batch: module(torch.from_numpy(batch)).numpy(), inputs, threads),
        **torchaudio("speechbrain.Fbank", inputs, threads, tmp_path, **options),
    }
    if "torchaudio" in ways:
        ways["speechbrain"] = ways.pop("torchaudio")
        features, expected = (features_of(way) for way in ways.values())
        assert np.abs(features - expected).max() / module.config.log_factor <= 4e-3
    backend = chosen_backend("fbank", torch.from_numpy(inputs[0]), module.config)
    compare(benchmark, request.config, ways, count(inputs), backend)
