"""FBANK against what a user would run otherwise: 5 s clips, the AST's convention, 128 bins.

Every case first compares its features with ours, then times itself and ours in turns; the ratio of
the medians is in `extra_info["ours_is_faster_by"]`.
"""

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.testing.timing import interleaved_medians

CONFIG = FbankConfig()
ROUNDS = 15
LARGEST_DIFFERENCE = 4e-3  # log-mel, what float32 allows between two right answers

Run = Callable[[], torch.Tensor]


def ours(waveforms: torch.Tensor) -> Run:
    return lambda: fbank(waveforms, CONFIG, backend="numba")


def reference(waveforms: torch.Tensor) -> Run:
    """Plain torch, batched, tables cached."""
    return lambda: fbank(waveforms, CONFIG, backend="reference")


def kaldi_recipe(waveforms: torch.Tensor) -> Run:
    """The same clip by clip, as `torchaudio.compliance.kaldi.fbank` has to be called."""
    return lambda: torch.stack([fbank(clip, CONFIG, backend="reference") for clip in waveforms])


def transformers_extractor(waveforms: torch.Tensor) -> Run:
    """ASTFeatureExtractor; without torchaudio it runs its numpy path."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed: pip install -e '.[test]'")
    from transformers import ASTFeatureExtractor

    num_frames = CONFIG.num_frames(waveforms.shape[1])
    extractor = ASTFeatureExtractor(max_length=num_frames, do_normalize=False)
    clips = list(waveforms.numpy())

    def run() -> torch.Tensor:
        return torch.from_numpy(
            np.asarray(extractor(clips, sampling_rate=16000, return_tensors="np")["input_values"])
        )

    return run


BASELINES = {
    "reference-batched": reference,
    "reference-clip-by-clip": kaldi_recipe,
    "transformers-ASTFeatureExtractor": transformers_extractor,
}


@pytest.fixture(params=[1, 64], ids=["1-clip", "64-clips"])
def waveforms(request: pytest.FixtureRequest, clips: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(clips[: request.param].astype(np.float32) / 32768)


def record(benchmark, run: Run, waveforms: torch.Tensor) -> None:
    out = benchmark(run)
    seconds = benchmark.stats.stats.median if benchmark.stats else None
    if seconds:
        moved = waveforms.numel() * waveforms.element_size() + out.numel() * out.element_size()
        benchmark.extra_info["clips_per_second"] = len(waveforms) / seconds
        benchmark.extra_info["gigabytes_per_second"] = moved / seconds / 1e9


@pytest.mark.benchmark(group="fbank")
def test_ours(benchmark, waveforms: torch.Tensor, threads: int) -> None:
    exact = fbank(waveforms.double(), CONFIG, backend="reference")
    assert (ours(waveforms)() - exact).abs().max() < LARGEST_DIFFERENCE
    record(benchmark, ours(waveforms), waveforms)


@pytest.mark.benchmark(group="fbank")
@pytest.mark.parametrize("name", BASELINES)
def test_baseline(benchmark, name: str, waveforms: torch.Tensor, threads: int) -> None:
    baseline = BASELINES[name](waveforms)
    fast = ours(waveforms)
    assert (fast() - baseline()).abs().max() < 2 * LARGEST_DIFFERENCE
    rounds = 3 if name.startswith("transformers") else ROUNDS
    medians = interleaved_medians({"ours": fast, "theirs": baseline}, rounds=rounds)
    benchmark.extra_info["ours_is_faster_by"] = medians["theirs"] / medians["ours"]
    record(benchmark, baseline, waveforms)
