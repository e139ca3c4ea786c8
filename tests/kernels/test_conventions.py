"""Every preset against the library whose convention it is: golden vectors, and live where it is."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.fbank.numba_cpu import unsupported
from ast_fast_kernels.fbank.presets import PRESETS
from ast_fast_kernels.testing import conventions
from ast_fast_kernels.testing.budgets import relative_norm
from ast_fast_kernels.testing.signals import make_signal

GOLDEN = Path(__file__).parents[1] / "golden"
with np.load(GOLDEN / "libraries.npz") as archive:
    OUTPUTS = dict(archive)
LIVE = {  # preset: module of its library
    "librosa": "librosa",
    "lhotse": "lhotse",
    "python_speech_features": "python_speech_features",
    "whisper": "transformers",
}

# Differences of natural logarithms, as between any two correct float32 implementations.
MAX_DIFFERENCE = 4e-3
MEAN_DIFFERENCE = 1e-5
# torchaudio's MelSpectrogram has its filters' edges in float32 Hz: 2⁻¹¹ Hz in triangles 40 wide.
RELATIVE_NORM = 2e-5


def load_recipes() -> ModuleType:
    path = GOLDEN / "make_library_golden.py"
    spec = importlib.util.spec_from_file_location("make_library_golden", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPES = load_recipes()


def assert_close(out: np.ndarray, expected: np.ndarray, config: FbankConfig) -> None:
    assert out.shape == expected.shape
    assert np.isfinite(out).all()
    if not config.use_log_fbank:
        assert relative_norm(torch.from_numpy(out), torch.from_numpy(expected)) <= RELATIVE_NORM
        return
    difference = np.abs(out.astype(np.float64) - expected) / config.log_factor
    assert difference.max() <= MAX_DIFFERENCE
    assert difference.mean() <= MEAN_DIFFERENCE


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("case", OUTPUTS)
def test_library_gives_the_same(case: str, backend: str) -> None:
    preset, name = case.split("/")
    config = FbankConfig.preset(preset)
    out = fbank(RECIPES.make_inputs()[name], config, backend=backend)
    assert_close(out, OUTPUTS[case], config)


def test_golden_vectors_cover_every_preset_but_kaldis_and_our_own() -> None:
    assert {case.split("/")[0] for case in OUTPUTS} == set(PRESETS) - {"ast", "kaldi", "seed"}
    versions = json.loads((GOLDEN / "libraries.json").read_text())
    assert versions.keys() >= {"librosa", "torchaudio", "torch"}


def live_recipe(preset: str):
    pytest.importorskip(LIVE[preset])
    return getattr(RECIPES, preset)


@pytest.mark.parametrize("preset", LIVE)
@pytest.mark.parametrize("num_samples", [16000, 16161])
@pytest.mark.parametrize("name", ["bursts", "noise", "impulse", "silence", "full_scale"])
def test_live_library_gives_the_same(preset: str, name: str, num_samples: int) -> None:
    recipe, config = live_recipe(preset), FbankConfig.preset(preset)
    waveform = make_signal(name, num_samples).astype(np.float32)
    assert_close(fbank(waveform, config), recipe(waveform), config)


@pytest.mark.data
@pytest.mark.parametrize("preset", LIVE)
def test_live_library_gives_the_same_on_real_clips(preset: str, clips: np.ndarray) -> None:
    recipe, config = live_recipe(preset), FbankConfig.preset(preset)
    assert_close(fbank(clips, config), np.stack([recipe(clip) for clip in clips]), config)


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("preset", PRESETS)
def test_ragged_batch_gives_each_clip_what_it_gives_alone(preset: str, backend: str) -> None:
    config = FbankConfig.preset(preset)
    counts = [9000, 7001, 1200, 0]
    waveform = noise(4, 9000)
    waveform[1, 7001:] = 30.0  # what a neighbour's rows may hold
    out = fbank(waveform, config, lengths=counts, backend=backend)
    assert out.shape == (4, config.num_frames(9000), config.num_mel_bins)
    for row, count, frames in zip(
        out, counts, config.num_frames(torch.tensor(counts)).tolist(), strict=True
    ):
        if frames:
            alone = fbank(waveform[counts.index(count), :count], config, backend=backend)
            torch.testing.assert_close(row[:frames], alone, rtol=0, atol=3e-5)
            if backend == "numba" and not config.norm_per_feature:
                assert torch.equal(row[:frames], alone)
        silence = torch.tensor(config.log_silence)
        if config.top_db > 0:
            silence = silence.maximum(row.max() - config.top_range)
        assert (row[frames:] == silence).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_out_takes_what_is_done_to_whole_clips_too(preset: str) -> None:
    config = FbankConfig.preset(preset)
    for lengths in (None, [9000, 5000, 100]):
        expected = fbank(noise(3, 9000), config, lengths=lengths)
        out = torch.full_like(expected, math.nan)
        assert fbank(noise(3, 9000), config, lengths=lengths, out=out) is out
        assert torch.equal(out, expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_differentiable(preset: str) -> None:
    config = FbankConfig.preset(preset)
    waveform = noise(2, 4000).double().requires_grad_()
    fbank(waveform, config, lengths=[4000, 3000]).square().sum().backward()
    assert waveform.grad is not None
    assert waveform.grad.isfinite().all()
    assert waveform.grad[0].count_nonzero() > 2500
    assert not waveform.grad[1, 3000:].any()


@pytest.mark.parametrize("preset", ["librosa", "whisper"])
def test_top_db_counts_from_the_clips_own_largest_value(preset: str) -> None:
    config = FbankConfig.preset(preset)
    waveform = 1e3 * noise(1, 16000).repeat(2, 1)
    waveform[1] *= 1e-3  # 60 dB
    waveform[:, 8000:] = 0.0
    out = fbank(waveform, config)
    eighty = 80.0 / config.top_db * config.top_range
    for row in out:
        assert row.min() == row.max() - eighty
    assert out[0].min() - out[1].min() == pytest.approx(eighty * 60.0 / 80.0, rel=1e-3)
    padded = fbank(waveform, config, lengths=[8000, 16000])
    assert (padded[0, -3:] == padded[0].max() - eighty).all()


@pytest.mark.parametrize("num_samples", [480, 16000, 48000])
def test_numba_raises_a_clip_as_numpy_does(num_samples: int) -> None:
    config = FbankConfig.preset("whisper")
    waveform = noise(12, num_samples)
    waveform[:, num_samples // 2 :] *= 1e-6
    waveform[1, num_samples // 3] = math.nan
    waveform[3, num_samples // 3] = math.inf
    lengths = [num_samples] * 11 + [num_samples * 2 // 3]
    plain = fbank(waveform, config.replace(top_db=0.0), backend="numba", lengths=lengths).numpy()
    largest = plain.max(axis=(1, 2), keepdims=True)
    expected = np.maximum(plain, largest - np.float32(config.top_range))
    ours = fbank(waveform, config, backend="numba", lengths=lengths).numpy()
    np.testing.assert_array_equal(ours, expected)
    assert np.isnan(ours[1]).all()
    assert np.isfinite(ours[0]).all()


def test_norm_per_feature_is_over_the_frames_that_count() -> None:
    config = FbankConfig.preset("nemo")
    out = fbank(noise(3, 16000), config, lengths=[16000, 8000, 160])
    for row, frames in zip(out, (100, 50, 1), strict=True):
        torch.testing.assert_close(row[:frames].mean(dim=0), torch.zeros(64), atol=1e-5, rtol=0)
        if frames > 1:
            std = row[:frames].std(dim=0)
            torch.testing.assert_close(std, torch.ones(64), atol=1e-4, rtol=0)
    assert not out[2].any()


@pytest.mark.parametrize("preset", ["librosa", "nemo"])
def test_energies_before_the_log_know_nothing_of_what_follows(preset: str) -> None:
    config = FbankConfig.preset(preset)
    before = fbank(noise(8000), config.replace(use_log_fbank=False))
    assert (before >= 0).all()
    plain = config.replace(log_type="ln", log_floor=0.0, log_offset=0.0, top_db=0.0)
    logarithm = fbank(noise(8000), plain.replace(norm_per_feature=False))
    torch.testing.assert_close(before.log(), logarithm)


@pytest.mark.parametrize("preset", PRESETS)
def test_numba_serves_every_preset(preset: str) -> None:
    config = FbankConfig.preset(preset)
    assert unsupported(config) is None
    waveform = noise(2, 9001)
    before_log = config.replace(use_log_fbank=False)
    exact = fbank(waveform.double(), before_log, backend="reference")
    ours = fbank(waveform, before_log, backend="numba")
    assert relative_norm(ours, exact) <= 1e-6


def test_log_units_of_the_presets() -> None:
    assert FbankConfig.preset("librosa").log_factor == pytest.approx(10 / math.log(10))
    assert FbankConfig.preset("whisper").log_factor == pytest.approx(0.25 / math.log(10))
    assert FbankConfig.preset("whisper").log_shift == 1.0
    assert FbankConfig.preset("whisper").top_range == pytest.approx(2.0)


def assert_same_table(printed: list[str], written: list[str]) -> None:
    """Words are the same, and differences of a signal up to how machines sum it."""
    assert len(printed) == len(written)
    for now, then in zip(printed, written, strict=True):
        numbers = [cell.strip() for cell in now.split("|") if re.fullmatch(r" *[\d.]+ *", cell)]
        if not numbers:
            assert now == then
            continue
        before = [cell.strip() for cell in then.split("|") if re.fullmatch(r" *[\d.]+ *", cell)]
        np.testing.assert_allclose(
            np.array(numbers, float), np.array(before, float), atol=0.02, err_msg=now
        )


def test_tables_in_the_documentation_are_what_the_script_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    conventions.main()
    written = (GOLDEN.parents[1] / "docs" / "conventions.md").read_text()
    assert_same_table(capsys.readouterr().out.splitlines(), written.splitlines())


def test_table_in_the_guide_is_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    conventions.main(["--short"])
    guide = (GOLDEN.parents[1] / "docs" / "guides" / "filterbank.md").read_text()
    begin = "<!-- python -m ast_fast_kernels.testing.conventions --short -->\n\n"
    written = guide.partition(begin)[2].partition("\n\n<!-- end -->")[0]
    assert_same_table(capsys.readouterr().out.splitlines(), written.splitlines())


def test_every_preset_says_whose_it_is() -> None:
    assert list(conventions.LIBRARIES) == list(PRESETS)


def test_differences_are_zero_on_the_diagonal_and_fewer_after_each_bins_mean() -> None:
    matrix = conventions.differences()
    assert (np.diag(matrix) == 0).all()
    above, below = np.triu(matrix, 1).T, np.tril(matrix, -1)
    assert (below[below > 0] <= above[below > 0]).mean() > 0.9
