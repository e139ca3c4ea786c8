import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ast_fast.config import AudioConfig, Config, FeatureConfig
from ast_fast.errors import InputError
from ast_fast.features import (
    STD_FLOOR,
    Statistics,
    check_features,
    compute_statistics,
    load_batch,
    log_mel,
    normalise,
    pad_frames,
)
from ast_fast_kernels.fbank.config import FbankConfig

PER_SAMPLE = Config()
BY_STATISTICS = Config(features=FeatureConfig(norm_per_sample=False))
CPU = torch.device("cpu")


def clips(count: int = 6, num_samples: int = 8000) -> np.ndarray:
    rng = np.random.default_rng(0)
    level = 10.0 ** rng.uniform(1.0, 4.0, size=(count, 1))
    return (level * rng.uniform(-1, 1, size=(count, num_samples))).astype(np.int16)


def test_int16_and_floats_give_the_same_features():
    waveforms = torch.from_numpy(clips())
    expected = log_mel(waveforms.float() / 32768, PER_SAMPLE)
    assert expected.shape == (6, 48, 128)
    assert torch.equal(log_mel(waveforms, PER_SAMPLE), expected)


def test_dither_counts_only_when_asked_for():
    dithered = replace(PER_SAMPLE, fbank=FbankConfig(dither=100.0))
    waveforms = torch.from_numpy(clips())
    assert torch.equal(log_mel(waveforms, dithered), log_mel(waveforms, PER_SAMPLE))
    drawn = [log_mel(waveforms, dithered, dither=True) for _ in range(2)]
    assert not torch.equal(*drawn)


def test_a_batch_is_a_copy_of_the_named_clips(tmp_path):
    np.save(tmp_path / "waveforms.npy", clips())
    mapped = np.load(tmp_path / "waveforms.npy", mmap_mode="r")
    batch = load_batch(mapped, np.array([4, 1]), CPU)
    assert batch.dtype == torch.int16
    np.testing.assert_array_equal(batch, mapped[[4, 1]])
    batch.zero_()
    assert mapped[4].any()


def test_per_sample_gives_each_clip_mean_0_and_deviation_1():
    features, _ = normalise(log_mel(torch.from_numpy(clips()), PER_SAMPLE), PER_SAMPLE, None)
    torch.testing.assert_close(features.mean(dim=(1, 2)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        features.std(dim=(1, 2), correction=0), torch.ones(6), atol=1e-3, rtol=0
    )


def test_per_sample_does_not_depend_on_the_other_clips():
    batch = log_mel(torch.from_numpy(clips()), PER_SAMPLE)
    alone, silence_alone = normalise(batch[2:3], PER_SAMPLE, None)
    together, silence_together = normalise(batch, PER_SAMPLE, None)
    assert torch.equal(alone[0], together[2])
    assert torch.equal(silence_alone[0], silence_together[2])


@pytest.mark.parametrize("preset", ["ast", "kaldi", "seed"])
def test_digital_silence_becomes_zeros(preset):
    config = Config(fbank=FbankConfig.preset(preset))
    features, silence = normalise(
        log_mel(torch.zeros(2, 8000, dtype=torch.int16), config), config, None
    )
    assert features.abs().max() < 1e-3
    assert silence.abs().max() < 1e-3


def test_rounding_noise_is_not_stretched_into_sound():
    features = torch.full((1, 48, 128), -15.9424)
    features += 1e-5 * torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    normalised, _ = normalise(features, PER_SAMPLE, None)
    assert normalised.abs().max() < 1e-4 / STD_FLOOR


def test_statistics_are_applied_as_in_the_original():
    features = torch.tensor([[[-8.0, -4.0]]])
    normalised, silence = normalise(features, BY_STATISTICS, Statistics(-6.0, 2.0))
    torch.testing.assert_close(normalised, torch.tensor([[[-0.5, 0.5]]]))
    expected = (math.log(np.finfo(np.float32).eps) + 6.0) / 4.0
    torch.testing.assert_close(silence, torch.tensor([expected]))


def test_statistics_must_be_given_where_needed():
    with pytest.raises(ValueError, match="statistics must be given"):
        normalise(torch.zeros(1, 2, 2), BY_STATISTICS, None)


def test_padding_is_what_silence_becomes():
    """A clip that ends in silence and a shorter one that is padded look alike at their ends."""
    waveforms = torch.from_numpy(clips(2)).clone()
    waveforms[:, 4000:] = 0
    features, silence = normalise(log_mel(waveforms, PER_SAMPLE), PER_SAMPLE, None)
    padded = pad_frames(features, 60, silence)
    assert padded.shape == (2, 60, 128)
    assert torch.equal(padded[:, :48], features)
    torch.testing.assert_close(padded[:, 48:], features[:, 47:].expand(2, 12, 128))
    assert not torch.allclose(padded[0, 50], padded[1, 50])  # each clip has its own


@pytest.mark.parametrize("target_frames", [48, 47, 1])
def test_longer_clips_are_cut(target_frames):
    features = torch.randn(2, 48, 4)
    cut = pad_frames(features, target_frames, torch.zeros(2))
    assert torch.equal(cut, features[:, :target_frames])


def test_statistics_are_those_of_all_values(monkeypatch):
    monkeypatch.setattr("ast_fast.features.BATCH_SIZE", 4)  # so that the last batch is short
    waveforms = clips()
    values = log_mel(torch.from_numpy(waveforms), BY_STATISTICS).double()
    statistics = compute_statistics(waveforms, np.arange(6), BY_STATISTICS)
    assert statistics.mean == pytest.approx(values.mean().item(), rel=1e-12)
    assert statistics.std == pytest.approx(values.std(correction=0).item(), rel=1e-9)


def test_statistics_see_no_other_clip():
    waveforms = clips()
    statistics = compute_statistics(waveforms, np.array([0, 2, 3]), BY_STATISTICS)
    waveforms[[1, 4, 5]] = 32767
    assert compute_statistics(waveforms, np.array([0, 2, 3]), BY_STATISTICS) == statistics


def test_statistics_of_silence_are_refused():
    with pytest.raises(InputError, match="the 3 training clips hold only silence"):
        compute_statistics(np.zeros((3, 8000), np.int16), np.arange(3), BY_STATISTICS)


@pytest.mark.parametrize(
    ("config", "num_samples", "message"),
    [
        (
            Config(features=FeatureConfig(target_frames=0)),
            80000,
            "features.target_frames must be at least 1, got 0",
        ),
        (
            Config(),
            399,
            r"at least one frame of 400 samples \(fbank.frame_length 25 ms\), got 399 samples",
        ),
        (
            replace(Config(), audio=AudioConfig(clip_seconds=10)),
            160000,
            r"features.target_frames must be at least the 998 frames of a clip "
            r"\(audio.clip_seconds 10 at fbank.sample_frequency 16000\), got 512",
        ),
        (
            replace(Config(), fbank=FbankConfig(log_floor=0.0)),
            80000,
            "fbank.log_floor and fbank.log_offset must not both be 0",
        ),
    ],
    ids=["no-target-frame", "shorter-than-a-frame", "cut-short", "log-without-floor"],
)
def test_settings_without_usable_features_are_named(config, num_samples, message):
    with pytest.raises(InputError, match=message):
        check_features(config, num_samples)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000])
def test_the_default_clip_fits_at_every_common_rate(rate):
    check_features(Config(fbank=FbankConfig(sample_frequency=rate)), 5 * rate)
