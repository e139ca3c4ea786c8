"""The filterbank against other people's: kaldi-native-fbank and transformers."""

from __future__ import annotations

import numpy as np
import pytest

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.testing.signals import make_signal

# What two correct float32 implementations differ by on real clips: quiet bins next to loud ones.
MEAN_DIFFERENCE = 5e-6
P9999_DIFFERENCE = 1e-3
MAX_DIFFERENCE = 4e-3


@pytest.fixture(scope="module")
def synthetic() -> np.ndarray:
    names = ("bursts", "noise", "impulse", "silence")
    return np.stack([make_signal(name, 80000) for name in names]).astype(np.float32)


def assert_close(log_mel: np.ndarray, expected: np.ndarray) -> None:
    assert log_mel.shape == expected.shape
    difference = np.abs(log_mel.astype(np.float64) - expected)
    assert difference.max() <= MAX_DIFFERENCE
    assert np.quantile(difference, 0.9999) <= P9999_DIFFERENCE
    assert difference.mean() <= MEAN_DIFFERENCE


def kaldi_native_fbank(waveforms: np.ndarray, *, snip_edges: bool = True) -> np.ndarray:
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = snip_edges
    options.mel_opts.num_bins = 80
    rows = []
    for waveform in waveforms:
        computer = knf.OnlineFbank(options)
        computer.accept_waveform(16000.0, waveform.tolist())
        computer.input_finished()
        frames = [np.array(computer.get_frame(i)) for i in range(computer.num_frames_ready)]
        rows.append(np.stack(frames))
    return np.stack(rows)


def ast_feature_extractor(waveforms: np.ndarray, *, normalise: bool) -> np.ndarray:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.ASTFeatureExtractor(
        max_length=512, do_normalize=normalise, mean=-4.2677393, std=4.5689974
    )
    features = extractor(list(waveforms), sampling_rate=16000, return_tensors="np")
    return features["input_values"]


@pytest.mark.parametrize("backend", ["reference", "auto"])
class TestKaldiNativeFbank:
    config = FbankConfig.preset("kaldi", num_mel_bins=80)

    def test_synthetic_signals_agree(self, synthetic: np.ndarray, backend: str) -> None:
        expected = kaldi_native_fbank(synthetic)
        assert_close(fbank(synthetic, self.config, backend=backend), expected)

    def test_mirrored_edges_agree(self, synthetic: np.ndarray, backend: str) -> None:
        short = synthetic[:, :8123]
        expected = kaldi_native_fbank(short, snip_edges=False)
        config = self.config.replace(snip_edges=False)
        assert_close(fbank(short, config, backend=backend), expected)

    @pytest.mark.data
    def test_real_clips_agree(self, clips: np.ndarray, backend: str) -> None:
        expected = kaldi_native_fbank(clips)
        assert_close(fbank(clips, self.config, backend=backend), expected)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("backend", ["reference", "auto"])
class TestASTFeatureExtractor:
    def test_synthetic_signals_agree(self, synthetic: np.ndarray, backend: str) -> None:
        expected = ast_feature_extractor(synthetic, normalise=False)
        assert not expected[:, 498:].any()  # its padding, before normalising
        assert_close(fbank(synthetic, backend=backend), expected[:, :498])

    def test_its_normalisation_applied_agrees(self, synthetic: np.ndarray, backend: str) -> None:
        expected = ast_feature_extractor(synthetic, normalise=True)
        padded = np.zeros((len(synthetic), 512, 128), np.float32)
        padded[:, :498] = fbank(synthetic, backend=backend)
        assert_close((padded + 4.2677393) / (2 * 4.5689974), expected)

    @pytest.mark.data
    def test_real_clips_agree(self, clips: np.ndarray, backend: str) -> None:
        expected = ast_feature_extractor(clips, normalise=False)
        assert_close(fbank(clips, backend=backend), expected[:, :498])
