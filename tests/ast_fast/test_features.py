import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ast_fast.augment import FeatureChanges
from ast_fast.features import (
    STD_FLOOR,
    Statistics,
    compute_statistics,
    load_batch,
    log_mel,
    model_input,
)
from ast_fast.settings.config import AudioConfig, Config, FeatureConfig
from ast_fast.settings.rules import check_features
from ast_fast_kernels import normalise
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig

PER_SAMPLE = Config()
NOTHING = FeatureChanges(None, None, None)
BY_STATISTICS = Config(features=FeatureConfig(norm_per_sample=False))
CPU = torch.device("cpu")


def clips(count: int = 6, num_samples: int = 8000) -> np.ndarray:
    rng = np.random.default_rng(0)
    level = 10.0 ** rng.uniform(1.0, 4.0, size=(count, 1))
    return (level * rng.uniform(-1, 1, size=(count, num_samples))).astype(np.int16)


def seen(
    waveforms: np.ndarray,
    config: Config,
    statistics: Statistics | None = None,
    *,
    changes: FeatureChanges | None = None,
) -> torch.Tensor:
    return model_input(torch.from_numpy(waveforms), config, statistics, changes=changes)


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
    features = seen(clips(), PER_SAMPLE)[:, :48]
    torch.testing.assert_close(features.mean(dim=(1, 2)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        features.std(dim=(1, 2), correction=0), torch.ones(6), atol=1e-3, rtol=0
    )


def test_per_sample_does_not_depend_on_the_other_clips():
    assert torch.equal(seen(clips()[2:3], PER_SAMPLE)[0], seen(clips(), PER_SAMPLE)[2])


@pytest.mark.parametrize("preset", ["ast", "kaldi", "seed"])
def test_digital_silence_becomes_zeros(preset):
    config = Config(fbank=FbankConfig.preset(preset))
    assert seen(np.zeros((2, 8000), np.int16), config).abs().max() < 1e-3


def test_rounding_noise_is_not_stretched_into_sound():
    features = torch.full((1, 48, 128), -15.9424)
    features += 1e-5 * torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    normalised = normalise(features, 48, log_silence=-15.9424, std_floor=STD_FLOOR)
    assert normalised.abs().max() < 1e-4 / STD_FLOOR


def test_statistics_are_applied_as_in_the_original():
    statistics = Statistics(-6.0, 2.0)
    features = seen(clips(), BY_STATISTICS, statistics)
    log_mel_features = log_mel(torch.from_numpy(clips()), BY_STATISTICS)
    torch.testing.assert_close(features[:, :48], (log_mel_features + 6.0) / 4.0)
    silence = torch.tensor((math.log(np.finfo(np.float32).eps) + 6.0) / 4.0)
    torch.testing.assert_close(features[:, 48:], silence.expand(6, 512 - 48, 128))


def test_missing_frames_can_be_zeros_as_in_the_original():
    zero = replace(BY_STATISTICS, features=FeatureConfig(norm_per_sample=False, padding="zero"))
    statistics = Statistics(-6.0, 2.0)
    features = seen(clips(), zero, statistics)
    assert torch.equal(features[:, :48], seen(clips(), BY_STATISTICS, statistics)[:, :48])
    assert torch.equal(features[:, 48:], torch.full((6, 512 - 48, 128), 6.0 / 4.0))


def test_statistics_must_be_given_where_needed():
    with pytest.raises(ValueError, match="statistics must be given"):
        seen(clips(), BY_STATISTICS)


def test_padding_is_what_silence_becomes():
    """A clip that ends in silence and a shorter one that is padded look alike at their ends."""
    waveforms = clips(2)
    waveforms[:, 4000:] = 0
    features = seen(waveforms, PER_SAMPLE)
    assert features.shape == (2, 512, 128)
    torch.testing.assert_close(features[:, 48:], features[:, 47:48].expand(2, 512 - 48, 128))
    assert not torch.allclose(features[0, 50], features[1, 50])  # each clip has its own


def test_a_filter_is_added_to_the_log_mel_features():
    offsets = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    statistics = Statistics(-6.0, 2.0)
    plain = seen(clips(), BY_STATISTICS, statistics)
    changed = seen(clips(), BY_STATISTICS, statistics, changes=FeatureChanges(offsets, None, None))
    expected = plain[:, :48] + offsets.unsqueeze(1) / 4.0
    torch.testing.assert_close(changed[:, :48], expected)
    assert torch.equal(changed[:, 48:], plain[:, 48:])


def test_masks_become_the_mean_and_leave_the_rest_as_it_was():
    frames, bins = torch.zeros(6, 48, dtype=torch.bool), torch.zeros(6, 128, dtype=torch.bool)
    frames[0, 3:9], bins[1, :40] = True, True
    whole = seen(clips(), PER_SAMPLE)
    masked = seen(clips(), PER_SAMPLE, changes=FeatureChanges(None, frames, bins))
    expected = whole.clone()
    expected[0, 3:9], expected[1, :48, :40] = 0, 0
    assert torch.equal(masked, expected)
    assert torch.equal(seen(clips(), PER_SAMPLE, changes=NOTHING), whole)


def test_dither_counts_where_changes_are_drawn():
    dithered = replace(PER_SAMPLE, fbank=FbankConfig(dither=100.0))
    assert torch.equal(seen(clips(), dithered), seen(clips(), PER_SAMPLE))
    drawn = [seen(clips(), dithered, changes=NOTHING) for _ in range(2)]
    assert not torch.equal(*drawn)


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
            Config(features=FeatureConfig(padding="zero")),
            80000,
            "features.padding must be silence where features.norm_per_sample is on",
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
    ids=["no-target-frame", "zeros", "shorter-than-a-frame", "cut-short", "log-without-floor"],
)
def test_settings_without_usable_features_are_named(config, num_samples, message):
    with pytest.raises(InputError, match=message):
        check_features(config, num_samples)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000])
def test_the_default_clip_fits_at_every_common_rate(rate):
    check_features(Config(fbank=FbankConfig(sample_frequency=rate)), 5 * rate)
